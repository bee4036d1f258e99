"""Whether code is what it was when it was read, at a glance."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from operator import attrgetter, is_
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, Final

import torch

__all__ = ["Snapshot"]

_MISSING: Final = object()
_PARTS: Final = attrgetter("__code__", "__defaults__", "__kwdefaults__")
_CONTENTS: Final = attrgetter("cell_contents")
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
        self._functions: dict[int, FunctionType] = {}
        self._parts: list[Any] = []  # of the functions
        self._cells: list[CellType] = []  # of their closures
        self._contents: list[Any] = []
        self._classes: dict[type, tuple[tuple[type, ...], list[str], list[Any]]] = {}

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed."""
        return (
            all(scope.get(name, _MISSING) is value for scope, name, value in self._entries.values())
            and all(map(is_, chain.from_iterable(map(_PARTS, self._functions.values())), self._parts))
            and all(map(is_, map(_CONTENTS, self._cells), self._contents))
            and all(
                cls.__bases__ == bases and list(vars(cls)) == names and all(map(is_, vars(cls).values(), values))
                for cls, (bases, names, values) in self._classes.items()
            )
        )

    @property
    def n_functions(self) -> int:
        """How many functions were read."""
        return len(self._functions)

    def add_entry(self, scope: Mapping[str, Any], name: str) -> None:
        """Note what a global is; it may be missing."""
        self._entries[id(scope), name] = scope, name, scope.get(name, _MISSING)

    def add_function(self, function: FunctionType, contents: object) -> None:
        """Note a function, and the values that are part of it."""
        if id(function) not in self._functions:
            self._functions[id(function)] = function
            self._parts += _PARTS(function)
            cells = function.__closure__ or ()
            self._cells += cells
            self._contents += map(_CONTENTS, cells)
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
