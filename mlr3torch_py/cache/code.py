"""The code that a forward pass may reach, as a hash that is the same in other processes."""

from __future__ import annotations

import builtins
import functools
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec, resolve_name
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any, Final

import torch
from torch import nn
from xxhash import xxh3_128_hexdigest

from mlr3torch_py.cache.classes import is_foreign, is_known_class, is_special, looks_at_mode
from mlr3torch_py.cache.code_objects import (
    described,
    globals_in,
    imports_in,
    is_known,
    is_of_python,
    names_in,
    version_of_package,
)
from mlr3torch_py.cache.fingerprint import is_setting
from mlr3torch_py.cache.portable import NotPortableError, Writer
from mlr3torch_py.cache.snapshot import Snapshot

__all__ = ["Code"]

_GRAD_MODES: Final = frozenset({"is_grad_enabled", "is_inference_mode_enabled", "is_inference", "requires_grad"})
_SLOT: Final = (GetSetDescriptorType, MemberDescriptorType)
_LOCKS: Final = (type(threading.Lock()), type(threading.RLock()))
_MISSING: Final = "missing"
_MAX_KNOWN: Final = 64
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})


_lock: Final = threading.Lock()
_known: Final[dict[tuple[tuple[str, type], ...], Code]] = {}


@dataclass(frozen=True, slots=True)
class Code:
    """What the code of a module's forward pass is, and what it looks at.

    Functions are followed to whatever they name: globals, methods, functions in closures and in attributes. What
    belongs to Python, or to an installed package such as torch, is known by its version, and its layers by the code of
    their methods, too.

    Parameters
    ----------
    digest : str
        The same in other processes for the same code.
    moded : tuple of int
        The layers whose ``training`` the code may look at, in the order of ``modules()``.
    sees_grad_mode : bool
        Whether it may look at whether gradients are enabled.
    snapshot : Snapshot
        The functions, classes and globals that were read.

    Examples
    --------
    >>> code = Code.of(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    >>> code.moded, code.sees_grad_mode
    ((2,), False)
    """

    digest: str
    moded: tuple[int, ...]
    sees_grad_mode: bool
    snapshot: Snapshot = field(compare=False, repr=False)

    @classmethod
    def of(cls, module: nn.Module) -> Code:
        """Read the code of a module and of all modules in it.

        Raises
        ------
        NotPortableError
            If some of it cannot be read; the message names it.
        """
        classes = tuple((name, type(layer)) for name, layer in module.named_modules())
        if (
            (found := _known.get(classes)) is not None
            and found.snapshot.is_current
            and not _has_unusual_settings(module)
        ):
            return found
        reader = _Reader(module)
        reader.read()
        code = cls(reader.digest, reader.moded, bool(_GRAD_MODES & reader.names), reader.snapshot)
        if reader.snapshot.is_lasting:
            with _lock:
                _known[classes] = code
                while len(_known) > _MAX_KNOWN:
                    del _known[next(iter(_known))]
        return code


