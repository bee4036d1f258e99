"""Convert values to JSON and tensors, which are read without running code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np
import torch

__all__ = ["from_portable", "to_portable"]

Tensors = dict[str, torch.Tensor]

_T = TypeVar("_T")
_TAG: Final = "__type__"


def to_portable(value: Any, place: str, tensors: Tensors) -> Any:
    """Convert a value to JSON and tensors.

    Parameters
    ----------
    value : object
        None, booleans, numbers, strings, tensors, arrays, and lists, tuples, sets and dictionaries of these.
        Subclasses of numbers and strings lose their class; those of containers are refused.
    place : str
        The path of the value, for error messages.
    tensors : dict
        The tensors in `value` are added to it.

    Returns
    -------
    object
        JSON, of which `from_portable` makes the value again, types included.

    Raises
    ------
    TypeError
        If the value contains something else; the message says where.

    Examples
    --------
    >>> tensors = {}
    >>> written = to_portable({"best": torch.ones(2), "rates": (0.1,)}, "state", tensors)
    >>> written["rates"], sorted(tensors)
    ({'__type__': 'tuple', 'value': [0.1]}, ['state.best'])
    >>> from_portable(written, tensors)
    {'best': tensor([1., 1.]), 'rates': (0.1,)}
    """
    if value is None or type(value) in _PLAIN:
        return value
    write = _WRITERS.get(type(value)) or _first(_WRITERS_OF_SUBCLASSES, value)
    if write is not None:
        return write(value, place, tensors)
    plain = _first(_PLAIN, value)
    if plain is None:
        raise _refusal(value, place)
    return plain(value)


def from_portable(written: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Convert JSON and tensors back to the value.

    Parameters
    ----------
    written : object
        What `to_portable` returned.
    tensors : mapping
        The tensors it collected.

    Returns
    -------
    object
    """
    if isinstance(written, list):
        return [from_portable(item, tensors) for item in written]
    if not isinstance(written, dict):
        return written
    if _TAG not in written:
        return {key: from_portable(item, tensors) for key, item in written.items()}
    if written[_TAG] == "tensor":
        return tensors[written["value"]]
    return _READERS[written[_TAG]](from_portable(written["value"], tensors))


def _tagged(tag: str, value: Any) -> dict[str, Any]:
    return {_TAG: tag, "value": value}


def _first(by_base: Mapping[type, _T], value: object) -> _T | None:
    """Look up the first base class of a value."""
    return next((found for base, found in by_base.items() if isinstance(value, base)), None)


def _write_tensor(value: torch.Tensor, place: str, tensors: Tensors) -> Any:
    name = next(name for name in (place + "'" * n for n in count()) if name not in tensors)
    tensors[name] = value.detach()
    return _tagged("tensor", name)


def _write_array(value: np.ndarray[Any, Any], place: str, tensors: Tensors) -> Any:
    if value.dtype.kind not in "biufc":
        raise _refusal(value, place)
    return _tagged("ndarray", _write_tensor(torch.from_numpy(value.copy()), place, tensors))


def _write_scalar(value: np.generic, place: str, tensors: Tensors) -> Any:
    item = value.item()
    if isinstance(item, np.generic):
        raise _refusal(value, place)
    return to_portable(item, place, tensors)


def _write_list(value: Iterable[Any], place: str, tensors: Tensors) -> Any:
    return [to_portable(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]


def _write_collection(value: Iterable[Any], place: str, tensors: Tensors) -> Any:
    return _tagged(type(value).__name__, _write_list(value, place, tensors))


def _write_mapping(value: Mapping[Any, Any], place: str, tensors: Tensors) -> Any:
    pairs = [[key, to_portable(item, f"{place}.{key}", tensors)] for key, item in value.items()]
    if type(value) is dict and _TAG not in value and all(type(key) is str for key in value):
        return dict(pairs)
    return _tagged(type(value).__name__, [[to_portable(key, place, tensors), item] for key, item in pairs])


def _refusal(value: object, place: str) -> TypeError:
    return TypeError(
        f"{place} is of type {type(value).__name__}, which a checkpoint cannot keep; use None, booleans, numbers, "
        "strings, tensors, arrays of numbers, and lists, tuples, sets and dictionaries of these"
    )


_Writer = Callable[[Any, str, Tensors], Any]

_PLAIN: Final[Mapping[type, Callable[[Any], Any]]] = MappingProxyType({bool: bool, int: int, float: float, str: str})
_WRITERS: Final[Mapping[type, _Writer]] = MappingProxyType(
    {
        list: _write_list,
        tuple: _write_collection,
        set: _write_collection,
        frozenset: _write_collection,
        dict: _write_mapping,
        OrderedDict: _write_mapping,
        Counter: _write_mapping,
        np.ndarray: _write_array,
    }
)
_WRITERS_OF_SUBCLASSES: Final[Mapping[type, _Writer]] = MappingProxyType(
    {np.generic: _write_scalar, torch.Tensor: _write_tensor}
)
_READERS: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "dict": dict,
        "OrderedDict": OrderedDict,
        "Counter": lambda pairs: Counter(dict(pairs)),
        "ndarray": lambda tensor: tensor.numpy(),
    }
)
