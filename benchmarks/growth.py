"""(j) What an epoch costs after 10,000 epochs against after 10: a checkpoint, the history callback and the clock."""

from tempfile import mkdtemp

import numpy as np
from skorch import NeuralNetClassifier
from skorch.history import History
from torch import nn

from benchmarks.rounds import in_turns, per_call, row, table
from mlr3torch_py import CallbackSetHistory
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from mlr3torch_py.checkpoint.net_state import capture
from mlr3torch_py.training.clock import moment_of

ROW = {"epoch": 1, "train_batch_count": 1, "train_loss": 0.5, "dur": 0.1, "batches": [{"train_loss": 0.5}]}
MORE = {"random": {}, "random_of_call": None, "run": "benchmark", "call": {"n": 1, "begin": 0, "until": 0}}


def net_after(n_epochs):
    """A small net with a long history."""
    data = np.zeros((10, 4), dtype="float32"), np.zeros(10, dtype="int64")
    net = NeuralNetClassifier(nn.Linear(4, 3), criterion=nn.CrossEntropyLoss, verbose=0, max_epochs=1).fit(*data)
    net.history_ = History(dict(ROW) for _ in range(n_epochs))
    return net


def checkpoints(n_epochs):
    """A way: adding an epoch to the history and writing its checkpoint."""
    net, folder = net_after(n_epochs), CheckpointFolder(mkdtemp())
    folder.write(capture(net, MORE, {}, 0))

    def write():
        net.history_.append(dict(ROW))
        folder.write(capture(net, MORE, {}, folder.rows.n_rows))
        net.history_.pop()

    return per_call(write, 10)


def histories(n_epochs):
    """A way: adding an epoch to the table of scores."""
    net, history = net_after(n_epochs), CallbackSetHistory()
    history.on_train_begin(net)

    def add():
        net.history_.append(dict(ROW))
        history.on_epoch_end(net)

    return per_call(add, 100)


def clocks(n_epochs):
    """A way: asking for the moment after another epoch."""
    net = net_after(n_epochs)
    moment_of(net.history)

    def ask():
        net.history_.append(dict(ROW))
        moment_of(net.history)

    return per_call(ask, 100)


def measure(few=10, many=10_000, rounds=21):
    cases = {"a checkpoint": checkpoints, "the history callback": histories, "the clock": clocks}
    microseconds = in_turns({(case, n): way(n) for case, way in cases.items() for n in (few, many)}, rounds)
    return table(
        row(
            "j",
            f"{case} after {many:,} epochs",
            f"after {few:,} epochs",
            microseconds[case, many],
            microseconds[case, few],
        )
        for case in cases
    )
