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

import pytest
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, PrintLog
from skorch.dataset import ValidSplit
from skorch.hf import AccelerateMixin
from torch.utils.data import IterableDataset

from mlr3torch_py import CallbackSetUnfreeze, select_prefix, t_clbk, torch_callback
from tests.checkpoint.runs import CrashError
from tests.helpers import Stops, X, iris_net, y

PROGRAM = """
from tests.helpers import X, iris_net, y
from mlr3torch_py import t_clbk
from skorch.dataset import ValidSplit
iris_net(t_clbk("progress", digits=3), max_epochs=2, train_split=ValidSplit(3)).fit(X, y)
"""
LINE = r"Epoch {n}/{total}: train\.loss [\d.e-]+, valid\.acc [\d.]+, valid\.loss [\d.e-]+, lr 0\.1 \(\d+\.\d s\)"
END = r"Trained for {total} epochs? \(\d+\.\d s\)"


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


def test_the_line_of_an_epoch_names_what_was_unfrozen_and_frozen(capfd):
    table = {"epoch": [2, 2], "weights": [select_prefix("0"), select_prefix("3")], "action": ["unfreeze", "freeze"]}
    unfreeze = CallbackSetUnfreeze(select_prefix("3", "6"), table)
    iris_net(t_clbk("progress"), unfreeze, max_epochs=2).fit(X, y)
    first, second, _ = capfd.readouterr().out.splitlines()
    assert re.search(r", trainable \d+% \(\d+\.\d s\)$", first)
    assert second.endswith(" s); unfroze 0.weight, 0.bias, froze 3.weight, 3.bias")


def test_the_learning_rates_of_an_epoch_are_those_of_what_trains(capfd):
    table = {"epoch": [2, 3], "weights": [select_prefix("3"), select_prefix("0")], "lr_mult": [0.5, 0.1]}
    net = iris_net(t_clbk("progress"), CallbackSetUnfreeze(select_prefix("6"), table), max_epochs=3).fit(X, y)
    out = capfd.readouterr().out
    assert re.findall(r"lr (.+?),", out) == ["0.1", "0.05 to 0.1", "0.01 to 0.1"]
    assert net.history[0, "batches", 0, "lr_0_x0.1"] == pytest.approx(0.01)
    groups = [("0.*", {"lr": 0.3}), ("3.*", {"lr": 0.2})]
    head = CallbackSetUnfreeze(select_prefix("3", "6"))
    iris_net(t_clbk("progress"), head, max_epochs=1, optimizer__param_groups=groups).fit(X, y)
    assert "lr 0.1 to 0.2," in capfd.readouterr().out


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


def test_the_time_and_the_epochs_are_those_of_all_calls(capfd, tmp_path):
    def net_of(epochs):
        keep = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
        return iris_net(t_clbk("progress", digits=3), keep, max_epochs=epochs, train_split=ValidSplit(3))

    net_of(2).fit(X, y)
    capfd.readouterr()
    net = net_of(4).fit(X, y)
    resumed, *lines = capfd.readouterr().out.splitlines()
    assert resumed == "Training: resumed after epoch 2"
    assert matches(lines_of(4, first=3), "\n".join(lines))
    for row in net.history:
        row["dur"] = 10.0
    net.set_params(max_epochs=1)
    net.partial_fit(X, y)
    out = capfd.readouterr().out
    assert "Trained for 5 epochs (40." in out
    assert "Training: continued after epoch 4\n" in out


@pytest.mark.parametrize(("digits", "shown"), [(1, "0.1"), (2, "0.12"), (4, "0.1235"), (None, "0.1235")])
def test_scores_have_as_many_digits_as_asked_for(digits, shown, capfd):
    def score(net, X, y):
        return 0.123456

    scoring = ("score", EpochScoring(score, on_train=True, name="train_score"))
    iris_net(scoring, t_clbk("progress", digits=digits), max_epochs=1).fit(X, y)
    assert f"train.score {shown}, lr 0.1 (" in capfd.readouterr().out


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
        assert capfd.readouterr().out == "Trained for 0 epochs (0.0 s): interrupted in epoch 1\n"
    assert progress.callback.display_ is None


