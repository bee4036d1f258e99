"""Callbacks as plain data, and back."""

import json
from pathlib import Path

import pytest

from mlr3torch_py import (
    CallbackSet,
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    from_dict,
    gradual_unfreezing,
    mlr3torch_callbacks,
    select_all,
    select_last,
    t_clbk,
    to_dict,
    trainable_names,
)
from tests.helpers import X, iris_net, y

TABLES = [{"epoch": [2], "weights": [select_last(2)]}, {"when": [Plateau()], "weights": [select_all()]}]


@pytest.mark.parametrize(
    "callback",
    [
        Freezer(name_starts_with=["0.", ["3.", "6."]], start_epoch=1, unfreeze_every_n_epochs=2, frozen_mode="eval"),
        CallbackSetUnfreeze(select_last(1), TABLES),
        t_clbk("unfreeze"),
        t_clbk("early_stopping", patience=3, weight=-1),
        t_clbk("checkpoint", path=Path("folder"), freq=1),
        t_clbk("lr_one_cycle", max_lr=[0.1]),
    ],
)
def test_a_callback_goes_through_json_and_back(callback):
    data = json.loads(json.dumps(to_dict(callback)))
    again = from_dict(data)
    assert type(again) is type(callback)
    assert to_dict(again) == data


def test_what_was_read_trains():
    callbacks = [t_clbk("unfreeze", **gradual_unfreezing(iris_net().initialize())), t_clbk("history")]
    again = from_dict(json.loads(json.dumps(to_dict(callbacks))))
    assert [callback.id for callback in again] == ["unfreeze", "history"]
    net = iris_net(*again, max_epochs=2).fit(X, y)
    assert trainable_names(net) == ["3.weight", "3.bias", "6.weight", "6.bias"]


class Mine(CallbackSet):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Mine(), "`value` is a Mine, which has no key; add its class to mlr3torch_callbacks"),
        (t_clbk("lr_lambda", lr_lambda=len), "`value`: the parameter `lr_lambda` is .*, which is no plain data"),
    ],
)
def test_what_is_no_plain_data_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        to_dict(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"callback": "unfreez"}, "`data` is .*`key` is 'unfreez', which no callback has; did you mean 'unfreeze'"),
        ({"callback": "freezer", "parameters": {}}, "`data` has the key 'parameters'; did you mean 'params'"),
        ({"callback": "freezer", "params": 3}, "`data`: `params` is 3; give a mapping"),
        ({"callback": "progress", "params": {"digits": 0}}, "`data` is .*`digits` is 0; give a whole number"),
        ({"callback": "history", "id": "a b"}, "`data` is .*`id` is 'a b'"),
    ],
)
def test_wrong_data_of_a_callback_is_refused(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_dict(data)


def test_every_key_can_be_written():
    for key in mlr3torch_callbacks:
        params = {"names": "0.weight"} if key == "freezer" else {}
        assert to_dict(t_clbk(key, **params))["callback"] == key
