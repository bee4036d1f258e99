"""What code gets from where nothing is compared: files, the environment, registries of modules and of operations."""

from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Iterable, Sequence, Set
from types import FunctionType, ModuleType
from typing import Any, Final

import torch

from mlr3torch_py.cache.identity.classes import is_dunder
from mlr3torch_py.cache.identity.code_objects import chains_in, imports_in, is_known, names_in, texts_in

__all__ = ["looked_up_modules", "taken_from_outside"]

# Whatever code takes from these modules of Python, but for a few names, comes from outside.
_OUTSIDE: Final = frozenset(
    {"glob", "importlib", "linecache", "os", "pathlib", "pkgutil", "runpy", "shelve", "socket", "subprocess"}
)
_INSIDE: Final = frozenset({"PathLike", "PurePath", "fspath", "linesep", "path", "sep"})
# What other packages call the functions that read, or that find a module.
_READING: Final = re.compile(
    r"((safe_)?load|open|read|File)(_.*)?|imread|loadtxt|fromfile|genfromtxt|memmap|ZipFile|locate|getmodule|__import__"
)
_METHODS: Final = frozenset({"read_bytes", "read_text"})
_OF_TORCH: Final = frozenset({"aten", "higher_order", "mkldnn", "prim", "prims", "quantized"})
# What runs when an object is made, copied or dropped, and not when code uses it.
_MAKING: Final = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "__del__"})


def taken_from_outside(functions: Iterable[FunctionType], named: Set[str], *, names_anything: bool) -> list[str]:
    """Say what functions get from outside, those aside that run only while objects are made.

    Parameters
    ----------
    functions : iterable of FunctionType
    named : set of str
        What any of them names.
    names_anything : bool
        Whether there are functions among them that none of them names.
    """
    names, left, found = frozenset({"forward"}), dict.fromkeys(functions), list[str]()
    while running := [one for one in left if _may_run(one, names, named, names_anything=names_anything)]:
        for one in running:
            del left[one]
        names = names.union(*(names_in(one.__code__) for one in running))
        found += [f"what {one.__qualname__}() gets by {source}" for one in running for source in _sources(one)]
    return found


def looked_up_modules(function: FunctionType) -> list[ModuleType]:
    """List the modules that a function may look up by a text in its code, its own one included."""
    if not _sources(function):
        return []
    names = {str(function.__globals__.get("__name__", "")), *texts_in(function.__code__)}
    found = (sys.modules.get(name) for name in sorted(names))
    return [one for one in found if isinstance(one, ModuleType)]


def _may_run(function: FunctionType, names: Set[str], named: Set[str], *, names_anything: bool) -> bool:
    *around, name = function.__qualname__.split(".")
    if name in _MAKING:
        return not names.isdisjoint(around[-1:])
    is_nameless = around[-1:] == ["<locals>"] or name == "<lambda>" or not (names_anything or name in named)
    return name in names or is_dunder(name) or is_nameless


def _sources(function: FunctionType) -> list[str]:
    """List by what a function gets things from outside, such as ``sys.modules`` and ``np.load``."""
    code, scope = function.__code__, function.__globals__
    if is_known(str(scope.get("__name__", ""))):
        return []
    chains = [(scope.get(chain[0], getattr(builtins, chain[0], None)), chain) for chain in chains_in(code)]
    for n_up, full in imports_in(code):
        module = None if n_up else sys.modules.get(full)
        if isinstance(module, ModuleType) and is_known(full):  # another one is there to prevent an import
            chains += [(module, (full, name)) for name in names_in(code) & vars(module).keys()]
    found = {_source(first, chain) for first, chain in chains} | (_METHODS & names_in(code))
    return sorted(found - {""})


def _source(value: Any, chain: Sequence[str]) -> str:
    """Return the start of a chain of names, such as ``os.environ.get``, that leads outside; empty if none does."""
    owner = None
    for i, name in enumerate(chain):
        if i:
            owner, value = value, vars(value).get(name)
        if _is_outside(owner, name, value, "".join(chain[i + 1 : i + 2])):
            return ".".join(chain[: i + 1])
        if not isinstance(value, ModuleType):
            break
    return ""


def _is_outside(owner: Any, name: str, value: Any, following: str) -> bool:
    """Whether a value leads outside, which is a member of a module, or a global."""
    if value is torch.ops or value is torch.classes:
        return not (following in _OF_TORCH or (following and is_known(following)))
    if value is sys.modules or value is os.environ:
        return True
    if isinstance(value, ModuleType):
        return False
    home = _told_by(value, "__module__") if owner is None else owner.__name__
    if owner is None:
        name = _told_by(value, "__name__")
    is_leading = home.partition(".")[0] in _OUTSIDE and name not in _INSIDE
    return is_leading or (bool(_READING.fullmatch(name)) and is_known(home))


def _told_by(value: Any, name: str) -> str:
    """Return what an object says of itself; objects decide what they do when they are asked."""
    try:
        return str(getattr(value, name, None) or "")
    except Exception:
        return ""
