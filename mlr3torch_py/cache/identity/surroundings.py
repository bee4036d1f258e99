"""What a module can reach outside of itself, and how that was at one time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.classes import is_aside, is_known_class
from mlr3torch_py.cache.identity.code_objects import is_known
from mlr3torch_py.cache.identity.code_reader import unusual_settings
from mlr3torch_py.network.bits import buffer_hash, version_of
from mlr3torch_py.network.holdings import GLOBALS, held_values, holds_nothing_more
from mlr3torch_py.network.internals import internal

__all__ = ["Look", "Surroundings"]

_AS_IT_IS: Final = internal("torch._C", "DisableTorchFunctionSubclass")  # a placeholder is not filled in
# What is looked at item by item, whether it is the same object or not; and what is compared by value.
_CONTAINERS: Final = (dict, list, tuple, set, frozenset, deque)
_BY_VALUE: Final = (type(None), bool, int, float, complex, str, bytes, range, slice, np.generic)


Look = Mapping[str, tuple[Any, Any]]
"""What was held at one time, by path, with marks by which one sees whether it was written."""


class Surroundings:
    """What a module can reach, at any depth: by its attributes and by what its code refers to.

    Numbers are compared by value, tensors by identity and version, arrays by content, containers item by item, and all
    other objects by identity and by what they hold. Parameters, buffers, the attributes themselves and tables of
    tensors among them are left out, since `Fingerprint` looks at them, and so is the code of installed packages.
    Iterators and other objects made in C show nothing of their state, so it may change unseen.

    Parameters
    ----------
    module : torch.nn.Module

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> linear, shared = nn.Linear(2, 1), SimpleNamespace(scale=1.0)
    >>> linear.shared = shared
    >>> surroundings = Surroundings(linear)
    >>> before = surroundings.look()
    >>> shared.scale = 2.0
    >>> surroundings.difference(before, surroundings.look())
    "the 'shared.scale' that its Linear refers to"
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = list(module.modules())
        classes = {type(layer): i for i, layer in reversed(list(enumerate(self._layers)))}
        self._roots: dict[str, object] = {f"{i}:": cls for cls, i in classes.items() if not is_known_class(cls)}
        for i, layer in enumerate(self._layers):
            settings = unusual_settings(layer)
            self._roots |= {f"{i}:{name}": value for name, value in settings if not holds_nothing_more(value)}

    def look(self, skip: Iterable[object] = ()) -> Look:
        """Look at what can be reached now.

        Parameters
        ----------
        skip : iterable of object
            Objects that are looked at elsewhere.

        Raises
        ------
        NotCacheableError
            If something cannot be read.
        """
        try:
            with _AS_IT_IS():
                held = held_values(self._roots, [*self._layers, *skip], is_left_out=_is_looked_at_elsewhere)
                return {path: (value, _mark(value)) for path, value in held.items()}
        except Exception as error:  # of whatever kind: objects decide what they do when they are read
            raise NotCacheableError(f"what it refers to cannot be read: {error}") from error

    def difference(self, before: Look, now: Look) -> str | None:
        """Name something that differs between two looks; None if nothing does."""
        differing = (
            path
            for path in dict.fromkeys((*before, *now))
            if path not in before or path not in now or _differ(before[path], now[path])
        )
        if (path := next(differing, None)) is None:
            return None
        number, _, name = path.replace(f".{GLOBALS}", "").partition(":")
        return f"the {name.removeprefix('.')!r} that its {type(self._layers[int(number)]).__name__} refers to"


def _is_looked_at_elsewhere(value: Any) -> bool:
    """Whether an object is of an installed package, the code of which is known by its version, or of this package."""
    if isinstance(value, FunctionType):
        return not value.__closure__ and is_known(value.__globals__.get("__name__", ""))
    return is_known_class(value) if isinstance(value, type) else is_aside(value)


def _mark(value: Any) -> Any:
    """Return what changes when something is written into a value."""
    if isinstance(value, torch.Tensor):
        return version_of(value)
    return None if isinstance(value, _BY_VALUE) else buffer_hash(value)


def _differ(before: tuple[Any, Any], now: tuple[Any, Any]) -> bool:
    (one, mark), (other, other_mark) = before, now
    if one is other or mark != other_mark:
        return bool(mark != other_mark)
    if type(one) is not type(other) or not isinstance(one, (*_CONTAINERS, *_BY_VALUE)):
        return True
    return isinstance(one, _BY_VALUE) and one != other
