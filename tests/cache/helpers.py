"""Networks to cache, what may happen to them, and trainings with the cache."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch._dynamo  # as making an optimizer does; a first trial would take the time of that for its own
from torch import nn
from torch.utils._pytree import tree_flatten

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_prefix
from mlr3torch_py.cache.parts import CachedParts
from tests.helpers import X as IRIS
from tests.network.test_evaluation import EVAL

ROWS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class _Computed(logging.Handler):
    """Keeps how many rows the calls were given that were logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def emit(self, record):
        self.rows.append(record.args[0])


COMPUTED = _Computed()
LOG = logging.getLogger("tests.cache.computed")
LOG.addHandler(COMPUTED)
LOG.setLevel(logging.INFO)
LOG.propagate = False


def note(x):
    """Log a call, which is no part of what a module computes."""
    LOG.info("%d rows", len(x))


@dataclass
class Pair:
    first: torch.Tensor


class Part(nn.Module):
    """Computes a given function of a linear layer and the arguments."""

    def __init__(self, compute, width=4):
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.compute = compute

    def forward(self, *args, **kwargs):
        return self.compute(self.linear, *args, **kwargs)


class Scaled(nn.BatchNorm1d):
    """Computes with something that is neither a parameter nor a buffer."""

    def __init__(self, width):
        super().__init__(width)
        self.table = {"scale": 1.0, "shift": torch.zeros(1)}
        self.config = SimpleNamespace(gain=1.0)

    def forward(self, x):
        return super().forward(x) * self.table["scale"] * self.config.gain + self.table["shift"]


def normed():
    return frozen(nn.Sequential(nn.Linear(4, 3), Scaled(3), nn.GELU())).eval()


def frozen(module):
    return module.requires_grad_(False)


def cached(network, *names, **params):
    """The cache of what is frozen in a network, at the beginning of an epoch."""
    parts = CachedParts(network, names or None, **params)
    parts.refresh()
    parts.begin_epoch()
    return parts


def counts(parts):
    tally = parts.end_epoch()
    return tally.hits, tally.misses


def told(parts):
    """What the user is told after a batch."""
    with warnings.catch_warnings(record=True, action="always") as said:
        parts.settle()
    assert all(Path(one.filename) == Path(__file__) for one in said)
    return [str(one.message) for one in said]


def same(one, other):
    """Whether two outputs have the same structure, and the same values up to rounding."""
    (ours, structure), (theirs, other_structure) = tree_flatten(one), tree_flatten(other)
    assert structure == other_structure
    pairs = [pair for pair in zip(ours, theirs, strict=True) if isinstance(pair[0], torch.Tensor)]
    torch.testing.assert_close(*zip(*pairs, strict=True))
    return True


# What may happen to `normed()`: changes that move a version counter or replace something, and others.
CHANGES = {
    "in place": torch.no_grad()(lambda part: part[0].weight.add_(1)),
    "loading": lambda part: part.load_state_dict({key: value + 1 for key, value in part.state_dict().items()}),
    "assignment": lambda part: setattr(part[0], "bias", nn.Parameter(torch.ones(3), requires_grad=False)),
    "another layer": lambda part: part.__setitem__(0, frozen(nn.Linear(4, 3))),
    "a buffer": lambda part: part[1].running_mean.add_(1),
    "other data": lambda part: setattr(part[0].weight, "data", part[0].weight.data + 1),
    "another activation": lambda part: part.__setitem__(2, nn.Tanh()),
    "unfrozen by hand": lambda part: part.requires_grad_(True),
}
UNSEEN = {
    "data": lambda part: part[0].weight.data.add_(1),
    "numpy": lambda part: np.add(array := part[0].weight.detach().numpy(), 1, out=array),
    "statistics": lambda part: (part[1].train()._call_impl(torch.randn(5, 3)), part[1].eval()),
    "a setting": lambda part: setattr(part[1], "eps", 10.0),
    "a word": lambda part: setattr(part[2], "approximate", "tanh"),
    "an object": lambda part: setattr(part[2], "forward", torch.tanh),
    "another class": lambda part: setattr(part[2], "__class__", nn.Tanh),
    "an item": lambda part: part[1].table.update(scale=2.0),
    "a configuration": lambda part: setattr(part[1].config, "gain", 2.0),
    "a plain tensor": lambda part: part[1].table["shift"].add_(1),
    "a new child": lambda part: part.append(nn.Tanh()),
    "a new first buffer": lambda part: part[2].register_buffer("shift", torch.ones(1)),
    "other buffers": lambda part: setattr(part[1], "_buffers", {k: v + 1 for k, v in part[1]._buffers.items()}),
    "another dict of attributes": lambda part: setattr(part[1], "__dict__", {**vars(part[1]), "eps": 10.0}),
}

X = IRIS + np.linspace(0, 0.01, len(IRIS), dtype="float32")[:, None]  # no two rows are the same
N = len(X)
BOTH = CallbackSetUnfreeze(select_prefix("head"), None, **EVAL)
AGAIN = {
    "epoch": [3, 4],
    "weights": [select_all(), ~select_prefix("head")],
    "action": ["unfreeze", "freeze"],
}


class CNN(nn.Module):
    """Two blocks with BatchNorm, and a head, for the four columns as images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x.reshape(-1, 1, 2, 2))).flatten(1))


def hits(net):
    return net.history[:, "cache_hits"]
