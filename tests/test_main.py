"""The example that `python -m mlr3torch_py` runs, and the picture that it draws."""

import re
import subprocess
import sys

import matplotlib as mpl
import pytest

from mlr3torch_py.__main__ import main

mpl.use("agg")


@pytest.mark.slow
def test_the_example_shows_schedule_training_and_timeline(tmp_path):
    command = [sys.executable, "-m", "mlr3torch_py", "--png", str(tmp_path / "timeline.png")]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "+", "0.weight"] in lines
    epochs = [line for line in lines if len(line) >= 6 and line[1].isdigit() and "." in line[2]]
    assert [line[5:-1] for line in epochs if len(line) > 6] == [["+", "0.weight"], ["+", "3.weight,", "6.weight"]]
    assert [line[1] for line in epochs] == ["163", "291", "291", "291", "2339", "2339"]
    assert ["0.weight", "-", *["+"] * 5] in lines
    assert ["3.weight", *["-"] * 4, "+", "+"] in lines
    assert ["6.bias", *["-"] * 6] in lines
    assert float(text.split("The accuracy on all flowers is ")[1][:4]) > 0.8
    assert f"The picture of it is {tmp_path / 'timeline.png'}" in text
    assert all(len(line) <= 120 for line in re.sub(r"\x1b\[\d+m", "", text).splitlines())
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_works_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    main(["--png", str(tmp_path / "timeline.png")])
    assert "No picture: drawing needs matplotlib: pip install 'mlr3torch_py[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
