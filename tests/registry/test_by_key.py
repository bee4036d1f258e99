import inspect
import re
from typing import get_args, get_overloads

import pytest

import mlr3torch_py
from mlr3torch_py import mlr3torch_callbacks, t_clbk
from mlr3torch_py.registry.by_key import Key
from mlr3torch_py.training.callback_set import REQUIRED


def class_of(key):
    return type(t_clbk(key, **({"names": "0.bias"} if key == "freezer" else {})).callback)


def overloads():
    """Map each key to the signature of its overload."""
    signatures = [inspect.signature(one) for one in get_overloads(t_clbk)]
    keyed = [
        (re.fullmatch(r"Literal\['(\w+)'\]", s.parameters["key"].annotation.replace('"', "'")), s) for s in signatures
    ]
    return {found[1]: signature for found, signature in keyed if found}


def is_required(parameter):
    return parameter.default in (parameter.empty, ..., REQUIRED)


def written(parameters, annotated):
    """Write parameters as an overload has them: by keyword, and none of them required."""
    lines = []
    for p in parameters:
        if p.name not in ("key", "id", "weight"):
            default = "..." if is_required(p) else repr(p.default)
            lines.append(f"{p.name}: {p.annotation if annotated else '?'} = {default}")
    return lines


def test_every_key_has_an_overload():
    assert list(get_args(Key)) == list(overloads()) == mlr3torch_callbacks.keys()


@pytest.mark.parametrize("key", mlr3torch_callbacks)
def test_an_overload_has_the_parameters_of_the_callback(key):
    generator = class_of(key)
    parameters = inspect.signature(generator).parameters.values()
    annotated = not key.startswith("lr_")  # those of schedulers are torch's
    assert written(overloads()[key].parameters.values(), annotated) == written(parameters, annotated)


@pytest.mark.parametrize("key", mlr3torch_callbacks)
def test_an_overload_returns_the_class_of_the_callback(key):
    public = next(one for one in class_of(key).__mro__ if getattr(mlr3torch_py, one.__name__, None) is one)
    assert overloads()[key].return_annotation == f"TorchCallback[{public.__name__}]"


@pytest.mark.parametrize("key", mlr3torch_callbacks)
def test_the_help_lists_the_parameters_of_every_key(key):
    parameters = inspect.signature(class_of(key)).parameters.values()
    listed = ", ".join(p.name if is_required(p) else f"{p.name}={p.default!r}" for p in parameters)
    assert f"- ``{key}``: {listed or 'none'}" in " ".join(t_clbk.__doc__.split())
