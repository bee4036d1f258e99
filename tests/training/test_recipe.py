"""Classes that a function makes, and that pickle by its call."""

import copy
import pickle
from functools import partial

import pytest

from mlr3torch_py import CallbackSet, t_clbk, to_dict
from mlr3torch_py.training.recipe import recipe_class

COPIES = [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


def adder(step):
    return recipe_class(f"Adds{step}", CallbackSet, {"step": step, "total_": 0}, partial(adder, step))


class AddsMore(adder(2)):
    more = 3


@pytest.mark.parametrize("step", [3, [3]])
@pytest.mark.parametrize("copied", COPIES)
def test_an_instance_is_copied_with_its_state(copied, step):
    adds = adder(step)()
    adds.total_ = 4
    again = copied(adds)
    name = f"Adds{step}"
    assert (type(again).__name__, type(again).__module__, again.step, again.total_) == (name, __name__, step, 4)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_has_the_class_that_the_same_call_has_made_first(copied):
    step = 4, copied.__name__  # another one in each case
    first, second = adder(step), adder(step)
    assert type(copied(first())) is type(copied(second())) is first
    assert type(copied(adder(5)())) is not first


@pytest.mark.parametrize("copied", COPIES)
def test_copies_keep_the_key_of_their_class(copied):
    made = t_clbk("lr_step", step_size=2)
    assert to_dict(copied(made))["callback"] == "lr_step"
    assert eval(repr(copied(made)), {"t_clbk": t_clbk}).callback.step_size == 2


@pytest.mark.parametrize("copied", COPIES)
def test_an_instance_of_a_subclass_keeps_its_class(copied):
    adds = AddsMore()
    adds.total_ = 4
    again = copied(adds)
    assert type(again) is AddsMore
    assert (again.step, again.more, again.total_) == (2, 3, 4)
