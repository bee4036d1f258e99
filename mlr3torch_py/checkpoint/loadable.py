"""Write state dicts that are read without running code, numbers and arrays of numpy included."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.names import listed

__all__ = ["check_loadable", "with_numpy", "without_numpy"]

_ARRAY: Final = "array"
_KINDS: Final = "biufc"


def without_numpy(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Replace numbers and arrays of numpy by plain numbers and tensors.

    Parameters
    ----------
    state : mapping
        A state dict, which stays as it is.

    Returns
    -------
    tuple of (mapping, dict)
        The state dict, and by place what was of numpy there, as `with_numpy` takes it.

    Examples
    --------
    >>> without_numpy({"param_groups": [{"lr": np.float32(0.5)}]})
    ({'param_groups': [{'lr': 0.5}]}, {'param_groups.0.lr': 'float32'})
    """
    found: dict[str, str] = {}

    def replace(place: str, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS and value.dtype.isnative:
            found[place] = _ARRAY
            return torch.from_numpy(value.copy())
        if isinstance(value, np.generic) and value.dtype.kind in f"{_KINDS}U":
            item = value.item()
            if not isinstance(item, np.generic):
                found[place] = value.dtype.str if value.dtype.kind == "U" else value.dtype.name
                return item
        return value

    return _replaced(state, "", replace), found


def with_numpy(state: Mapping[str, Any], found: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a state dict as it was before `without_numpy`.

    Examples
    --------
    >>> type(with_numpy({"lr": 0.5}, {"lr": "float32"})["lr"])
    <class 'numpy.float32'>
    """

    def replace(place: str, value: Any) -> Any:
        if place not in found:
            return value
        return value.numpy() if found[place] == _ARRAY else np.dtype(found[place]).type(value)

    return _replaced(state, "", replace) if found else state


def check_loadable(part: str, state: Mapping[str, Any], *, is_early: bool = False) -> None:
    """Check that a state dict can be read without running code.

    Parameters
    ----------
    part : str
        The name of what it is the state dict of.
    state : mapping
        As `without_numpy` returned it.
    is_early : bool
        Whether training has only begun, so that lazy parameters will be initialized before it is written.

    Raises
    ------
    TypeError
        If it cannot; the message says what it holds where.
    """
    without_tensors = _replaced(
        state, "", lambda _, value: None if _is_tensor(value) or (is_early and is_lazy(value)) else value
    )
    if not _is_loadable(without_tensors):
        raise TypeError(
            f"the state dict of `{part}` holds {listed(_unloadable(without_tensors, ''), most=3)}, which a checkpoint "
            "cannot keep; leave it out of get_extra_state() or state_dict(), or keep it as plain values and tensors"
        )


def _replaced(value: Any, place: str, replace: Callable[[str, Any], Any]) -> Any:
    """Replace the leaves of dicts, lists and tuples; return what nothing was replaced in as it is."""
    inner = {key: (item, _replaced(item, end, replace)) for key, end, item in _items(value, place)}
    if not inner:
        return replace(place, value)
    new = {key: after for key, (before, after) in inner.items() if after is not before}
    if not new:
        return value
    if isinstance(value, tuple):
        return tuple(new.get(i, item) for i, item in enumerate(value))
    changed = copy(value)  # with the attributes of a state dict
    for key, item in new.items():
        changed[key] = item
    return changed


def _items(value: Any, place: str) -> Iterable[tuple[Any, str, Any]]:
    """Return the keys, places and values in a container."""
    if type(value) in (dict, OrderedDict):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    else:
        pairs = enumerate(value) if type(value) in (list, tuple) else ()
    return [(key, f"{place}.{key}".lstrip("."), item) for key, item in pairs]


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor with no attributes of its own, which is always read without running code."""
    return type(value) in (torch.Tensor, nn.Parameter) and not vars(value)


def _is_loadable(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, TypeError, AttributeError, RuntimeError):
        return False
    return True


def _unloadable(value: Any, place: str) -> list[str]:
    """List the innermost places that cannot be read, with the types of their values."""
    inner = [one for _, end, item in _items(value, place) if not _is_loadable(item) for one in _unloadable(item, end)]
    return inner or [f"{place} of type {type(value).__name__}".lstrip()]
