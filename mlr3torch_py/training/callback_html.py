"""How a callback reads: as code, and as HTML in a notebook."""

from __future__ import annotations

import inspect
from html import escape
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pandas as pd

from mlr3torch_py.html import html_table
from mlr3torch_py.training.stages import StagedCallback

__all__ = ["callback_html", "code", "given", "summary_of"]


def given(callback: StagedCallback) -> dict[str, Any]:
    """Return the parameters of a callback that are not the defaults of its class."""
    parameters = inspect.signature(type(callback)).parameters
    values = callback.get_params(deep=False)
    is_given = {name: name not in parameters or not _is_same(values[name], parameters[name].default) for name in values}
    return {name: value for name, value in values.items() if is_given[name]}


def _is_same(value: Any, default: Any) -> bool:
    """Check for one value, also after a pickle; the parameters that are tables or arrays have no such default."""
    return value is default or (
        isinstance(value, str | int | float) and type(value) is type(default) and value == default
    )


def code(value: Any) -> str:
    """Write a parameter as code."""
    if isinstance(value, BuiltinFunctionType | FunctionType | type):
        return value.__qualname__
    return repr(value.to_dict("list") if isinstance(value, pd.DataFrame) else value)


def summary_of(cls: type) -> str:
    """Return the first line of a class's docstring; empty without one of its own."""
    return (inspect.cleandoc(vars(cls).get("__doc__") or "").splitlines() or [""])[0].replace("`", "")


def callback_html(call: str, callback: StagedCallback) -> str:
    """Draw a callback with what it does, and its parameters, those that were given first.

    Parameters
    ----------
    call : str
        The code that makes it.
    callback : StagedCallback

    Returns
    -------
    str
    """
    own = given(callback)
    values = {**own, **callback.get_params(deep=False)}
    rows = [[name, code(value), "" if name in own else "default"] for name, value in values.items()]
    table = html_table(["parameter", "value", ""], rows, left={0, 1, 2}) if rows else ""
    return f"<div><code>{escape(call)}</code><div>{escape(summary_of(type(callback)))}</div>{table}</div>"