class _Writer(Writer):
    """Write values, with numbers in place of functions and classes, which are read in their turn."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__(reader.places)
        self._reader = reader

    def persistent_id(self, value: Any) -> Any:
        """Return what stands for a value; None for the value itself."""
        if isinstance(value, (set, frozenset)):
            return type(value).__name__, sorted(map(self._reader.describe, value))
        for kinds, stand_in in _STAND_INS:
            if isinstance(value, kinds):
                return stand_in(self._reader, value)
        if not isinstance(value, torch.Tensor) and "__wrapped__" in getattr(value, "__dict__", ()):
            return "wrapped", value.__wrapped__  # by functools.lru_cache
        if isinstance(value, nn.Module) and id(value) not in self._reader.places:
            return "module", type(value), vars(value)
        return super().persistent_id(value)


class _Reader:
    """Read the code of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = list(module.modules())
        self.places: Mapping[int, int] = {id(layer): i for i, layer in enumerate(self._layers)}
        self.names: set[str] = {"forward", "__call__", "__getattr__"}  # that the code names
        self._is_moded_everywhere = False
        self._records: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._found: list[Any] = []  # functions and classes, by number
        self._versions: dict[str, str] = {"torch": torch.__version__}
        self._members: set[tuple[int, int, str]] = set()
        self._own = {type(layer) for layer in self._layers}
        self.snapshot: Snapshot = Snapshot()

    def read(self) -> None:
        """Read everything that can be reached."""
        for layer in self._layers:
            self.number(type(layer))
        for layer in self._layers:
            for name, value in _unusual_settings(layer):
                self.snapshot.is_lasting = False
                self._attempt(f"the {name!r} of its {type(layer).__name__}", partial(self.describe, value))
        for cls in dict.fromkeys(map(type, self._layers)):
            self._attempt(f"the class {cls.__name__}", partial(self._record_order, cls))
        n_read = 0
        while n_read < len(self._found) or self._read_members():
            for one in self._found[n_read:]:
                n_read += 1
                if isinstance(one, FunctionType):
                    self._attempt(f"the code of {one.__qualname__}()", partial(self._read_function, one))

    @property
    def digest(self) -> str:
        """A hash of everything that was read."""
        known = repr((sys.version_info[:2], sorted(self._versions.items()))).encode()
        return xxh3_128_hexdigest(b"".join(len(one).to_bytes(8, "big") + one for one in [known, *self._records]))

    @property
    def moded(self) -> tuple[int, ...]:
        """The layers whose mode the code may look at."""
        if self._is_moded_everywhere:
            return tuple(range(len(self._layers)))
        looking = [layer for layer in self._layers if looks_at_mode(type(layer))]
        return tuple(sorted({self.places[id(one)] for layer in looking for one in layer.modules()}))

    def describe(self, value: Any) -> bytes:
        """Write a value, and note the functions and classes in it."""
        return _Writer(self).bytes_of(value)

    def number(self, value: FunctionType | type) -> int:
        """Return the number of a function or class, which is read later."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._found)
            self._found.append(value)
        return self._numbers[id(value)]

    def function(self, value: FunctionType) -> tuple[Any, ...]:
        """Describe a function: by its name if its version is known, by its code otherwise."""
        name = value.__globals__.get("__name__", "")
        if is_known(name) and not value.__closure__:
            self.note_version(name)
            return "function", name, value.__qualname__
        return "function", self.number(value)

    def cls(self, value: type) -> tuple[Any, ...]:
        """Describe a class."""
        self._own.discard(value)
        if is_known_class(value):
            self.note_version(value.__module__)
            return "class", value.__module__, value.__qualname__
        return "class", value.__qualname__, self.number(value), value.__bases__

    def compiled(self, value: Any) -> tuple[Any, ...]:
        """Describe a function in C: by its name, and the version of its package."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, (type(None), ModuleType)):
            self.note_version(value.__module__ or getattr(owner, "__name__", ""))
            return "compiled", value.__module__, value.__qualname__
        return "method", owner, value.__name__

    def module(self, value: ModuleType) -> tuple[Any, ...]:
        """Describe a module of Python by name."""
        self.note_version(value.__name__)
        return "module", value.__name__

    def note_version(self, name: str) -> None:
        """Note the version of a package.

        Raises
        ------
        NotPortableError
            If it is not known.
        """
        top = name.partition(".")[0]
        if top in self._versions or not top or is_of_python(top):
            return
        version = version_of_package(top)
        if not version:
            raise NotPortableError(f"the version of {top}")
        self._versions[top] = version

    def _attempt(self, what: str, read: Callable[[], object]) -> None:
        try:
            read()
        except NotPortableError as error:
            raise NotPortableError(f"{what}, which uses {error}") from error
        except Exception as error:  # of whatever kind: objects decide how they are written
            raise NotPortableError(f"{what}: {error}") from error

    def _record(self, *value: Any) -> None:
        self._records.append(self.describe(value))

    def _record_order(self, cls: type) -> None:
        self._record(self._numbers[id(cls)], [one.__qualname__ for one in cls.__mro__])

    def _read_function(self, function: FunctionType) -> None:
        code = function.__code__
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        closure = tuple((name, cell.cell_contents) for name, cell in cells if name != "__class__")
        names = names_in(code)
        self.names |= names
        used = []
        if not is_known(function.__globals__.get("__name__", "")):
            self._is_moded_everywhere |= "training" in names
            used = [(name, self._used(function, name)) for name in globals_in(code)]
            used += [(name, self._imported(function, n_up, name)) for n_up, name in imports_in(code)]
        number = self._numbers[id(function)]
        contents = function.__defaults__, function.__kwdefaults__, closure
        self.snapshot.add_function(function, contents)
        self._record(number, described(code), *contents, used)

    def _used(self, function: FunctionType, name: str) -> Any:
        """Return what stands for a global of a function."""
        scope = function.__globals__ if name in function.__globals__ else vars(builtins)
        value = scope.get(name, _MISSING)
        self.snapshot.add_entry(function.__globals__, name)
        self.snapshot.add_entry(scope, name)
        self.snapshot.add_value(value)
        return self._followed(value, names_in(function.__code__), set()) if isinstance(value, ModuleType) else value

    def _imported(self, function: FunctionType, n_up: int, name: str) -> Any:
        """Return what stands for something that a function imports when it is called."""
        package = function.__globals__.get("__package__") or ""
        full = resolve_name("." * n_up + name, package) if n_up else name
        if is_known(full):
            return full
        if full not in sys.modules:
            if find_spec(full.partition(".")[0]) is not None:
                self.note_version(full)
            return full
        self.snapshot.add_entry(sys.modules, full)
        return self._followed(sys.modules[full], names_in(function.__code__), set())

    def _followed(self, module: ModuleType, names: frozenset[str], seen: set[str]) -> Any:
        """Describe what a function may take from a module of Python; of a known one, what was put there by others."""
        seen.add(module.__name__)
        is_part = is_foreign if is_known(module.__name__) else lambda _: True
        found: list[Any] = [module]
        for name in sorted(names & vars(module).keys()):
            one = vars(module)[name]
            if not isinstance(one, ModuleType):
                self.snapshot.add_entry(vars(module), name)
                if is_part(one):
                    self.snapshot.add_value(one)
                    found.append((name, one))
            elif one.__name__ not in seen:
                self.snapshot.add_entry(vars(module), name)
                found.append((name, self._followed(one, names, seen)))
        return found

    def _read_members(self) -> bool:
        """Read the attributes of classes that the code names; return whether there were any."""
        is_news = False
        for number, cls in enumerate(self._found):
            if isinstance(cls, type):
                for owner, name in self._named_members(cls):
                    if (number, id(owner), name) not in self._members:
                        self._members.add((number, id(owner), name))
                        is_news = True
                        what = f"the {name!r} of {owner.__name__}"
                        self._attempt(what, partial(self._read_member, number, owner, name))
        return is_news

    def _named_members(self, cls: type) -> Iterator[tuple[type, str]]:
        for owner in cls.__mro__:
            if owner in {object, nn.Module} or (is_known_class(owner) and not issubclass(cls, nn.Module)):
                continue
            self.snapshot.add_class(owner)
            for name, value in sorted(vars(owner).items()):
                is_implicit = is_special(name, value) and not (name == "__init__" and cls in self._own)
                if name in self.names or is_implicit:
                    yield owner, name

    def _read_member(self, number: int, owner: type, name: str) -> None:
        value = vars(owner)[name]
        if not is_known_class(owner):
            self.snapshot.add_value(value)
            self._record(number, owner.__qualname__, name, value)
        elif isinstance(value, FunctionType):
            self.note_version(owner.__module__)
            self.names |= names_in(value.__code__)
            self.snapshot.add_function(value, ())
            self._record(number, name, described(value.__code__))


