"""TorchCallback: a callback with its name and description."""

import pytest

from mlr3torch_py import CallbackSetTB, t_clbk, torch_callback
from tests.helpers import X, iris_net, y


def test_callbacks_are_described_for_people(capsys):
    made = t_clbk("early_stopping", patience=3)
    assert made.label == "Early Stopping"
    assert made.packages == ["mlr3torch_py", "skorch", "torch"]
    assert made.man == "mlr3torch_py.callbacks.early_stopping.CallbackSetEarlyStopping"
    assert made.parameters["patience"] == 3
    assert str(made).splitlines()[:4] == [
        "<TorchCallback:early_stopping>",
        "* Label: Early Stopping",
        "* Generator: CallbackSetEarlyStopping",
        "* patience: 3",
    ]
    made.help()
    shown = capsys.readouterr().out
    assert shown.startswith("CallbackSetEarlyStopping(patience")
    assert "Stop training when a score has not improved" in shown
    assert "run_state" not in shown


def test_a_custom_callback_says_what_it_needs_and_where_it_is_documented():
    made = torch_callback("a", packages=["scikit-learn", "pandas"], man="mypackage::a")
    assert made.packages == ["mlr3torch_py", "skorch", "torch", "scikit-learn", "pandas"]
    assert made.man == "mypackage::a"
    iris_net(made, max_epochs=1).fit(X, y)
    derived = torch_callback("tb_of_mine", inherit=CallbackSetTB, packages="pandas")
    assert derived.packages == [*t_clbk("tb").packages, "pandas"]
    with pytest.raises(TypeError, match="`packages` is 3"):
        torch_callback("a", packages=3)


def test_a_package_that_is_missing_is_named_before_training():
    with pytest.raises(ImportError, match="CallbackSetA needs nosuchpackage, .* `pip install nosuchpackage`"):
        iris_net(torch_callback("a", packages=["pandas", "nosuchpackage"])).fit(X, y)


def test_a_name_must_fit_into_a_parameter():
    with pytest.raises(TypeError, match="`id` is 'a b'"):
        torch_callback("a b")
