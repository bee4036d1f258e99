"""Values as plain Python, and as messages show them."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final, TypeGuard

import numpy as np

__all__ = ["is_list", "is_number", "is_run_by_call", "length_of", "plain", "shown"]

_MOST_LETTERS: Final = 120


class _Short(reprlib.Repr):
    """Shorten the representation of any object to part of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _MOST_LETTERS

    def repr_instance(self, x: Any, level: int) -> str:
        text = repr(x)
        if "\n" in text or len(text) > _MOST_LETTERS:
            return f"<{type(x).__module__.partition('.')[0]}.{type(x).__qualname__}>"
        return text


_SHORT: Final = _Short()


def shown(value: object) -> str:
    """Return a representation for a message, on one line and never long.

    Examples
    --------
    >>> shown("1 GB"), shown(list(range(100)))
    ("'1 GB'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    try:
        return _SHORT.repr(value)
    except Exception:  # a __repr__ that fails, a value nested too deeply, a number with too many digits
        return f"<{type(value).__qualname__}>"


def is_number(value: object) -> bool:
    """Whether a value is a real number, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a sequence, and not a text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def is_run_by_call(function: object) -> bool:
    """Whether a call runs the body of a function, and not somebody who iterates over what it returns, or awaits it.

    Examples
    --------
    >>> def generate(net):
    ...     yield net
    >>> is_run_by_call(generate), is_run_by_call(print)
    (False, True)
    """
    return not any(
        inspect.isgeneratorfunction(one) or inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, type(function).__call__)
    )


def length_of(data: Any) -> int | None:
    """Return a length; None if there is none, as of an iterable dataset or its loader."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def plain(value: Any) -> Any:
    """Turn a scalar of numpy, an array without dimensions, or a member of an enum of strings into the Python object.

    Examples
    --------
    >>> import numpy as np
    >>> plain(np.uint8(3)), plain(np.array(0.5)), plain("a")
    (3, 0.5, 'a')
    """
    if isinstance(value, str):
        return str.__str__(value)  # str() of a member of an enum is its name
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
