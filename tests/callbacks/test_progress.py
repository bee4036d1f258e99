"""The progress bar, as a terminal, a file and a notebook show it."""

import fcntl
import os
import pickle
import pty
import re
import struct
import subprocess
import sys
import termios

import nbformat
import pytest
from nbclient import NotebookClient
from skorch import NeuralNet
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from torch.utils.data import IterableDataset

from mlr3torch_py import t_clbk, torch_callback
from tests.checkpoint.runs import CrashError
from tests.helpers import Stops, X, iris_net, y

PROGRAM = """
from tests.helpers import X, iris_net, y
from mlr3torch_py import t_clbk
from skorch.dataset import ValidSplit
iris_net(t_clbk("progress", digits=3), max_epochs=2, train_split=ValidSplit(3)).fit(X, y)
"""
LINE = r"Epoch {n}/{total}: train\.loss [\d.e-]+, valid\.acc [\d.]+, valid\.loss [\d.e-]+ \(\d+\.\d s\)"
END = r"Trained for {total} epochs \(\d+\.\d s\)"


def lines_of(total, first=1):
    return [LINE.format(n=n, total=total) for n in range(first, total + 1)] + [END.format(total=total)]


def matches(patterns, text):
    lines = text.strip().splitlines()
    return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))


def test_in_a_file_there_is_a_line_for_each_epoch_and_nothing_else(capfd):
    iris_net(t_clbk("progress", digits=3), max_epochs=3, train_split=ValidSplit(3)).fit(X, y)
    out, err = capfd.readouterr()
    assert matches(lines_of(3), out)
    assert err == ""


@pytest.mark.slow
def test_in_a_terminal_bars_go_over_the_batches_of_training_and_validation():
    """A pseudo-terminal shows what a user's terminal would."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    shown = read_all(ours)
    assert process.wait() == 0
    assert "Epoch 1/2 train:   0%" in shown
    assert "Epoch 2/2 valid:   0%" in shown
    assert "0/2 [" in shown
    assert "0/1 [" in shown
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.endswith(" s)")]
    assert matches(lines_of(2), "\n".join(lines))


def environment():
    # asyncio of Python 3.12.1 warns of what the kernel of a notebook does
    errors = "error,ignore:There is no current event loop"
    return {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": errors}


def read_all(descriptor):
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode()


@pytest.mark.slow
def test_in_a_notebook_it_shows_bars_and_lines():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRAM)])
    NotebookClient(notebook, timeout=120).execute(env=environment())
    outputs = notebook.cells[0].outputs
    text = "".join(output.get("text", "") for output in outputs)
    assert all(re.search(pattern, text) for pattern in lines_of(2))
    assert not any(output.output_type == "error" for output in outputs)


def test_the_time_and_the_epochs_are_those_of_all_calls(capfd, tmp_path):
    def net_of(epochs):
        keep = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
        return iris_net(t_clbk("progress", digits=3), keep, max_epochs=epochs, train_split=ValidSplit(3))

    net_of(2).fit(X, y)
    capfd.readouterr()
    net = net_of(4).fit(X, y)
    assert matches(lines_of(4, first=3), capfd.readouterr().out)
    for row in net.history:
        row["dur"] = 10.0
    net.set_params(max_epochs=1)
    net.partial_fit(X, y)
    assert "Trained for 5 epochs (40." in capfd.readouterr().out


@pytest.mark.parametrize(("digits", "shown"), [(1, "0.1"), (2, "0.12"), (4, "0.1235")])
def test_scores_have_as_many_digits_as_asked_for(digits, shown, capfd):
    def score(net, X, y):
        return 0.123456

    scoring = ("score", EpochScoring(score, on_train=True, name="train_score"))
    iris_net(scoring, t_clbk("progress", digits=digits), max_epochs=1).fit(X, y)
    assert f"train.score {shown} (" in capfd.readouterr().out


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, y, strict=True)


def test_data_without_a_length_is_fine(capfd):
    net = iris_net(t_clbk("progress"), cls=NeuralNet, max_epochs=1)
    net.fit(Stream(), None)
    assert "Epoch 1/1: train.loss " in capfd.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt, CrashError])
def test_a_training_that_breaks_off_leaves_no_bar(error, capfd):
    progress = t_clbk("progress")
    net = iris_net(progress, Stops(error, 2))
    if error is CrashError:
        with pytest.raises(CrashError):
            net.fit(X, y)
        assert capfd.readouterr().out == ""
    else:
        net.fit(X, y)
        assert capfd.readouterr().out == "Trained for 0 epochs (0.0 s)\n"
    assert progress.callback.bar_ is None


def test_a_net_can_be_pickled_while_the_bar_is_there():
    def save(self):
        kept.append(pickle.dumps(self.ctx.callbacks["progress"]))

    kept = []
    iris_net(t_clbk("progress"), torch_callback("save", on_batch_end=save), max_epochs=1).fit(X, y)
    assert pickle.loads(kept[0]).bar_ is None


@pytest.mark.parametrize("digits", [0, -1, 1.5, True, "2"])
def test_wrong_digits_are_refused(digits):
    with pytest.raises((TypeError, ValueError), match=f"`digits` is {digits!r}; give"):
        t_clbk("progress", digits=digits)
