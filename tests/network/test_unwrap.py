"""The look at the modules and parameters of a network by which changes are noticed."""

import pytest
from torch import nn

from mlr3torch_py.network.unwrap import Places, Structure


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
        self.other = nn.ModuleDict({"third": nn.Linear(2, 2)})
        self.other.register_module("nothing", None)


def move_to_the_next_parent(pair):
    first, second, third = pair.one.first, pair.one.second, pair.other.third
    pair.one._modules, pair.other._modules = {"first": first}, {"second": second, "third": third}


def move_a_parameter(pair):
    pair.one.first.register_parameter("scale", pair.one.second._parameters.pop("weight"))


def swap_names(pair):
    weight, bias = pair.one.first._parameters.values()
    pair.one.first._parameters = {"bias": weight, "weight": bias}


def put_none_in_another_place(pair):
    pair.other._modules = {"third": pair.other.nothing, "nothing": pair.other.third}


def replace_a_parameter(pair):
    pair.one.first.bias = nn.Parameter(pair.one.first.bias.detach())


def replace_a_module(pair):
    pair.other["third"] = nn.Linear(2, 2)


def change_a_class(pair):
    pair.one.first.__class__ = type("Other", (nn.Linear,), {})


@pytest.mark.parametrize(
    "change",
    [
        move_to_the_next_parent,
        move_a_parameter,
        swap_names,
        put_none_in_another_place,
        replace_a_parameter,
        replace_a_module,
        change_a_class,
    ],
)
def test_every_change_of_places_is_noticed(change):
    pair = Pair()
    before = Places.of(pair)
    assert Places.of(pair) == before
    change(pair)
    assert Places.of(pair) != before


def test_what_is_trainable_has_no_influence_on_places():
    pair = Pair()
    places, structure = Places.of(pair), Structure.of(pair)
    pair.one.first.bias.requires_grad = False
    assert Places.of(pair) == places
    assert Structure.of(pair) != structure
    assert places.trainable == (True, False, True, True, True, True)
