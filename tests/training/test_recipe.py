"""Classes that a function makes, and that pickle by its call."""

import copy
import pickle
from functools import partial

import pytest

from mlr3torch_py import CallbackSet
from mlr3torch_py.training.recipe import recipe_class

COPIES = [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


def adder(step):
    return recipe_class(f"Adds{step}", CallbackSet, {"step": step, "total_": 0}, partial(adder, step))


class AddsMore(adder(2)):
    more = 3


@pytest.mark.parametrize("copied", COPIES)
def test_an_instance_is_copied_with_its_state(copied):
    adds = adder(2)()
    adds.total_ = 4
    again = copied(adds)
    assert (type(again).__name__, type(again).__module__, again.step, again.total_) == ("Adds2", __name__, 2, 4)
    assert type(again) is not type(adds)


@pytest.mark.parametrize("copied", COPIES)
def test_an_instance_of_a_subclass_keeps_its_class(copied):
    adds = AddsMore()
    adds.total_ = 4
    again = copied(adds)
    assert type(again) is AddsMore
    assert (again.step, again.more, again.total_) == (2, 3, 4)
