"""What the callback costs: ratios that are measured in one run, so that they hold on any machine.

Run it by ``python benchmarks/overhead.py``.

1. On a batch without an event, the callback's hook against the hook of an empty callback, over the number of weights,
   of rows, and of past epochs.
2. An event, that is deciding and writing all flags, against a bare loop that writes them.
3. Building a plan and asking it, over the number of rows that have not come yet.
"""

from itertools import product
from timeit import repeat

import pandas as pd
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_name, select_none, select_prefix
from mlr3torch_py.plan import Moment, Plan
from mlr3torch_py.table import read_table


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
    unfreeze, empty = CallbackSetUnfreeze(select_prefix("0"), table), Empty()
    net = net_with(unfreeze, n_weights, past_epochs)
    begin_epoch(net, unfreeze)
    scope = {"hook": unfreeze, "empty": empty, "net": net, "arguments": {"batch": None, "training": True}}
    seconds = [
        min(repeat(f"getattr({name}, 'on_batch_begin')(net, **arguments)", globals=scope, number=20_000, repeat=15))
        for name in ("hook", "empty")
    ]
    return seconds[0] / seconds[1]


def event_ratio(n_weights):
    """The hook on two batches with an event, which freeze and free all weights, over loops that write the flags."""
    table = {"batch": [1, 2], "weights": [select_all() - select_prefix("0")] * 2, "action": ["unfreeze", "freeze"]}
    unfreeze = CallbackSetUnfreeze(select_prefix("0"), table)
    net = net_with(unfreeze, n_weights)
    begin_epoch(net, unfreeze)

    def events():
        unfreeze.batch_, unfreeze.due_ = 0, 1
        unfreeze.on_batch_begin(net, training=True)
        unfreeze.on_batch_begin(net, training=True)

    def loops():
        for trainable in (False, True):
            for name, tensor in net.module_.named_parameters():
                if not name.startswith("0."):
                    tensor.requires_grad = trainable
                    tensor.grad = None

    number = max(1, 20_000 // n_weights)
    return best(events, number) / best(loops, number)


def begin_epoch(net, callback):
    """What skorch does before the first batch, and that batch, after which no event is due."""
    callback.on_train_begin(net)
    net.on_epoch_begin(net)
    callback.on_epoch_begin(net)
    callback.on_batch_begin(net, training=True)


def plan_seconds(n_rows, n_come, n_weights=10_000):
    """Seconds to build a plan of rows with ten weights each, and to ask it when some of the rows have come."""
    names = [f"{i}.weight" for i in range(n_weights)]
    rows = [select_name(names[i % (n_weights // 10) * 10 :][:10]) for i in range(n_rows)]
    table = {"batch": list(range(1, n_come + 1)) + list(range(10**6, 10**6 + n_rows - n_come)), "weights": rows}

    def build():
        return Plan.resolve(select_none(), read_table(table), names)

    plan = build()
    return best(build, 1), best(lambda: plan.trainable(Moment(epoch=1, batch=n_come)), 100)


def main():
    sizes = (10, 100, 1_000, 10_000), (1, 1_000), (1, 1_000)
    hooks = [(*size, hook_ratio(*size)) for size in product(*sizes)]
    print("A batch without an event, against an empty callback\n")
    print(pd.DataFrame(hooks, columns=["weights", "rows", "past epochs", "ratio"]).round(2).to_string(index=False))
    print("\nAn event, against a loop that writes the flags\n")
    events = [(n_weights, event_ratio(n_weights)) for n_weights in sizes[0]]
    print(pd.DataFrame(events, columns=["weights", "ratio"]).round(2).to_string(index=False))
    print("\nA plan of 10,000 weights: building it (seconds), and asking it (growth from 10 rows to come)\n")
    plans = [
        (n_rows, n_come, *plan_seconds(n_rows, n_come)) for n_come in (5, 50) for n_rows in (n_come + 10, 100, 1_000)
    ]
    frame = pd.DataFrame(plans, columns=["rows", "have come", "building", "asking"])
    frame["asking"] /= frame.groupby("have come")["asking"].transform("first")
    print(frame.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
