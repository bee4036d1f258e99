"""Walk everything that objects hold: attributes, items, arguments of partials, and what functions refer to."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from logging import Logger
from types import BuiltinMethodType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final
from weakref import ReferenceType, WeakSet

import numpy as np
import torch
from torch import nn

from mlr3torch_py.names import is_note
from mlr3torch_py.network.unwrap import bare

__all__ = [
    "GLOBALS",
    "all_attributes",
    "attributes_of_array",
    "held_values",
    "holds_nothing_more",
    "is_of_library",
    "is_of_this_package",
    "items_in",
    "own_attributes",
    "plain_values",
    "walk",
]

GLOBALS: Final = "__globals__"

_LEAVES: Final = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...), type(NotImplemented)),
    *(torch.Tensor, torch.dtype, torch.device, torch.Size, np.ndarray, np.generic, np.dtype),
    *(ModuleType, CodeType, ReferenceType, WeakSet, property, staticmethod, classmethod),
    Logger,  # which leads to all others
    torch.autocast,  # which keeps what it has found at its last entry
)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


_CONTEXT_MANAGER: Final = type(_nothing())
_CONTAINERS: Final = (list, tuple, set, frozenset, deque)
_LEAF_TYPES: Final = frozenset(_LEAVES) | {nn.Parameter}

_TENSORS: Final = frozenset({torch.Tensor, nn.Parameter})
_ARRAYS: Final = frozenset({np.ndarray, np.memmap})
# Libraries note on a tensor how they handle it: `_is_param`, `_is_hf_initialized`, `_dynamo_static_input_type`.
_NOTES_OF_LIBRARIES: Final = ("._is_", "._dynamo_")

_DEPENDENCIES: Final = ("torch", "skorch", "sklearn", "scipy", "pandas", "numpy", "mlr3torch_py")
_LIBRARIES: Final = (sys.stdlib_module_names - {"__main__"}).union(_DEPENDENCIES)


def walk(
    roots: Mapping[str, object],
    skip: Iterable[object] = (),
    *,
    with_plain: bool = False,
    is_left_out: Callable[[Any], bool] = lambda _: False,
) -> Iterator[tuple[str, Any]]:
    """Yield every object that some objects hold, at any depth, with its path.

    Values that hold nothing, such as numbers, strings, tensors and arrays, are left out. An object is yielded once,
    at the first of its places.

    Parameters
    ----------
    roots : mapping of str to object
        Where to start; the roots themselves are yielded too.
    skip : iterable of object
        Objects that are neither yielded nor searched.
    with_plain : bool
        Whether to yield lists, tuples, sets and dicts of nothing but values that hold nothing, of which data may have
        many.
    is_left_out : callable
        Tells of an object whether it is neither yielded nor searched.

    Yields
    ------
    tuple of (str, object)
        Global names that a function refers to are under ``__globals__``.

    Examples
    --------
    >>> from functools import partial
    >>> from random import Random
    >>> [path for path, found in walk({"f": partial(print, sep=[Random(1)])}) if isinstance(found, Random)]
    ["f.keywords['sep'][0]"]
    """
    alive = [*skip]
    seen = set(map(id, alive))
    stack = list(reversed(list(roots.items())))
    while stack:
        path, value = stack.pop()
        if type(value) in _LEAF_TYPES or id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen.add(id(value))
        alive.append(value)  # so that no other object gets its id
        if is_left_out(value):
            continue
        yield path, value
        stack += reversed(
            [
                (path + suffix, inner)
                for suffix, inner in _held_by(value)
                if type(inner) not in _LEAF_TYPES and (with_plain or not holds_nothing_more(inner))
            ]
        )


def held_values(
    roots: Mapping[str, object], skip: Iterable[object] = (), *, is_left_out: Callable[[Any], bool] = lambda _: False
) -> dict[str, Any]:
    """Return everything that some objects hold, at any depth, by path.

    Parameters
    ----------
    roots : mapping of str to object
    skip, is_left_out
        As in `walk`.

    Returns
    -------
    dict

    Examples
    --------
    >>> held_values({"sampler": {"epochs": [3]}})
    {"sampler['epochs']": [3], "sampler['epochs'][0]": 3}
    """
    return {
        path + end: inner
        for path, value in walk(roots, skip, with_plain=True, is_left_out=is_left_out)
        for held in _held_by(value, with_leaves=True)
        for end, inner in (held, *((held[0] + name, one) for name, one in attributes_of_array(held[1]).items()))
    }


def plain_values(roots: Mapping[str, object], skip: Iterable[object] = ()) -> dict[str, Any]:
    """Return the numbers, strings, tensors and arrays that some objects hold, at any depth, by path.

    Parameters
    ----------
    roots : mapping of str to object
    skip : iterable of object
        As in `walk`.

    Returns
    -------
    dict

    Examples
    --------
    >>> plain_values({"sampler": {"epoch": 3}})
    {"sampler['epoch']": 3}
    """
    return {
        path + end: inner
        for path, value in walk(roots, skip, with_plain=True)
        if path.count(GLOBALS) <= 1 and not isinstance(value, set | frozenset)  # which have no order
        for end, inner in _held_by(value, with_leaves=True)
        if isinstance(inner, bool | int | float | str | torch.Tensor | np.ndarray | np.generic)
    }


def own_attributes(value: object) -> dict[str, Any]:
    """Copy the attributes that an object keeps by name; empty if it keeps none, or shows others in their place.

    Examples
    --------
    >>> own_attributes(nn.ReLU(inplace=True))["inplace"], own_attributes(1)
    (True, {})
    """
    try:
        held = object.__getattribute__(value, "__dict__")
    except Exception:  # it has slots, is made in C, or has a property of that name
        return {}
    return dict.copy(held) if isinstance(held, dict) else {}


def all_attributes(value: object) -> dict[str, Any]:
    """Copy what an object keeps that is neither a module, a function nor a class, slots and arguments included.

    Examples
    --------
    >>> all_attributes(partial(print, 1))
    {'.func': <built-in function print>, '.args': (1,), '.keywords': {}}
    """
    return {end: inner for end, inner in (*_bound(value), *_attributes(value)) if end != ".__func__"}


def attributes_of_array(value: object) -> Mapping[str, Any]:
    """Copy the attributes of a tensor or an array, and its class if that is a special one; empty for all others.

    What libraries and this package note on a tensor is left out.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(2))
    >>> weight.scale = 0.5
    >>> attributes_of_array(weight), attributes_of_array(np.ones(2))
    ({'.scale': 0.5}, {})
    """
    kind, special = type(value), dict[str, Any]()
    if kind in _TENSORS:
        if not value.__dict__:
            return special
    elif kind in _ARRAYS or not isinstance(value, (torch.Tensor, np.ndarray)):
        return special
    else:
        special[".__class__"] = kind
        if kind.__module__.startswith("torch."):  # such as FakeTensor, which keeps its machinery there
            return special
    found = all_attributes(value).items()
    return special | {end: one for end, one in found if not (is_note(end) or end.startswith(_NOTES_OF_LIBRARIES))}


def items_in(value: object) -> Sequence[Any] | None:
    """List the items of a container without running code of its class, those of a set in one; None for others.

    Examples
    --------
    >>> items_in({"a": 1}), items_in([1, 2]), items_in("text")
    (('a', 1), (1, 2), None)
    """
    if isinstance(value, dict):
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # which has an order of its own
        keys = tuple(kind.__iter__(value))
        return *keys, *(dict.__getitem__(value, key) for key in keys)
    for kind in _CONTAINERS:
        if isinstance(value, kind):
            items = kind.__iter__(value)
            return (frozenset(items),) if kind in (set, frozenset) else tuple(items)
    return None


def is_of_this_package(value: object) -> bool:
    """Whether a class or a function belongs to this package.

    Examples
    --------
    >>> is_of_this_package(nn.Linear)
    False
    """
    return str(getattr(value, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def holds_nothing_more(value: Any) -> bool:
    """Whether a value is a list, tuple, set or dict of values that hold nothing.

    Examples
    --------
    >>> holds_nothing_more({"table": torch.ones(2)}), holds_nothing_more([[1]])
    (True, False)
    """
    if type(value) is OrderedDict and not value:  # as modules have several
        return not vars(value)
    items = value.values() if type(value) is dict else value if type(value) in (list, tuple, set) else None
    return items is not None and _LEAF_TYPES.issuperset(map(type, items))


def _held_by(value: Any, *, with_leaves: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an object holds directly, with the ends of their paths."""
    left_out = frozenset[type]() if with_leaves else _LEAF_TYPES
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in dict.items(value) if type(item) not in left_out)
        if type(value) is dict:
            return
    elif isinstance(value, _CONTAINERS):
        kind: Any = next(one for one in _CONTAINERS if isinstance(value, one))
        kept = kind.__iter__(value)  # the iterator of a subclass may load things
        yield from ((f"[{i}]", item) for i, item in enumerate(kept) if type(item) not in left_out)
        if type(value) in (list, tuple):
            return
    elif isinstance(value, FunctionType):
        yield from _held_by_function(value)
    else:
        yield from _bound(value)
    if isinstance(value, nn.Module):
        yield from ((end, inner) for end, inner in _held_by_module(value) if type(inner) not in left_out)
    elif not isinstance(value, type):
        yield from _attributes(value)
    own = frozenset[str]() if isinstance(value, type) else frozenset(own_attributes(value))
    yield from _held_by_class(value if isinstance(value, type) else type(value), own)


