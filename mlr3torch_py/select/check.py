"""The check of arguments that must be selectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mlr3torch_py.select.base import Select, check_nesting
from mlr3torch_py.values import shown

__all__ = ["check_select"]


def check_select(argument: str, value: object) -> Select:
    """Return a selector.

    Parameters
    ----------
    argument : str
        What the message calls it: a name, or a phrase with names in backticks.
    value : object

    Raises
    ------
    TypeError
        If `value` is no selector; the message says how to write one.
    ValueError
        If it is nested too deeply.

    Examples
    --------
    >>> check_select("starting_weights", "0.weight")
    Traceback (most recent call last):
        ...
    TypeError: `starting_weights` is '0.weight' (str); it must be a selector: write select_name('0.weight')
    """
    place = argument if "`" in argument else f"`{argument}`"
    if isinstance(value, Select):
        check_nesting(argument, value)
        return value
    if isinstance(value, str) or (
        isinstance(value, Sequence) and value and all(isinstance(name, str) for name in value)
    ):
        remedy = f"write select_name({shown(value)})"
    elif isinstance(value, Mapping) and "starting_weights" in value:
        remedy = "this is a whole schedule, so write t_clbk('unfreeze', **schedule)"
    elif callable(value) and (_is_selector_class(value) or getattr(value, "__module__", "") == _FUNCTIONS):
        remedy = f"call it: {getattr(value, '__name__', value)}(...)"
    else:
        remedy = "such as select_all() or select_name('0.weight')"
    raise TypeError(f"{place} is {shown(value)} ({type(value).__name__}); it must be a selector: {remedy}")


def _is_selector_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Select)


_FUNCTIONS: Final = f"{__package__}.functions"
