"""(a) On a batch without an event: the callback's hook against the hook of an empty callback.

Both are called as skorch calls them, in a net with few or many weights, rows of the schedule that are still to come,
and epochs that have passed. The last row compares the largest net with the smallest.
"""

from itertools import product

from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from benchmarks.rounds import in_turns, per_call, row, table
from mlr3torch_py import CallbackSetUnfreeze, select_all, select_prefix

LIMIT = 2
HOOK = "getattr(callback, 'on_batch_begin')(net, **arguments)"


class Empty(Callback):
    """Does nothing."""

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        pass


def net_with(callback, n_weights, past_epochs=0):
    layers = nn.Sequential(*(nn.Linear(1, 1) for _ in range(n_weights // 2)))
    net = NeuralNet(layers, nn.MSELoss, callbacks=[callback], train_split=None, verbose=0).initialize()
    for _ in range(past_epochs):
        net.history.append({"train_batch_count": 100, "batches": [{"train_loss": 0.0}] * 100})
    return net


def begin_epoch(net, callback):
    """What skorch does before the first batch, and that batch, after which no event is due."""
    callback.on_train_begin(net)
    net.on_epoch_begin(net)
    callback.on_epoch_begin(net)
    callback.on_batch_begin(net, training=True)


def hook(n_weights, n_rows, past_epochs):
    """A way: the hook in the middle of an epoch, when all rows of the schedule are far ahead."""
    far = {"batch": range(10**9, 10**9 + n_rows), "weights": [select_all()] * n_rows}
    far["action"] = ["unfreeze", "freeze"] * (n_rows // 2) + ["unfreeze"] * (n_rows % 2)
    unfreeze = CallbackSetUnfreeze(select_prefix("0"), far)
    net = net_with(unfreeze, n_weights, past_epochs)
    begin_epoch(net, unfreeze)
    return call(unfreeze, net)


def call(callback, net):
    return per_call(HOOK, 2_000, callback=callback, net=net, arguments={"batch": None, "training": True})


def measure(weights=(10, 10_000), rows=(1, 1_000), past_epochs=(1, 1_000), rounds=51):
    empty = Empty()
    ways = {size: hook(*size) for size in product(weights, rows, past_epochs)}
    microseconds = in_turns({"empty": call(empty, net_with(empty, 10))} | ways, rounds)
    smallest, *_, largest = ways
    return table(
        [
            *(
                row("a", cased(size), "empty callback", microseconds[size], microseconds["empty"], LIMIT)
                for size in ways
            ),
            row("a", cased(largest), cased(smallest), microseconds[largest], microseconds[smallest]),
        ]
    )


def cased(size):
    return "weights {:,}, rows {:,}, past epochs {:,}".format(*size)