def _bound(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is bound to a function."""
    if isinstance(value, partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, MethodType | BuiltinMethodType) and not isinstance(value.__self__, ModuleType):
        yield ".__self__", value.__self__
        yield ".__func__", getattr(value, "__func__", None)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in own_attributes(value).items():
        if not (name == "gen" and isinstance(value, _CONTEXT_MANAGER)):  # made again for each call of what it decorates
            yield f".{name}", inner
    for name, slot in _slots(type(value)):  # type: ignore[arg-type]
        with suppress(AttributeError):  # it is not set
            yield f".{name}", slot.__get__(value)


def _held_by_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    network = bare(module)
    if network is not module:
        yield "", network
        return
    others = ("_modules", "_compiled_call_impl")  # by which the calls of a module are compiled, or cached
    yield from ((f".{name}", inner) for name, inner in vars(module).items() if name not in others)
    yield from ((f".{name}", child) for name, child in module._modules.items())


def _held_by_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    yield ".__dict__", function.__dict__
    names = _names_in(function.__code__)
    for name in names:
        yield from _named(f".{GLOBALS}.{name}", function.__globals__.get(name), names)


def _named(path: str, value: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield a global value, or what a module or class holds under the names in the code of a function."""
    if isinstance(value, ModuleType):
        for name in names:
            inner = vars(value).get(name)
            if isinstance(inner, ModuleType) and inner.__name__ == f"{value.__name__}.{name}":
                if not _is_library(inner.__name__):
                    yield from _named(f"{path}.{name}", inner, names)
            elif name in vars(value) and not is_of_library(inner):
                yield f"{path}.{name}", inner
    elif not isinstance(value, type):
        if not is_of_library(value):
            yield path, value
    elif not _is_library(value.__module__):
        held = ((name, vars(one)[name]) for one in value.__mro__ for name in names if name in vars(one))
        yield from ((f"{path}.{name}", inner) for name, inner in held if not callable(inner))


def _held_by_class(cls: type, own: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Yield what the class of an object holds, functions included; nothing for those of Python and of torch.

    What the object has of its own by the same name comes first, and what a class has before what its parents have.
    """
    seen = set(own)
    for one in cls.__mro__:
        if _is_library(one.__module__):
            continue
        found = [(name, inner) for name, inner in vars(one).items() if name not in seen]
        seen.update(vars(one))
        for name, inner in found:
            inner = getattr(inner, "fget", None) or getattr(inner, "__func__", inner)
            if not (name.startswith("__") and not callable(inner)):
                yield f".{name}", inner


def is_of_library(value: Any) -> bool:
    """Whether a function belongs to Python or to our dependencies, or a value is a logger."""
    if isinstance(value, FunctionType | BuiltinMethodType):
        return _is_library(value.__module__ or "")
    return isinstance(value, Logger)  # which leads to all others


@cache
def _is_library(module: str) -> bool:
    """Whether a module is one of Python or of our dependencies, whose only generators are the global ones."""
    return module.partition(".")[0] in _LIBRARIES


@lru_cache(maxsize=10_000)
def _names_in(code: CodeType) -> tuple[str, ...]:
    inner = (name for const in code.co_consts if isinstance(const, CodeType) for name in _names_in(const))
    return tuple(dict.fromkeys((*code.co_names, *inner)))


@lru_cache(maxsize=10_000)
def _slots(cls: type) -> tuple[tuple[str, MemberDescriptorType], ...]:
    """List the slots of a class, by the names that they have in it, which are others for private ones."""
    members = (item for one in cls.__mro__ if "__slots__" in vars(one) for item in vars(one).items())
    return tuple((name, slot) for name, slot in members if isinstance(slot, MemberDescriptorType))
