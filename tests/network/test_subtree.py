"""Modules below a module, remembered."""

import pytest
import torch
from torch import nn

from mlr3torch_py.network.evaluation import Pins
from mlr3torch_py.network.subtree import Subtree


class Other(nn.ReLU):
    pass


def network():
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Dropout(), nn.Linear(2, 1)))


CHANGES = {
    "replaced": lambda net: net[0].__setitem__(1, nn.ReLU()),
    "added": lambda net: net[0].append(nn.ReLU()),
    "removed": lambda net: net[0].__delitem__(1),
    "another class": lambda net: setattr(net[0][1], "__class__", Other),
    "moved": lambda net: net[1].insert(0, net[0].pop(1)),
    "taken out": lambda net: net[0].register_module("1", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_below_is_noticed(change):
    net = network()
    subtree = Subtree(net)
    assert subtree.is_current
    change(net)
    assert not subtree.is_current
    assert Subtree(net).is_current


def test_children_of_a_scripted_module_cannot_be_watched():
    assert not Subtree(nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())))).is_current


def pinned():
    net, pins = network(), Pins()
    pins.set(net.modules())
    net.train()  # from here on, all of it is remembered
    return net, pins


def test_a_module_that_was_added_below_pinned_ones_follows_the_mode():
    net, _ = pinned()
    net[1].append(nn.Dropout())
    net.train()
    assert [one.training for one in net.modules()].count(True) == 1
    net.eval()
    assert not net[1][2].training


def test_a_train_method_that_is_set_below_pinned_ones_is_called():
    net, _ = pinned()
    calls = []
    net[0].train = calls.append
    net.train()
    net.eval()
    assert calls == [True, False]


@pytest.mark.parametrize("mode", [True, False])
def test_modes_set_by_hand_and_by_train_are_those_after_the_pins(mode):
    net, pins = pinned()
    net[0].training = True  # by hand, as some training loops do
    net.train(not mode)
    assert not any(one.training for one in net.modules())
    net.train(mode)
    net[1].train(not mode)
    pins.set([])
    assert [one.training for one in net] == [mode, not mode]
