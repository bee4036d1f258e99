"""Modes of torch that change what functions give: such calls are computed, and all others come from memory."""

import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cache.helpers import ROWS, cached, counts, frozen


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        return output * 2 if isinstance(output, torch.Tensor) and output.is_floating_point() else output


class Replacing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        return output * 2 if func is torch.tanh else output


class Encoder(nn.Sequential):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class Network(nn.Module):
    """Computes in a mode what a function names."""

    def __init__(self, mode, compute):
        super().__init__()
        self.mode, self.compute = mode, compute
        self.encoder, self.head = frozen(Encoder(nn.Linear(4, 3))), nn.Linear(3, 2)

    def forward(self, x):
        return self.compute(self, x)


def around_the_second_call(network, x):
    one = network.encoder(x)
    with network.mode():
        other = network.encoder(x)
    return network.head(one + other)


def around_an_operation(network, x):
    y = network.encoder(x)
    with network.mode():
        y = torch.tanh(y)
    return network.head(y)


def around_the_head(network, x):
    y = network.encoder(x)
    with network.mode():
        return network.head(y)


@pytest.mark.parametrize("compute", [around_the_second_call, around_an_operation, around_the_head])
@pytest.mark.parametrize("mode", [Dispatching, Replacing])
def test_calls_in_a_mode_are_as_without_the_cache(mode, compute):
    network = Network(mode, compute)
    plain, parts = copy.deepcopy(network), cached(network)
    expected = plain(ROWS)
    for _ in range(4):
        torch.testing.assert_close(network(ROWS), expected)
        hits, _ = counts(parts)
        parts.begin_epoch(), parts.refresh()
    assert hits == 12


def test_a_default_device_is_no_such_mode():
    network = Network(lambda: torch.device("cpu"), around_the_second_call)
    parts = cached(network)
    for _ in range(2):
        with torch.device("cpu"):
            network(ROWS)
    assert counts(parts) == (12, 12)
