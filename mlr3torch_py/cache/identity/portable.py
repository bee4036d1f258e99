"""Hashes of attributes that are the same in other processes: of names and contents, not of identity."""

from __future__ import annotations

import io
import pickle
import sys
import weakref
from collections.abc import Mapping
from types import CodeType, FunctionType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from xxhash import xxh3_128_hexdigest

from mlr3torch_py.network.bits import content_hash
from mlr3torch_py.network.holdings import attributes_of_array

__all__ = ["NotPortableError", "Writer", "portable_hash"]


class NotPortableError(Exception):
    """What no file can hold, or no other process can find."""


class Writer(pickle.Pickler):
    """Write equal values as equal bytes in each process.

    Functions are written by name, or by their code if they have none; classes by name, with what they derive from if no
    other process would find them by it; objects by their state.

    Parameters
    ----------
    places : mapping
        What stands for the layers of the module, by id.
    """

    def __init__(self, places: Mapping[int, Any]) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=4)
        self.fast = True  # writes the same for two equal values as for one that comes twice
        self._places = places

    def bytes_of(self, value: Any) -> bytes:
        """Write a value."""
        self.dump(value)
        return self._file.getvalue()

    def persistent_id(self, value: Any) -> Any:
        """Return what stands for a value; None for the value itself."""
        if isinstance(value, (type, FunctionType)):
            return _name_of(value)
        if isinstance(value, weakref.ReferenceType):
            return "reference", value()
        if isinstance(value, MappingProxyType):
            return "mapping", dict(value)
        if isinstance(value, torch.Tensor):
            attributes = attributes_of_array(value)
            return "tensor", value.dtype, tuple(value.shape), content_hash(value), *([attributes] if attributes else [])
        if isinstance(value, np.ndarray) and (attributes := attributes_of_array(value)):  # which pickle may leave out
            return "array", value.view(np.ndarray), attributes
        if isinstance(value, torch.device):
            return "device", value.type
        if isinstance(value, (set, frozenset)):  # whose order differs from process to process
            return type(value).__name__, sorted(Writer(self._places).bytes_of(one) for one in value)
        if isinstance(value, nn.Module):
            if id(value) not in self._places:
                raise pickle.PicklingError("a module that is not part of it")
            return "layer", self._places[id(value)]
        return None


def portable_hash(value: Any, places: Mapping[int, Any]) -> str:
    """Hash a value such that other processes get the same.

    Parameters
    ----------
    value : object
    places : mapping
        What stands for the layers of the module, by id.

    Raises
    ------
    NotPortableError
        If something in it cannot be told apart there, such as a lock, or a function that depends on variables of the
        function in which it was made.

    Examples
    --------
    >>> portable_hash({3, 1, 2}, {}) == portable_hash({2, 1, 3}, {})
    True
    >>> portable_hash(torch.relu, {}) == portable_hash(torch.tanh, {})
    False
    """
    try:
        return xxh3_128_hexdigest(Writer(places).bytes_of(value))
    except Exception as error:  # of whatever kind: objects decide how they are written
        raise NotPortableError(str(error)) from error


def _name_of(value: type | FunctionType) -> Any:
    """Return what stands for a class or function; None if pickle knows better."""
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is value:
        return "name", value.__module__.replace("__mp_main__", "__main__"), value.__qualname__
    if isinstance(value, type):  # local, or made by type()
        return None if value.__module__ == "builtins" else ("class", value.__qualname__, value.__bases__)
    if "<" not in value.__qualname__:  # neither local nor a lambda
        return None
    if set(value.__code__.co_freevars) - {"__class__"}:
        raise pickle.PicklingError(f"{value.__qualname__} depends on variables of another function")
    return "function", value.__qualname__, _code_of(value.__code__), value.__defaults__, value.__kwdefaults__


def _code_of(code: CodeType) -> Any:
    constants = [_code_of(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants
