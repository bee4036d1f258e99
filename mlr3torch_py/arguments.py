"""Checks of arguments, each with one message."""

from __future__ import annotations

from numbers import Integral

__all__ = ["check_flag", "check_whole"]


def check_flag(argument: str, value: object) -> bool:
    """Return True or False.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object

    Raises
    ------
    TypeError
        If `value` is neither.

    Examples
    --------
    >>> check_flag("fixed", 1)
    Traceback (most recent call last):
        ...
    TypeError: `fixed` is 1; give True or False
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` is {value!r}; give True or False")
    return value


def check_whole(argument: str, value: object, what: str, *, least: int = 1) -> int:
    """Return a whole number as an int.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    what : str
        What it counts, such as ``"epochs"``.
    least : int

    Raises
    ------
    TypeError
        If `value` is no whole number; True and False are none.
    ValueError
        If it is below `least`.

    Examples
    --------
    >>> check_whole("freq", 0, "epochs")
    Traceback (most recent call last):
        ...
    ValueError: `freq` is 0; give a whole number of epochs, at least 1
    """
    remedy = f"give a whole number of {what}, at least {least}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{argument}` is {value!r}; {remedy}")
    if value < least:
        raise ValueError(f"`{argument}` is {value!r}; {remedy}")
    return int(value)
