"""Conversions to TorchCallbacks."""

import pytest

from mlr3torch_py import (
    CallbackSet,
    CallbackSetEarlyStopping,
    CallbackSetHistory,
    CallbackSetUnfreeze,
    TorchCallback,
    as_torch_callback,
    as_torch_callbacks,
    t_clbk,
)


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
