"""Make classes with picklable instances inside a function."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

__all__ = ["recipe_class"]


def recipe_class(name: str, base: type[Any], namespace: Mapping[str, Any], recipe: partial[type[Any]]) -> type[Any]:
    """Make a class with picklable instances outside of any module.

    Parameters
    ----------
    name : str
    base : type
        It must define ``__getstate__``.
    namespace : mapping
        The attributes and methods of the class.
    recipe : functools.partial
        The call that makes this class. Instances can be pickled if it can.

    Returns
    -------
    type

    Examples
    --------
    >>> from mlr3torch_py import CallbackSet
    >>> def make(name):
    ...     return recipe_class(name, CallbackSet, {}, partial(make, name))
    >>> make("Noop")()
    Noop()
    """

    def reduce_ex(self: Any, protocol: Any) -> Any:
        if type(self) is not made:  # but a subclass, which may belong to a module
            return super(made, self).__reduce_ex__(protocol)
        return _revive, (recipe, self.__getstate__())

    own = {"__module__": recipe.func.__module__, "__reduce_ex__": reduce_ex}
    made: type[Any] = type(name, (base,), own | dict(namespace))
    return made


def _revive(recipe: partial[type[Any]], state: dict[str, Any]) -> Any:
    revived = object.__new__(recipe())
    revived.__dict__.update(state)
    return revived
