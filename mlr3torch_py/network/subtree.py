"""Modules below a module, remembered, so that a change among them is found at a glance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain, repeat
from operator import is_
from typing import Any, Final

from torch import nn

__all__ = ["Subtree"]

_MEMBER: Final[Callable[..., Any]] = dict.get
_HAS: Final[Callable[..., bool]] = dict.__contains__
_VALUES: Final[Callable[..., Any]] = dict.values
_DICTS: Final = (dict, OrderedDict)


class Subtree:
    """A module and all modules below it, as they are now.

    It looks at them in columns, which is faster than a loop over the modules.

    Parameters
    ----------
    module : torch.nn.Module

    Attributes
    ----------
    modules : list of torch.nn.Module
    states : list of dict
        The attributes of each module.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> subtree = Subtree(network)
    >>> subtree.is_current
    True
    >>> network[1] = nn.Tanh()
    >>> subtree.is_current
    False
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        self._is_readable = _collect(module, self.modules, set())
        self.states: list[dict[str, Any]] = list(map(vars, self.modules))
        self._types: list[type[nn.Module]] = list(map(type, self.modules))
        self._kinds = set(self._types)
        self._children: list[dict[str, Any]] = [one._modules for one in self.modules] if self._is_readable else []
        self._lengths = list(map(len, self._children))
        self._members = list(chain.from_iterable(map(_VALUES, self._children)))

    @property
    def is_current(self) -> bool:
        """Whether the modules, their classes and their children are the same."""
        return (
            self._is_readable
            and list(map(type, self.modules)) == self._types
            and all(map(is_, map(vars, self.modules), self.states))
            and all(map(is_, map(_MEMBER, self.states, repeat("_modules")), self._children))
            and list(map(len, self._children)) == self._lengths
            and all(map(is_, chain.from_iterable(map(_VALUES, self._children)), self._members))
        )

    @property
    def has_plain_modes(self) -> bool:
        """Whether ``train`` of each class does nothing but set ``training``, which each module has."""
        return all(kind.train is nn.Module.train for kind in self._kinds) and all(
            map(_HAS, self.states, repeat("training"))
        )

    def holds(self, name: str, values: list[Any]) -> bool:
        """Check whether an attribute of each module is the given object."""
        return all(map(is_, map(_MEMBER, self.states, repeat(name)), values))


def _collect(module: nn.Module, modules: list[nn.Module], seen: set[int]) -> bool:
    """Append a module and those below, each once; return whether Python holds the children of all of them."""
    if id(module) in seen:
        return True
    seen.add(id(module))
    modules.append(module)
    children = vars(module).get("_modules")
    return type(children) in _DICTS and all(
        child is None or _collect(child, modules, seen) for child in module._modules.values()
    )