_STAND_INS: Final[tuple[tuple[Any, Callable[[_Reader, Any], Any]], ...]] = (
    (FunctionType, _Reader.function),
    (type, _Reader.cls),
    (ModuleType, _Reader.module),
    (BuiltinFunctionType, _Reader.compiled),
    ((*_LOCKS, io.IOBase), lambda _, value: (type(value).__name__,)),
    (ContextVar, lambda _, value: ("variable", value.name, value.get(None))),
    (logging.Logger, lambda _, value: ("logger", value.name)),
    ((staticmethod, classmethod), lambda _, value: (type(value).__name__, value.__func__)),
    (property, lambda _, value: ("property", value.fget, value.fset, value.fdel)),
    (functools.cached_property, lambda _, value: ("cached_property", value.func)),
    (_SLOT, lambda _, value: ("slot", value.__name__)),
)


def _unusual_settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """List the attributes of a layer that may hold functions or objects."""
    for name, value in sorted(vars(layer).items()):
        if is_setting(name) and type(value) not in _PLAIN:
            is_flat = type(value) in {tuple, list} and all(type(one) in _PLAIN for one in value)
            if not (is_flat or isinstance(value, torch.Tensor)):
                yield name, value


def _has_unusual_settings(module: nn.Module) -> bool:
    return any(True for layer in module.modules() for _ in _unusual_settings(layer))
