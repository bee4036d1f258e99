"""Make classes with picklable instances inside a function."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

__all__ = ["recipe_class"]

_made_first: Final = WeakValueDictionary[Hashable, type[Any]]()  # by what they are made of


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
        The call that makes this class. Instances can be pickled if it can. In another process, and of copies, the class
        is the first that was made by the same call.

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
    with suppress(Exception):  # of whatever kind: arguments of users may have no hash
        _made_first.setdefault(_made_of(recipe), made)
    return made


def _made_of(value: Any) -> Hashable:
    """Return what is equal for recipes with equal arguments.

    Raises
    ------
    Exception
        If an argument cannot be hashed; of whatever kind.
    """
    if isinstance(value, partial):
        return value.func, value.args, _made_of(value.keywords)
    if isinstance(value, Mapping):
        return frozenset((name, _made_of(item)) for name, item in value.items())
    hash(value)
    return value  # type: ignore[no-any-return]


def _revive(recipe: partial[type[Any]], state: dict[str, Any]) -> Any:
    made = None
    with suppress(Exception):
        made = _made_first.get(_made_of(recipe))
    revived = object.__new__(made or recipe())
    revived.__dict__.update(state)
    return revived
