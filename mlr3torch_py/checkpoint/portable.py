"""What a file may hold: JSON for all but tensors, without any code that reading it would run."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import numpy as np
import torch

__all__ = ["from_portable", "to_portable"]

_TAG: Final = "__type__"
_COLLECTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_MAPPINGS: Final[Mapping[str, Callable[[Any], Any]]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}


def to_portable(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Write a value as JSON and tensors.

    Parameters
    ----------
    value : object
        None, booleans, numbers, strings, tensors, arrays, and lists, tuples, sets and dictionaries of these.
    place : str
        Where it comes from, for the message of an error.
    tensors : dict
        The tensors in it are put here.

    Returns
    -------
    object
        What ``json`` can write. `from_portable` makes the value of it again, types included.

    Raises
    ------
    TypeError
        If there is something else in it; the message says where.

    Examples
    --------
    >>> tensors = {}
    >>> written = to_portable({"best": torch.ones(2), "rates": (0.1,)}, "state", tensors)
    >>> written, sorted(tensors)
    ({'best': {'__type__': 'tensor', 'value': 'state.best'}, 'rates': {'__type__': 'tuple', 'value': [0.1]}}, \
['state.best'])
    >>> from_portable(written, tensors)
    {'best': tensor([1., 1.]), 'rates': (0.1,)}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return to_portable(value.item(), place, tensors)
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        return {_TAG: "ndarray", "value": to_portable(torch.from_numpy(value.copy()), place, tensors)}
    if isinstance(value, torch.Tensor):
        name = next(name for name in (place + "'" * n for n in count()) if name not in tensors)
        tensors[name] = value.detach()
        return {_TAG: "tensor", "value": name}
    kind = type(value).__name__
    if type(value) is list or _COLLECTIONS.get(kind) is type(value):
        items = [to_portable(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if kind == "list" else {_TAG: kind, "value": items}
    if _MAPPINGS.get(kind) is type(value):
        pairs = [(key, to_portable(item, f"{place}.{key}", tensors)) for key, item in value.items()]
        if kind == "dict" and _TAG not in value and all(type(key) is str for key in value):
            return dict(pairs)
        return {_TAG: kind, "value": [[to_portable(key, place, tensors), item] for key, item in pairs]}
    if isinstance(value, bool | int | float | str):
        return next(plain(value) for plain in (bool, int, float, str) if isinstance(value, plain))
    raise TypeError(
        f"{place} is of type {type(value).__name__}, which a checkpoint cannot keep: it takes None, booleans, numbers, "
        "strings, tensors, arrays of numbers, and lists, tuples, sets and dictionaries of these"
    )


def from_portable(written: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Make the value again that `to_portable` has written.

    Parameters
    ----------
    written : object
    tensors : mapping

    Returns
    -------
    object
    """
    if isinstance(written, list):
        return [from_portable(item, tensors) for item in written]
    if not isinstance(written, dict):
        return written
    kind = written.get(_TAG)
    if kind is None:
        return {key: from_portable(item, tensors) for key, item in written.items()}
    if kind == "tensor":
        return tensors[written["value"]]
    value = from_portable(written["value"], tensors)
    if kind == "ndarray":
        return value.numpy()
    return _COLLECTIONS[kind](value) if kind in _COLLECTIONS else _MAPPINGS[kind](dict(value))
