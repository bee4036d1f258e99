"""Whether code is what it was when it was read, at a glance."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from operator import is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

import torch

__all__ = ["Snapshot"]

_MISSING: Final = object()
# What cannot be modified in place, or is looked at itself.
_LASTING: Final = (
    *(type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device),
    *(FunctionType, BuiltinFunctionType, type, ModuleType, logging.Logger, property, staticmethod, classmethod),
)


class Snapshot:
    """The functions, classes and globals that were read.

    Attributes
    ----------
    is_lasting : bool
        Whether it can be seen at a glance if something has changed: nothing else was read, such as a list.

    Examples
    --------
    >>> snapshot, scope = Snapshot(), {"scale": 2}
    >>> snapshot.add_entry(scope, "scale")
    >>> scope["scale"] = 3
    >>> snapshot.is_current
    False
    """

    def __init__(self) -> None:
        self.is_lasting: bool = True
        self._entries: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
        self._functions: dict[int, tuple[FunctionType, tuple[Any, ...]]] = {}
        self._classes: dict[type, tuple[tuple[type, ...], list[str], list[Any]]] = {}

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(scope.get(name, _MISSING) is value for scope, name, value in self._entries.values())
            and all(all(map(is_, _state(one), state)) for one, state in self._functions.values())
            and all(
                cls.__bases__ == bases and list(vars(cls)) == names and all(map(is_, vars(cls).values(), values))
                for cls, (bases, names, values) in self._classes.items()
            )
        )

    def add_entry(self, scope: Mapping[str, Any], name: str) -> None:
        """Note what a global is; it may be missing."""
        self._entries[id(scope), name] = scope, name, scope.get(name, _MISSING)

    def add_function(self, function: FunctionType, contents: object) -> None:
        """Note a function, and the values that are part of it."""
        self._functions[id(function)] = function, _state(function)
        self.add_value(contents)

    def add_class(self, cls: type) -> None:
        """Note a class."""
        if cls not in self._classes:
            self._classes[cls] = cls.__bases__, list(vars(cls)), list(vars(cls).values())

    def add_value(self, value: object) -> None:
        """Note a value that is part of something."""
        if isinstance(value, tuple):
            for one in value:
                self.add_value(one)
        else:
            self.is_lasting &= isinstance(value, _LASTING)


def _state(function: FunctionType) -> tuple[Any, ...]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__code__, function.__defaults__, function.__kwdefaults__, *cells
