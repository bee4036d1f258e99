"""What classes are and hold, as far as the code of a forward pass is concerned."""

from __future__ import annotations

import sys
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

from skorch import NeuralNet
from skorch.history import History
from torch import nn

from mlr3torch_py.cache.identity.code_objects import is_known, names_in
from mlr3torch_py.network.holdings import is_of_this_package

__all__ = ["is_aside", "is_code", "is_dunder", "is_foreign", "is_known_class", "is_special", "looks_at_mode"]

_MADE_BY_CLASS_STATEMENT: Final = 1 << 9
_CODE: Final = (FunctionType, BuiltinFunctionType, type, partial, type(None), bool, int, float, complex, str, bytes)


def is_aside(value: Any) -> bool:
    """Whether an object stands beside the network, and changes while it trains: a net, or its history."""
    return isinstance(value, (NeuralNet, History)) or is_of_this_package(type(value))


def is_known_class(cls: type) -> bool:
    """Whether a class is known by the version of its package: it is made in C, or found there by its name."""
    if not cls.__flags__ & _MADE_BY_CLASS_STATEMENT:
        return True
    if not is_known(cls.__module__):
        return False
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def is_foreign(value: Any) -> bool:
    """Whether something in a known module was put there by others."""
    if issubclass(type(value), FunctionType):
        return not is_known(value.__globals__.get("__name__", ""))
    return issubclass(type(value), type) and not is_known(value.__module__)


def is_special(name: str, value: Any) -> bool:
    """Whether Python calls a method by itself."""
    return is_dunder(name) and isinstance(value, (FunctionType, staticmethod, classmethod))


def is_dunder(name: str) -> bool:
    """Whether a name is one of those that belong to Python."""
    return name.startswith("__") and name.endswith("__")


def is_code(name: str, value: Any) -> bool:
    """Whether a global is a function, class or constant, and not data."""
    return not is_dunder(name) and issubclass(type(value), _CODE)  # objects may say another class, and warn then


def looks_at_mode(cls: type) -> bool:
    """Whether the methods of a layer of torch may look at its mode, or at those below it."""
    owners = [owner for owner in cls.__mro__ if issubclass(owner, nn.Module) and owner is not nn.Module]
    functions = [one for owner in owners for one in vars(owner).values() if isinstance(one, FunctionType)]
    return any("training" in names_in(one.__code__) for one in functions)
