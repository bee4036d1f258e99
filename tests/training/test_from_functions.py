"""Callbacks that are made from functions."""

import copy
import pickle
from functools import partial

import pytest
from sklearn.base import clone

from mlr3torch_py import CallbackSetEarlyStopping, callback_set, torch_callback
from tests.helpers import X, iris_net, y


def add_step(self):
    self.total += self.step


def set_step(self, step, start=0):
    self.step = step
    self.start = start


def total_of(self):
    return {"total": self.total}


def restore_total(self, state):
    self.total = state["total"]


CallbackSetTotal = callback_set(
    "CallbackSetTotal",
    initialize=set_step,
    on_batch_end=add_step,
    state_dict=total_of,
    load_state_dict=restore_total,
    public={"total": 0, "label": "Total"},
    weight=7,
)


def test_a_class_is_made_from_functions():
    total = CallbackSetTotal(step=2)
    assert total.get_params() == {"step": 2, "start": 0}
    assert (total.weight, total.label, total.stages) == (7, "Total", ["batch_end"])
    total.load_state_dict({"total": 5})
    assert total.state_dict() == {"total": 5}
    with pytest.raises(TypeError):
        CallbackSetTotal()


def test_functions_of_a_batch_are_called_in_training_only():
    total = CallbackSetTotal(step=2)
    iris_net(total, max_epochs=1, train_split=None).fit(X, y)
    assert total.total == 6


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_callback_made_from_functions_can_be_copied(copied):
    again = copied(CallbackSetTotal(step=2))
    assert again.get_params() == {"step": 2, "start": 0}
    assert str(again) == "<CallbackSetTotal>\n* Stages: batch_end"
    assert again.weight == 7


def test_a_described_callback_gets_its_parameters_through_the_net():
    said = []
    described = torch_callback(
        "say", initialize=set_step, on_epoch_end=lambda self: said.append(self.step), label="Says"
    )
    assert described.parameters["start"] == 0
    with pytest.raises(ValueError, match="`step` of CallbackSetSay was never set"):
        iris_net(described).fit(X, y)
    iris_net(described, callbacks__say__step=3, max_epochs=2).fit(X, y)
    assert said == [3, 3]


def count_epochs(self):
    self.n_epochs = self.ctx.epoch


CallbackSetCounted = callback_set("CallbackSetCounted", inherit=CallbackSetEarlyStopping, on_epoch_begin=count_epochs)


def test_a_constructor_is_not_called_before_its_parameters_are_set():
    def initialize(self, word):
        self.word, self.text = word, word.upper()

    said = []
    shout = torch_callback("shout", initialize=initialize, on_end=lambda self: said.append(self.text))
    with pytest.raises(ValueError, match="`word` of CallbackSetShout was never set"):
        iris_net(clone(shout), max_epochs=1).fit(X, y)
    net = iris_net(shout, max_epochs=1, callbacks__shout__word="a").fit(X, y)
    clone(net).set_params(callbacks__shout__word="b").fit(X, y)
    assert said == ["A", "B"]


def test_a_class_may_derive_from_another():
    counted = CallbackSetCounted(patience=1, monitor="train_loss", min_delta=100.0)
    assert isinstance(counted, CallbackSetEarlyStopping)
    assert counted.weight == 1000
    assert callback_set("Light", inherit=CallbackSetEarlyStopping, weight=2)().weight == 2
    net = iris_net(("counted", counted), max_epochs=5).fit(X, y)
    assert len(net.history) == counted.n_epochs == 2
    again = pickle.loads(pickle.dumps(counted))
    assert (again.patience, again.best_epoch) == (1, 1)
    total = torch_callback("more", inherit=CallbackSetTotal, on_end=count_epochs, initialize=set_step)
    assert total.callback.stages == ["batch_end", "end"]
    for wrong in (int, "history", CallbackSetCounted(1)):
        with pytest.raises(TypeError, match="`inherit` is"):
            callback_set("A", inherit=wrong)


def generate(self):
    yield self.ctx.epoch


async def wait(seconds, self):
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_epoch_edn": print}, "no stage 'on_epoch_edn'; did you mean 'on_epoch_end'"),
        ({"on_begin": 3}, "`on_begin` is 3; give a function that takes the callback"),
        ({"on_begin": lambda: None}, "`on_begin` must be a function that takes the callback"),
        ({"on_epoch_end": generate}, "`on_epoch_end` is .*, whose body a call does not run; leave out `yield`"),
        ({"on_epoch_end": partial(wait, 1)}, "`on_epoch_end` is .*, whose body a call does not run"),
        ({"state_dict": total_of}, "`state_dict` is given without `load_state_dict`; give both"),
        ({"load_state_dict": restore_total}, "`load_state_dict` is given without `state_dict`; give both"),
        (
            {"state_dict": total_of, "load_state_dict": total_of},
            "`load_state_dict` must be a function that takes the callback and a state",
        ),
    ],
)
def test_a_wrong_description_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        torch_callback("a", **arguments)
    with pytest.raises((TypeError, ValueError), match=message):
        callback_set("A", **arguments)
