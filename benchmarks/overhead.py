"""What the callback costs: ratios that are measured in one run, so that they hold on any machine.

Run it by ``python benchmarks/overhead.py``.

1. On a batch without an event, the callback's hook against the hook of an empty callback, over the number of weights,
   of rows, and of past epochs.
2. An event, that is deciding and writing all flags, against a bare loop that writes them.
"""

from itertools import product
from timeit import repeat

import pandas as pd
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_grep, select_none


class Empty(Callback):
    """Does nothing."""

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        pass


def best(function, number):
    """Seconds of one call: the best of several rounds, which other work on the machine disturbs least."""
    return min(repeat(function, number=number, repeat=7)) / number


def net_with(callback, n_weights, past_epochs=0):
    layers = nn.Sequential(*(nn.Linear(1, 1) for _ in range(n_weights // 2)))
    net = NeuralNet(layers, nn.MSELoss, callbacks=[callback], train_split=None, verbose=0).initialize()
    for _ in range(past_epochs):
        net.history.append({"train_batch_count": 100, "batches": [{"train_loss": 0.0}] * 100})
    return net


def hook_ratio(n_weights, n_rows, past_epochs):
    """The hook on a batch without an event, called as skorch calls it, over the hook of an empty callback."""
    table = {"batch": [10**9 + i for i in range(n_rows)], "weights": [select_all()] * n_rows}
    unfreeze, empty = CallbackSetUnfreeze(select_grep(r"^0\."), table), Empty()
    net = net_with(unfreeze, n_weights, past_epochs)
    unfreeze.on_train_begin(net)
    net.on_epoch_begin(net)
    unfreeze.on_epoch_begin(net)
    unfreeze.on_batch_begin(net, training=True)
    scope = {"hook": unfreeze, "empty": empty, "net": net, "arguments": {"batch": None, "training": True}}
    seconds = [
        min(repeat(f"getattr({name}, 'on_batch_begin')(net, **arguments)", globals=scope, number=20_000, repeat=15))
        for name in ("hook", "empty")
    ]
    return seconds[0] / seconds[1]


def event_ratio(n_weights):
    """Deciding and writing the flags of all weights, over a loop that writes them."""
    unfreeze = CallbackSetUnfreeze(select_none(), {"batch": [1], "weights": [select_all()]})
    net = net_with(unfreeze, n_weights)
    unfreeze.on_train_begin(net)

    def events():
        for batch in (0, 1):
            unfreeze.batch_ = batch
            unfreeze._apply(net)

    def loops():
        for trainable in (False, True):
            for name, tensor in net.module_.named_parameters():
                tensor.requires_grad = trainable and name != ""

    number = max(1, 20_000 // n_weights)
    return best(events, number) / best(loops, number)


def main():
    sizes = (10, 100, 1_000, 10_000), (1, 1_000), (1, 1_000)
    hooks = [(*size, hook_ratio(*size)) for size in product(*sizes)]
    print("A batch without an event, against an empty callback\n")
    print(pd.DataFrame(hooks, columns=["weights", "rows", "past epochs", "ratio"]).round(2).to_string(index=False))
    print("\nAn event, against a loop that writes the flags\n")
    events = [(n_weights, event_ratio(n_weights)) for n_weights in sizes[0]]
    print(pd.DataFrame(events, columns=["weights", "ratio"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
