"""Norms of one's own: they are recognised by what they hold."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from mlr3torch_py.network.blocks import find_blocks
from mlr3torch_py.network.normalisation import is_normalisation


class Norm(nn.Module):
    def __init__(self, *shape, child=None, plain=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))
        self.child = child
        if plain is None:
            self.register_buffer("mean", torch.zeros(shape))
        else:
            self.mean = plain

    def forward(self, x):
        return (x - self.mean) * self.scale


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


def without_statistics(norm):
    norm.mean = None
    return norm


def parametrized(norm):
    parametrize.register_parametrization(norm, "scale", Absolute())
    return norm


class Conv(nn.Conv2d):
    def __init__(self):
        super().__init__(4, 1, 1, bias=False)


CASES = {
    "row": (Norm(1, 4), True),
    "map": (Norm(1, 4, 1, 1), True),
    "parametrized": (parametrized(Norm(4)), True),
    "with an activation": (Norm(4, child=nn.ReLU()), True),
    "plain statistics": (Norm(4, plain=torch.zeros(1, 4)), True),
    "matrix": (Norm(4, 4), False),
    "around a layer": (Norm(4, child=nn.Linear(4, 4)), False),
    "around a norm": (Norm(4, child=nn.BatchNorm1d(4)), False),
    "statistics that are yet to come": (without_statistics(Norm(4)), True),
    "statistics in a list": (Norm(4, plain=[torch.zeros(4), 0]), True),
    "statistics in a dict": (Norm(4, plain={"mean": torch.zeros(4)}), True),
    "outputs in a list": (Norm(4, plain=[torch.zeros(7, 4)]), False),
    "last output": (Norm(4, plain=torch.zeros(7, 4)), False),
    "number": (Norm(4, plain=torch.tensor(0.0)), False),
    "pruned layer of one output": (prune.random_unstructured(nn.Linear(4, 1), "weight", 0.5), False),
    "spectral norm of one output": (nn.utils.spectral_norm(nn.Linear(4, 1)), False),
    "convolution to one channel": (prune.random_unstructured(Conv(), "weight", 0.5), False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_counts_as_normalisation(case):
    module, expected = CASES[case]
    assert is_normalisation(module) is expected


def test_a_norm_of_your_own_is_no_block():
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1), Norm(1, 3, 1, 1), nn.ReLU()) for _ in range(3)]
    flat = nn.Sequential(*(one for layer in layers for one in layer))
    assert [{name[0] for name in block.names} for block in find_blocks(flat)] == [{"0", "1"}, {"3", "4"}, {"6", "7"}]
