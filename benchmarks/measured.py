"""(k) A plan that is measured: what it says of a batch in each phase, over what a batch then takes in training.

Three networks are unfrozen block after block, an epoch for each: a CNN with BatchNorm, a deep MLP that Adam trains, and
a small transformer. ``freeze_plan(net, X, y, measure=True)`` and the training take turns. A batch in training takes the
time from the beginning of an epoch to the end of its last training batch, over the number of batches. Time is that on
the wall, as in the plan.
"""

from functools import partial
from time import perf_counter

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from benchmarks.rounds import in_turns, row, table
from benchmarks.training import CNN, images
from mlr3torch_py import MLP, freeze_plan, gradual_unfreezing, t_clbk

LIMIT = 1.25


class Transformer(nn.Module):
    """Some encoder layers, and a head on the mean over the tokens."""

    def __init__(self, n_layers=3, width=128):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True) for _ in range(n_layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


def rows(n, *shape):
    torch.manual_seed(0)
    return torch.randn(n, *shape), torch.randint(10, (n,))


CASES = {
    "CNN": (partial(CNN, 2), images, torch.optim.SGD),
    "MLP of 9 layers": (partial(MLP, 128, 10, (512,) * 8), lambda n: rows(n, 128), torch.optim.Adam),
    "transformer of 3 layers": (Transformer, lambda n: rows(n, 24, 128), torch.optim.Adam),
}


class Times(Callback):
    """Notes what the training batches of each epoch take."""

    def on_train_begin(self, net, **kwargs):
        self.seconds_ = []

    def on_epoch_begin(self, net, **kwargs):
        self.begin_, self.n_ = perf_counter(), 0

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.n_ += 1
            self.end_ = perf_counter()

    def on_epoch_end(self, net, **kwargs):
        self.seconds_.append((self.end_ - self.begin_) / self.n_)


def prepared(network, optimizer, n_phases):
    torch.manual_seed(0)
    schedule = gradual_unfreezing(every=1, n_groups=n_phases)
    return NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        lr=0.001,
        batch_size=32,
        max_epochs=n_phases,
        train_split=None,
        verbose=0,
        callbacks=[t_clbk("unfreeze", schedule=schedule), ("times", Times())],
    )


def said(net, data):
    """Milliseconds of a batch by phase, as the plan has them."""
    return freeze_plan(net(), *data, measure=True).summary()["ms_per_batch"].tolist()


def taken(net, data):
    """Milliseconds of a batch by phase, in training."""
    return [seconds * 1e3 for seconds in dict(net().fit(*data).callbacks_)["times"].seconds_]


def measure(n_rows=1024, rounds=7, n_phases=4):
    found = []
    for case, (network, data, optimizer) in CASES.items():
        net = partial(prepared, network, optimizer, n_phases)
        ways = {way.__name__: partial(way, net, data(n_rows)) for way in (said, taken)}
        figures = in_turns(ways, rounds)
        for i in range(n_phases):
            ours, theirs = (figures[name].str[i] for name in ("said", "taken"))
            what = f"a batch of phase {i + 1} as the plan has it, {case}"
            found.append(row("k", what, "in training", ours, theirs, LIMIT, "ms", "at least 0.75"))
    return table(found)
