"""TorchCallback: a callback with its name and description."""

import pytest

from mlr3torch_py import t_clbk, torch_callback


def test_callbacks_are_described_for_people(capsys):
    made = t_clbk("early_stopping", patience=3)
    assert made.label == "Early Stopping"
    assert made.packages == ["mlr3torch_py", "skorch", "torch"]
    assert made.man == "mlr3torch_py.callbacks.early_stopping.CallbackSetEarlyStopping"
    assert made.parameters["patience"] == 3
    assert repr(made).splitlines()[:4] == [
        "<TorchCallback:early_stopping>",
        "* Label: Early Stopping",
        "* Generator: CallbackSetEarlyStopping",
        "* patience: 3",
    ]
    made.help()
    assert "Stop training when a score has not improved" in capsys.readouterr().out


def test_a_name_must_fit_into_a_parameter():
    with pytest.raises(TypeError, match="`id` is 'a b'"):
        torch_callback("a b")
