"""Describe the modules, functions and other objects that a net trains with, and compare two descriptions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from xxhash import xxh3_64_hexdigest

from mlr3torch_py.checkpoint.settings import as_data, has_no_repr, own_settings, settings_by_name
from mlr3torch_py.network.holdings import is_of_library, own_attributes
from mlr3torch_py.network.unwrap import named_modules
from mlr3torch_py.protocols import Net

__all__ = ["different_objects", "objects_of"]

_PLAIN: Final = (bool, int, float, str, type(None), np.ndarray, np.generic, torch.Tensor)
_LONGEST: Final = 200
_INSTALLED: Final = ("site-packages", "dist-packages")
_HAS_DOCSTRING: Final = 0x4000000  # a flag of Python 3.13


def objects_of(net: Net) -> dict[str, dict[str, Any]]:
    """Describe what tells the objects apart that a net trains with, in any process and wherever their code stands.

    Returns
    -------
    dict
        By place, the ``classes`` of modules, the ``values`` that modules, samplers and other objects were made with and
        that functions refer to, and hashes of the ``code`` of functions; under ``values`` also what a class of net of
        one's own takes.

    Examples
    --------
    >>> net = iris_net(criterion=nn.CrossEntropyLoss(label_smoothing=0.1)).initialize()
    >>> objects_of(net)["classes"], objects_of(net)["values"]["criterion.label_smoothing"]
    ({'criterion': 'CrossEntropyLoss'}, 0.1)
    """
    found: dict[str, dict[str, Any]] = {"classes": {}, "values": {}, "code": {}}
    for name, value in own_settings(net).items():
        if _is_plain(value):
            found["values"][name] = _short(as_data(value))
    for name, value in (settings_by_name(net) | own_settings(net)).items():
        _describe(name, value, found, ())
    return found


def different_objects(kept: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what differs between two descriptions, apart from settings that only one of them has."""
    there, now = kept["classes"], here["classes"]
    classes = [
        f"{place} ({now.get(place, 'nothing')} here, {there.get(place, 'nothing')} there)"
        for place in sorted(there.keys() | now.keys())
        if there.get(place) != now.get(place) and {place.partition(".")[0]} <= there.keys() & now.keys()
    ]
    values = [
        f"{place} ({value!r} here, {kept['values'][place]!r} there)"
        for place, value in here["values"].items()
        if place in kept["values"] and kept["values"][place] != value
    ]
    code = [
        f"{place.partition(' ')[0]} (a function with other code)"
        for place, code in here["code"].items()
        if place in kept["code"] and kept["code"][place] != code
    ]
    return classes + values + code


def _describe(place: str, value: Any, found: Mapping[str, dict[str, Any]], around: tuple[int, ...]) -> None:
    """Describe an object and those inside it, unless it is one of those around it."""
    if id(value) in around or isinstance(value, (type, *_PLAIN)):
        return
    if isinstance(value, nn.Module):
        for path, module in named_modules(value):
            _describe_module(f"{place}.{path}".rstrip("."), module, found)
        return
    if isinstance(value, FunctionType):
        if is_of_library(value) or any(name in value.__code__.co_filename for name in _INSTALLED):
            return
        code = repr(_code(value.__code__))
        found["code"][f"{place} {sys.implementation.cache_tag} {sys.flags.optimize}"] = xxh3_64_hexdigest(code.encode())
        found["values"].update(_plain_ones(place, _variables(value)))
    elif has_no_repr(value) and not place.startswith("callbacks__"):
        found["values"].update(_plain_ones(place, _arguments(value)))
    for end, inner in _inside(value):
        _describe(f"{place}.{end}", inner, found, (*around, id(value)))


def _describe_module(place: str, module: nn.Module, found: Mapping[str, dict[str, Any]]) -> None:
    becomes: Any = getattr(type(module), "cls_to_become", None)  # of a lazy module, whose arguments change, too
    found["classes"][place] = (becomes or type(module)).__qualname__
    if becomes is None:
        found["values"].update(_plain_ones(place, _arguments(module)))


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield "function", value.__func__
    elif isinstance(value, FunctionType):
        yield from _variables(value).items()


def _variables(function: FunctionType) -> dict[str, Any]:
    """Return the defaults of a function, and what it refers to in the functions around it."""
    code, found = function.__code__, dict(function.__kwdefaults__ or {})
    positional = code.co_varnames[: code.co_argcount]
    found |= dict(zip(reversed(positional), reversed(function.__defaults__ or ()), strict=False))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell
            continue
    return found


def _arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of its constructor that an object keeps under their names."""
    try:
        names = inspect.signature(type(value)).parameters
    except (TypeError, ValueError):  # some classes written in C have no signature
        return {}
    return {name: one for name, one in own_attributes(value).items() if name in names}


def _plain_ones(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{place}.{name}": _short(as_data(value)) for name, value in values.items() if _is_plain(value)}


def _short(value: Any) -> Any:
    """Return a hash of a long list or text, since each checkpoint holds all values."""
    return value if len(text := repr(value)) <= _LONGEST else f"hash {xxh3_64_hexdigest(text.encode())}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _code(code: CodeType) -> tuple[Any, ...]:
    """Return what code does, apart from where it stands and from its docstring."""
    has_docstring = sys.version_info < (3, 13) or code.co_flags & _HAS_DOCSTRING
    constants = [_constant(one) for one in code.co_consts[1 if has_docstring else 0 :]]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _constant(value: Any) -> Any:
    if isinstance(value, frozenset):  # whose order differs from process to process
        return sorted(map(repr, value))
    return _code(value) if isinstance(value, CodeType) else value
