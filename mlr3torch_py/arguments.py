"""Checks of arguments: each returns the plain Python value, or names argument, value, rule and remedy."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from mlr3torch_py.values import is_run_by_call, plain, shown

__all__ = [
    "check_callable",
    "check_choice",
    "check_flag",
    "check_list",
    "check_mapping",
    "check_names",
    "check_network",
    "check_number",
    "check_path",
    "check_text",
    "check_whole",
]


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
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"`{argument}` is {shown(value)}; give True or False")
    return flag


def check_whole(argument: str, value: object, what: str, *, least: int = 1, most: int = sys.maxsize) -> int:
    """Return a whole number as an int.

    Parameters
    ----------
    argument : str
        What the message calls it: a name, or a phrase with names in backticks.
    value : object
    what : str
        What it counts, such as ``"epochs"``.
    least, most : int

    Raises
    ------
    TypeError
        If `value` is no whole number; True and False are none.
    ValueError
        If it is below `least` or above `most`.

    Examples
    --------
    >>> check_whole("freq", 0, "epochs")
    Traceback (most recent call last):
        ...
    ValueError: `freq` is 0; give a whole number of epochs, at least 1
    """
    number, place = plain(value), argument if "`" in argument else f"`{argument}`"
    remedy = f"give a whole number of {what}, at least {least}"
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise TypeError(f"{place} is {shown(value)}; {remedy}")
    whole = int(number)
    if whole > most:
        remedy = f"{remedy} and at most {'2**63 - 1' if most == 2**63 - 1 else most}"
    if not least <= whole <= most:
        raise ValueError(f"{place} is {shown(value)}; {remedy}")
    return whole


def check_number(
    argument: str,
    value: object,
    what: str = "a finite number",
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    finite: bool = True,
) -> float:
    """Return a number as a float.

    Parameters
    ----------
    argument : str
        What the message calls it: a name, or a phrase with names in backticks.
    value : object
    what : str
        What to give, such as ``"a factor above 0"``.
    least, most, above : float
        The number must be from `least` to `most`, and above `above`.
    finite : bool
        Whether it must be finite; NaN is refused in any case.

    Raises
    ------
    TypeError
        If `value` is no number; True and False are none.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> check_number("p", 2, "a probability from 0 to 1", least=0, most=1)
    Traceback (most recent call last):
        ...
    ValueError: `p` is 2; give a probability from 0 to 1
    """
    number, place = plain(value), argument if "`" in argument else f"`{argument}`"
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{place} is {shown(value)}; give {what}")
    try:
        number = float(number)
    except OverflowError:
        number = math.nan
    is_possible = math.isfinite(number) or not (finite or math.isnan(number))
    if not (is_possible and least <= number <= most and (number > above or above == -math.inf)):
        raise ValueError(f"{place} is {shown(value)}; give {what}")
    return number


def check_choice(argument: str, value: object, choices: Collection[Any], remedy: str = "") -> Any:
    """Return one of several values.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    choices : collection
        Strings or None.
    remedy : str
        What to say instead of the choices.

    Raises
    ------
    TypeError
        If `value` is of another type.
    ValueError
        If it is none of the choices.

    Examples
    --------
    >>> check_choice("unit", "day", ("epoch", "batch"))
    Traceback (most recent call last):
        ...
    ValueError: `unit` is 'day'; give 'epoch' or 'batch'
    """
    choice = plain(value)
    if choice is None or isinstance(choice, str):
        if choice in choices:
            return choice
        kind: type[Exception] = ValueError
    else:
        kind = TypeError
    raise kind(f"`{argument}` is {shown(value)}; {remedy or 'give ' + ' or '.join(map(repr, choices))}")


def check_text(argument: str, value: object, what: str = "a string") -> str:
    """Return a string.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    what : str
        What to give, such as ``"the name of a score in the history"``.

    Raises
    ------
    TypeError
        If it is none.

    Examples
    --------
    >>> check_text("pattern", 3)
    Traceback (most recent call last):
        ...
    TypeError: `pattern` is 3; give a string
    """
    if not isinstance(value, str):
        raise TypeError(f"`{argument}` is {shown(value)}; give {what}")
    return str(plain(value))


def check_names(argument: str, value: object, *, again: bool = False) -> tuple[str, ...]:
    """Return one or several names as a tuple.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    again : bool
        As in `check_list`.

    Raises
    ------
    TypeError
        If `value` is neither.

    Examples
    --------
    >>> check_names("names", "0.weight")
    ('0.weight',)
    """
    names = [value] if isinstance(value, str) else check_list(argument, value, "a name or a list of names", again=again)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`{argument}` is {shown(value)}; give a name or a list of names")
    return tuple(map(plain, names))


def check_list(argument: str, value: object, what: str, *, again: bool = False) -> list[Any]:
    """Return what is in a list, or in anything else that has an order.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    what : str
        What to give.
    again : bool
        Whether it is read again later, which a generator or another iterator does not allow.

    Raises
    ------
    TypeError
        If it is a string, a mapping, a set, or no collection, or an iterator that is to be read again.

    Examples
    --------
    >>> check_list("groups", "ab", "a list of selectors")
    Traceback (most recent call last):
        ...
    TypeError: `groups` is 'ab'; give a list of selectors
    """
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Set, Mapping, type)):
        if again and isinstance(value, Iterator):
            raise TypeError(f"`{argument}` is {shown(value)}, which can be read only once; give a list: list(...)")
        with suppress(TypeError):  # an array without dimensions
            return list(value)
    raise TypeError(f"`{argument}` is {shown(value)}; give {what}")


def check_mapping(argument: str, value: object, what: str) -> dict[str, Any]:
    """Return a mapping with names as keys; None stands for an empty one.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    what : str
        What it maps to what.

    Raises
    ------
    TypeError
        If it is none.

    Examples
    --------
    >>> check_mapping("public", 5, "names to attributes")
    Traceback (most recent call last):
        ...
    TypeError: `public` is 5; give a mapping of names to attributes
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"`{argument}` is {shown(value)}; give a mapping of {what}")
    return dict(value)


