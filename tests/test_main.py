"""The example that `python -m mlr3torch_py` runs, and the timeline that it draws."""

import subprocess
import sys

import matplotlib as mpl
import pytest

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last
from mlr3torch_py.__main__ import main
from mlr3torch_py.timeline import Timeline
from tests.helpers import X, iris_net, y

mpl.use("agg")


def test_the_example_shows_schedule_training_and_timeline(tmp_path):
    command = [sys.executable, "-m", "mlr3torch_py", "--png", str(tmp_path / "timeline.png")]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["epoch", "2", "0.weight"] in lines
    assert [line[1] for line in lines if len(line) >= 4 and line[0] in "123456" and "." in line[-1]] == [
        "8",
        "12",
        "12",
        "12",
        "14",
        "14",
    ]
    assert ["0.weight", "-", *["yes"] * 5] in lines
    assert ["3.weight", *["-"] * 4, "yes", "yes"] in lines
    assert ["6.bias", *["-"] * 6] in lines
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_works_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    main(["--png", str(tmp_path / "timeline.png")])
    assert "No picture: drawing needs matplotlib: pip install 'mlr3torch_py[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_timeline_draws_what_it_recorded():
    timeline = Timeline()
    iris_net(CallbackSetUnfreeze(select_last(1), {"epoch": [3], "weights": [select_all()]}), timeline).fit(X, y)
    frame = timeline.to_frame()
    assert list(frame.columns) == [1, 2, 3, 4]
    assert frame.loc["0.weight"].tolist() == [False, False, True, True]
    assert frame.loc["6.bias"].tolist() == [True] * 4
    ax = timeline.plot()
    assert ax.collections[0].get_array().tolist() == frame.astype(int).to_numpy().tolist()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(frame.index)
    assert timeline.plot(ax) is ax


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
