"""Conversions to TorchCallbacks."""

import pytest

from mlr3torch_py import (
    CallbackSet,
    CallbackSetEarlyStopping,
    CallbackSetHistory,
    CallbackSetUnfreeze,
    Freezer,
    TorchCallback,
    as_torch_callback,
    as_torch_callbacks,
    t_clbk,
)
from tests.helpers import X, iris_net, y


def test_everything_that_describes_a_callback_is_taken():
    made = t_clbk("history")
    assert as_torch_callback(made) is made
    assert as_torch_callback("history").id == "history"
    assert as_torch_callback(CallbackSetHistory).id == "history"
    assert as_torch_callback(made.callback) == TorchCallback("history", made.callback)
    unset = as_torch_callback(CallbackSetUnfreeze)
    with pytest.raises(ValueError, match="never set"):
        unset.callback.require_params()
    assert as_torch_callbacks(None) == []
    assert as_torch_callbacks(made) == [made]
    assert [one.id for one in as_torch_callbacks(("history", CallbackSetEarlyStopping))] == [
        "history",
        "early_stopping",
    ]
    for wrong in (3, CallbackSet.__init__, int):
        with pytest.raises(TypeError, match="`x` is"):
            as_torch_callback(wrong)


def test_a_conversion_may_give_another_name_and_a_new_callback():
    made = t_clbk("early_stopping", patience=3)
    named = as_torch_callback(made, id="stops")
    assert (named.id, named.callback) == ("stops", made.callback)
    for x in (CallbackSetHistory, "history", CallbackSetHistory()):
        assert as_torch_callback(x, id="scores").id == "scores"
    cloned = as_torch_callback(made, clone=True)
    assert (cloned.id, cloned.callback.patience) == ("early_stopping", 3)
    assert cloned.callback is not made.callback
    assert as_torch_callbacks([made], clone=True)[0].callback is not made.callback
    with pytest.raises(TypeError, match="`id` is 'a b'"):
        as_torch_callback(made, id="a b")
    with pytest.raises(TypeError, match="`clone` is 1"):
        as_torch_callback(made, clone=1)


def test_callbacks_of_one_name_are_numbered_and_all_act():
    freezers = as_torch_callbacks(["history", Freezer("0.weight"), Freezer("0.bias", until_epoch=1)])
    assert [one.id for one in freezers] == ["history", "freezer_1", "freezer_2"]
    net = iris_net(*freezers, max_epochs=2).fit(X, y)
    assert [net.module_.get_parameter(name).requires_grad for name in ("0.weight", "0.bias")] == [False, True]
    assert net.set_params(callbacks__freezer_2__until_epoch=3).get_params()["callbacks__freezer_2"].until_epoch == 3


def test_a_number_that_is_taken_is_skipped():
    made = as_torch_callbacks(["history", t_clbk("history_1"), "history", "progress"])
    assert [one.id for one in made] == ["history_2", "history_1", "history_3", "progress"]


def test_keys_may_be_numbered_as_in_t_clbks():
    assert [one.id for one in as_torch_callbacks(["unfreeze_1", "unfreeze_2"])] == ["unfreeze_1", "unfreeze_2"]
    with pytest.raises(KeyError, match="`x` is 'unfreze_1', which is no key; did you mean 'unfreeze'"):
        as_torch_callbacks(["unfreze_1"])