def check_callable(argument: str, value: object, *takes: str) -> Callable[..., Any]:
    """Return a function that can be called with some arguments.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    *takes : str
        What it is called with, in words.

    Raises
    ------
    TypeError
        If `value` is no function, or takes other arguments.

    Examples
    --------
    >>> check_callable("on_epoch_end", 5, "the callback")
    Traceback (most recent call last):
        ...
    TypeError: `on_epoch_end` is 5; give a function that takes the callback
    """
    arguments = " and ".join(takes) or "no arguments"
    if not callable(value):
        raise TypeError(f"`{argument}` is {shown(value)}; give a function that takes {arguments}")
    if not is_run_by_call(value):
        raise TypeError(f"`{argument}` is {shown(value)}, whose body a call does not run; leave out `yield` or `async`")
    try:
        signature(value).bind(*takes)
    except TypeError as error:
        raise TypeError(f"`{argument}` must be a function that takes {arguments}: {error}") from error
    except ValueError:  # some functions written in C have no signature
        pass
    return value


def check_path(argument: str, value: object, what: str = "a folder") -> Path:
    """Return a path, with ``~`` resolved.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object
    what : str
        What to give.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If no such path can exist.

    Examples
    --------
    >>> check_path("path", "")
    Traceback (most recent call last):
        ...
    ValueError: `path` is '', which is empty; give a folder
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"`{argument}` is {shown(value)}; give {what}")
    if not os.fspath(value).strip():
        raise ValueError(f"`{argument}` is {shown(value)}, which is empty; give {what}")
    try:
        path = Path(value).expanduser().resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()  # which raises where a name is too long
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"`{argument}` is {shown(value)}, which cannot be a path ({error}); give {what}") from error
    return path


def check_network(argument: str, value: object) -> nn.Module:
    """Return a network, or the network of an initialized net.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : torch.nn.Module or skorch.NeuralNet

    Raises
    ------
    TypeError
        If `value` is neither, or a net that has not been initialized, or has no ``module_``.

    Examples
    --------
    >>> check_network("network", nn.Linear)
    Traceback (most recent call last):
        ...
    TypeError: `network` is <class 'torch.nn.modules.linear.Linear'>; give a torch.nn.Module, or a net after
    net.initialize()
    """
    network = value if isinstance(value, nn.Module) else getattr(value, "module_", None)
    if isinstance(value, type) or not isinstance(network, nn.Module):
        remedy = "a torch.nn.Module, or a net after net.initialize()"
        modules = getattr(value, "_modules", None)
        if getattr(value, "initialized_", False) is True and isinstance(modules, list) and modules:
            remedy = f"one of its modules, such as `{modules[0]}_`"
        raise TypeError(f"`{argument}` is {shown(value)}; give {remedy}")
    return network
