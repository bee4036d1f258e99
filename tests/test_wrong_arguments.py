"""Every public function and every parameter of every callback takes odd values well.

A value is accepted, or refused by a TypeError, ValueError or KeyError that names the parameter, and a callback refuses
it before the first step. What is walked is derived from ``__all__`` and `mlr3torch_callbacks`.
"""

import datetime
import inspect
import math
import tempfile
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import StepLR

import mlr3torch_py
from mlr3torch_py import (
    MLP,
    CallbackSetHistory,
    Freezer,
    Plateau,
    Select,
    mlr3torch_callbacks,
    select_all,
    select_last,
    select_name,
    t_clbk,
)
from mlr3torch_py.registry.torch_callback import parameters_of
from mlr3torch_py.training.callback_set import REQUIRED
from mlr3torch_py.values import shown
from tests.helpers import X, iris_net, y


@pytest.fixture(autouse=True)
def no_log():
    """Undo `log_to_console`, which is called as well."""
    yield
    mlr3torch_py.log_to_console(None)


SLOW = {"freeze_plan": pytest.mark.slow, "plot_network": pytest.mark.slow}


def _nested(depth):
    select = select_all()
    for _ in range(depth):
        select = ~select
    return select


def _itself():
    cycle = []
    cycle.append(cycle)
    return cycle


ODD = {
    "None": None,
    "flags": [True, False, np.True_],
    "numbers": [0, 1, -1, 2, 3.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**400, 2**63, 2**62, 1j],
    "numbers of others": [np.uint8(3), np.int64(2), np.float32(0.5), np.array(3), np.array(0.5), Decimal(2)],
    "texts": ["", "x", "0.weight", "valid_loss", "eval", "a\0b", "(" * 10_000, "x" * 300, "~nobody_of_this_name", b"x"],
    "lists": [[], [1], ["x"], [None], [[]], (), (1, 2), ("a", 1), _itself(), range(3), iter([1])],
    "mappings and sets": [{}, {"a": 1}, {1: 2}, {"fn": ["a"]}, {"starting_weights": 1}, set(), {"x"}],
    "arrays": [np.array([1, 2]), np.array("x"), np.array([]), np.array([None]), torch.ones(2), torch.tensor(3)],
    "tables": [pd.DataFrame(), pd.DataFrame({"a": [1]}), pd.Series([1]), pd.NA, pd.NaT],
    "classes": [int, str, nn.ReLU, Callback, CallbackSetHistory, MLP, Select],
    "functions": [len, abs, lambda: None, lambda x: x, lambda *_: 3, select_last],
    "objects": [object(), datetime.date(2020, 1, 1), ValueError("x"), nn.Linear(2, 2), iris_net(), NotImplemented, ...],
    "of this package": [select_all(), select_name("x"), select_last(1), _nested(5000), Plateau(), t_clbk("history")],
}
VALUES = [value for values in ODD.values() for value in (values if isinstance(values, list) else [values])]

# A right value for each parameter without a default, by its name.
RIGHT = {
    "folder": "features",
    "classname": "CallbackSetMine",
    "d_in": 4,
    "d_out": 3,
    "data": {"fn": "all"},
    "freq": 1,
    "id": "mine",
    "key": "history",
    "keys": ["history"],
    "log_train_loss": False,
    "lr_lambda": lambda _: 0.9,
    "max_lr": 0.1,
    "module": MLP(4, 3),
    "module_types": nn.Linear,
    "n": 1,
    "net": MLP(4, 3),
    "network": MLP(4, 3, neurons=(2, 2)),
    "param_names": "0.weight",
    "path": "folder",
    "pattern": "0",
    "prefixes": "0",
    "select": select_all(),
    "starting_weights": select_all(),
    "step_size": 1,
    "T_max": 2,
    "value": select_all(),
    "x": "history",
}
TRAINED = {
    "n_trainable": 1,
    "train_batch_count": 1,
    "trainable_from_batch_count": [{"after": 0, "trainable": [0, 1], "names": ["a"]}],
}
MORE = {
    "as_lr_scheduler": {"x": StepLR},
    "freeze_plan": {"net": iris_net(Freezer("0.weight", until_step=4)), "X": X, "y": y},
    "freezer": {"name_starts_with": "0"},
    "plot_history": {"net": iris_net(Freezer("0.weight"), max_epochs=1).fit(X, y)},
    "trained_when": {"net": [TRAINED]},
}
# Names for what stands in for any: a stage of a callback.
ANY = {"callback_set": "on_epoch_end", "torch_callback": "on_epoch_end"}
FUNCTIONS = {
    name: getattr(mlr3torch_py, name)
    for name in mlr3torch_py.__all__
    if inspect.isfunction(getattr(mlr3torch_py, name)) or name in ("MLP", "Plateau")
}
del FUNCTIONS["check_resume"]  # which trains in processes if a value is right; its own tests have wrong ones


def _calls(function):
    """Yield, for each parameter of a function, its name and a function that calls it with a value for that."""
    parameters = inspect.signature(function).parameters.values()
    single = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    right = {p.name: RIGHT[p.name] for p in parameters if p.default is p.empty and p.kind in single}
    right |= MORE.get(function.__name__, {})
    for p in parameters:
        if p.kind == p.VAR_POSITIONAL:
            yield p.name, lambda value: function(value)
        elif p.kind in single:
            yield p.name, lambda value, name=p.name: function(**right | {name: value})
    if (name := ANY.get(function.__name__)) is not None:
        yield name, lambda value: function(**right, **{name: value})


def _complaint(call, value, name):
    """Return what is wrong with the error that a call raises, None if nothing."""
    try:
        call(value)
    except (TypeError, ValueError, KeyError) as error:
        return None if f"`{name}`" in str(error) and "\n" not in str(error) else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _walk(call, name):
    complaints = []
    for value in VALUES:
        complaint = _complaint(call, value, name)
        if complaint:
            complaints.append(f"{name}: {type(value).__name__} {shown(value)[:50]}: {complaint[:200]}")
    return complaints


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in FUNCTIONS])
def test_a_function_names_the_parameter(name):
    complaints = [complaint for parameter, call in _calls(FUNCTIONS[name]) for complaint in _walk(call, parameter)]
    assert not complaints, "\n".join(complaints)


class Steps(Callback):
    n_ = 0

    def on_batch_end(self, net, training=None, **kwargs):
        self.n_ += bool(training)


def _fit_with(key, params):
    steps = Steps()
    try:
        iris_net(t_clbk(key, **params), steps, max_epochs=2, batch_size=20, train_split=ValidSplit(3)).fit(
            X[::5], y[::5]
        )
    except Exception as error:
        if steps.n_:
            raise RuntimeError(f"after {steps.n_} steps: {type(error).__name__}: {error}") from error
        raise


@pytest.mark.slow
@pytest.mark.parametrize("key", mlr3torch_callbacks)
def test_a_callback_names_the_parameter_before_the_first_step(key, tmp_path):
    known = parameters_of(mlr3torch_callbacks._generators[key])
    right = {name: RIGHT[name] for name, default in known.items() if default is REQUIRED} | MORE.get(key, {})
    complaints = []
    for name in (*known, "weight"):

        def call(value, name=name):
            folder = {"path": tempfile.mkdtemp(dir=tmp_path)} if "path" in right else {}
            _fit_with(key, right | folder | {name: value})

        complaints += _walk(call, name)
    assert not complaints, "\n".join(complaints)