def test_a_net_can_be_pickled_while_the_bar_is_there():
    def save(self):
        kept.append(pickle.dumps(self.ctx.callbacks["progress"]))

    kept = []
    iris_net(t_clbk("progress"), torch_callback("save", on_batch_end=save), max_epochs=1).fit(X, y)
    assert pickle.loads(kept[0]).display_ is None


@pytest.mark.parametrize("digits", [0, -1, 1.5, True, "2"])
def test_wrong_digits_are_refused(digits):
    with pytest.raises((TypeError, ValueError), match=f"`digits` is {digits!r}; give"):
        t_clbk("progress", digits=digits)


def said(capfd):
    return capfd.readouterr().out.splitlines()[-1].partition(": ")[2]


@pytest.mark.parametrize(
    "stopping",
    [
        t_clbk("early_stopping", patience=2, min_delta=100.0),
        EarlyStopping(patience=2, threshold=100, threshold_mode="abs", sink=[].append),
    ],
    ids=["ours", "skorch's"],
)
def test_it_says_that_training_was_stopped_early_and_which_epoch_was_the_best(stopping, capfd):
    net = iris_net(t_clbk("progress"), stopping, max_epochs=9, train_split=ValidSplit(3)).fit(X, y)
    assert said(capfd) == f"stopped early at epoch {len(net.history)}, best 1"


def test_it_says_that_training_was_interrupted_after_an_epoch(capfd):
    def interrupt(self):
        raise KeyboardInterrupt

    iris_net(t_clbk("progress"), torch_callback("stop", on_epoch_end=interrupt), max_epochs=9).fit(X, y)
    assert said(capfd) == "interrupted after epoch 1"


def test_it_says_that_a_run_is_finished(capfd, tmp_path):
    for _ in range(2):
        keep = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
        iris_net(t_clbk("progress"), keep, max_epochs=2, verbose=1).fit(X, y)
    assert capfd.readouterr().out.splitlines()[-1] == "Training: finished already, nothing to train"


def test_scores_of_callbacks_that_follow_are_shown(capfd):
    def f1(net, X, y):
        return 0.5

    scoring = ("f1", EpochScoring(f1, name="f1"))
    iris_net(t_clbk("progress"), scoring, max_epochs=1, train_split=ValidSplit(3)).fit(X, y)
    assert ", f1 0.5000, lr" in capfd.readouterr().out


def test_skorch_prints_no_second_table(capfd):
    lines = []
    net = iris_net(t_clbk("progress"), max_epochs=2, verbose=1, train_split=ValidSplit(3)).fit(X, y)
    assert matches([r"Epoch 1/2: .*", r"Epoch 2/2: .*", END.format(total=2)], capfd.readouterr().out)
    assert dict(net.callbacks_)["print_log"].sink is print
    iris_net(t_clbk("progress"), callbacks__print_log__sink=lines.append, max_epochs=1).fit(X, y)
    assert len(lines) == 3


def test_skorch_prints_no_second_table_by_an_accelerator(capfd):
    accelerate = pytest.importorskip("accelerate")

    class Accelerated(AccelerateMixin, type(iris_net())):
        pass

    own = {"accelerator": accelerate.Accelerator(cpu=True), "verbose": 1, "audited": False}
    iris_net(t_clbk("progress"), cls=Accelerated, max_epochs=1, **own).fit(X, y)
    assert matches([r"Epoch 1/1: .*", END.format(total=1)], capfd.readouterr().out)


class Copies(Callback):
    def on_batch_end(self, net, **kwargs):
        COPIES.append(pickle.dumps(net))


COPIES = []


def test_a_copy_of_a_net_made_while_it_is_shown_prints_as_ever():
    iris_net(t_clbk("progress"), Copies(), max_epochs=1).fit(X, y)
    copy = pickle.loads(COPIES[0])
    assert [one.sink for _, one in copy.callbacks_ if isinstance(one, PrintLog)] == [print]


def test_rates_of_several_groups_are_a_range(capfd):
    groups = [("0.*", {"lr": 0.001})]
    iris_net(t_clbk("progress"), optimizer__param_groups=groups, max_epochs=1).fit(X, y)
    assert ", lr 0.001 to 0.1 (" in capfd.readouterr().out
