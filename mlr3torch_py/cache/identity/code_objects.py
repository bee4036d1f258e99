"""Code objects as values, and what they name."""

from __future__ import annotations

import dis
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from types import CodeType
from typing import Any, Final

__all__ = [
    "SCOPES",
    "Import",
    "chains_in",
    "described",
    "globals_in",
    "imports_in",
    "is_known",
    "is_of_python",
    "looks_up",
    "names_in",
    "texts_in",
    "version_of_package",
]

_STDLIB: Final = sysconfig.get_paths()["stdlib"]
_THIS_PACKAGE: Final = __name__.partition(".")[0]
_INSTALLED: Final = ("site-packages", "dist-packages")
_GLOBALS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTES: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_SILENT: Final = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL"})

# Functions that find things by a text, which may be put together: among globals, or among attributes.
SCOPES: Final = frozenset({"globals", "locals", "vars", "eval", "exec"})
_LOOK_UPS: Final = frozenset({"getattr", "attrgetter", "methodcaller", "__dict__", "__getattribute__", "__mro__"})

Import = tuple[int, str]


def described(code: CodeType) -> Any:
    """Describe a code object by plain values, without the place where it was written."""
    constants = [described(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    flags = code.co_flags, code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount
    tables = code.co_code, getattr(code, "co_exceptiontable", b"")
    return tables, flags, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, constants


def is_known(name: str) -> bool:
    """Whether a module of Python, by name, is known by the version of Python, an installed package or this one."""
    top = name.partition(".")[0]
    if top == _THIS_PACKAGE or is_of_python(top):
        return True
    return bool(top in sys.modules and _is_installed(top) and version_of_package(top))


def is_of_python(top: str) -> bool:
    """Whether a package, by name, belongs to Python."""
    if top == "builtins" or top in sys.builtin_module_names:
        return True
    if top not in sys.stdlib_module_names or top == "__main__":
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is None or (file.startswith(_STDLIB) and not any(one in file for one in _INSTALLED))


def version_of_package(top: str) -> str:
    """Return the version of a package; empty if it has none."""
    version = getattr(sys.modules.get(top), "__version__", None)
    return version if isinstance(version, str) else _version_in_metadata(top)


def _is_installed(top: str) -> bool:
    file = getattr(sys.modules[top], "__file__", None) or ""
    return any(one in file for one in _INSTALLED) or _is_recorded(top, file)


@functools.lru_cache(1024)
def _is_recorded(top: str, file: str) -> bool:
    """Whether an installer keeps a record of a package beside it, as ``pip install --target`` does.

    For one that is installed to be edited, it does so elsewhere.
    """
    folder, name = os.path.split(file)
    if not name:
        return False
    if name.startswith("__init__."):
        folder = os.path.dirname(folder)
    records = [f"\n{one.read_text('RECORD') or ''}" for one in metadata.distributions(path=[folder])]
    return any(f"\n{top}{end}" in record for record in records for end in ("/", ".py,"))


@functools.lru_cache(1024)
def _version_in_metadata(top: str) -> str:
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        return ""


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


@functools.lru_cache(4096)
def names_in(code: CodeType) -> frozenset[str]:
    """List what a code object names, in words or as texts."""
    names = {name for one in _codes(code) for name in one.co_names}
    return frozenset(names.union(*(_words(one.co_consts) for one in _codes(code))))


def texts_in(code: CodeType) -> frozenset[str]:
    """List the texts in a code object."""
    return frozenset(text for one in _codes(code) for text in one.co_consts if isinstance(text, str))


def _words(constant: Any) -> Iterator[str]:
    """List the identifiers in a constant: a text, which may have dots, or a tuple of such."""
    if isinstance(constant, str):
        words = constant.split(".")
        yield from words if all(map(str.isidentifier, words)) else ()
    elif isinstance(constant, (tuple, frozenset)):
        for one in constant:
            yield from _words(one)


def looks_up(code: CodeType) -> bool:
    """Whether a code object may look up what it does not name: by a text that it puts together or is given."""
    return not (_LOOK_UPS.isdisjoint(names_in(code)) and SCOPES.isdisjoint(globals_in(code)))


@functools.lru_cache(4096)
def globals_in(code: CodeType) -> tuple[str, ...]:
    """List the globals that a code object looks up."""
    found = {one.argval for part in _codes(code) for one in dis.get_instructions(part) if one.opname in _GLOBALS}
    return tuple(sorted(found))


@functools.lru_cache(4096)
def chains_in(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """List the globals that a code object looks up, each with the attributes that it then asks for."""
    found: dict[tuple[str, ...], None] = {}
    for part in _codes(code):
        chain: tuple[str, ...] = ()
        for one in dis.get_instructions(part):
            if one.opname in _GLOBALS:
                found[chain], chain = None, (one.argval,)
            elif one.opname in _ATTRIBUTES and chain:
                chain = (*chain, one.argval)
            elif one.opname not in _SILENT:
                found[chain], chain = None, ()
    return tuple(chain for chain in found if chain)


@functools.lru_cache(4096)
def imports_in(code: CodeType) -> tuple[Import, ...]:
    """List what a code object imports while it runs: how many packages up, and the name there."""
    found: set[Import] = set()
    for part in _codes(code):
        instructions = list(dis.get_instructions(part))
        for i, one in enumerate(instructions):
            if one.opname == "IMPORT_NAME":
                found.add((instructions[i - 2].argval, one.argval))
    return tuple(sorted(found))
