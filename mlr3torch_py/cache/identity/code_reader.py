"""The reading of code, from the layers of a module to whatever their forward pass may reach."""

from __future__ import annotations

import builtins
import functools
import inspect
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec, resolve_name
from operator import itemgetter
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

from mlr3torch_py.cache.identity.classes import (
    is_code,
    is_dunder,
    is_foreign,
    is_known_class,
    is_special,
    looks_at_mode,
)
from mlr3torch_py.cache.identity.code_objects import (
    SCOPES,
    described,
    globals_in,
    imports_in,
    is_known,
    is_of_python,
    looks_up,
    names_in,
    version_of_package,
)
from mlr3torch_py.cache.identity.fingerprint import settings_of
from mlr3torch_py.cache.identity.outside import looked_up_modules, taken_from_outside
from mlr3torch_py.cache.identity.portable import NotPortableError, Writer
from mlr3torch_py.cache.identity.snapshot import Snapshot
from mlr3torch_py.network.holdings import attributes_of_array

__all__ = ["CodeReader", "unusual_settings"]

_SLOT: Final = (GetSetDescriptorType, MemberDescriptorType)
_LOCKS: Final = (type(threading.Lock()), type(threading.RLock()))
_MISSING: Final = "missing"
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})


class _Writer(Writer):
    """Write values, with numbers in place of functions and classes, which are read in their turn."""

    def __init__(self, reader: CodeReader) -> None:
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


class CodeReader:
    """Read the code of a module.

    Functions, classes and modules of Python that belong to no installed package are read as far as the code names what
    is in them. Code that looks things up by texts, as ``getattr`` does, may mean all functions, classes and constants
    in them.

    Parameters
    ----------
    module : torch.nn.Module

    Attributes
    ----------
    names : set of str
        What the code names.
    lacks : list of str
        What cannot be read.
    has_settings : bool
        Whether layers hold functions or objects.
    snapshot : Snapshot
        The functions, classes and globals that were read.

    Examples
    --------
    >>> reader = CodeReader(nn.ReLU())
    >>> reader.read()
    >>> "relu" in reader.names, reader.lacks
    (True, [])
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = list(module.modules())
        self.places: Mapping[int, int] = {id(layer): i for i, layer in enumerate(self._layers)}
        self.names: set[str] = {"forward", "__call__", "__getattr__"}  # that the code names
        self._is_moded_everywhere = False
        self._records: list[bytes] = []
        self._settings: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._found: list[Any] = []  # functions and classes, by number
        self._versions: dict[str, str] = {"torch": torch.__version__}
        self._members: set[tuple[int, int, str, bool]] = set()
        self._scopes: dict[int, tuple[str, Mapping[str, Any]]] = {}  # the names of modules of Python, and their globals
        self._names_anything = False  # whether code puts together what it looks up
        self.lacks: list[str] = []
        self.has_settings = False
        self._own = {type(layer) for layer in self._layers}
        self.snapshot: Snapshot = Snapshot()

    def read(self) -> None:
        """Read everything that can be reached."""
        for layer in self._layers:
            self.number(type(layer))
        for layer in self._layers:
            for name, value in unusual_settings(layer):
                self.has_settings = True
                self._attempt(f"the {name!r} of its {type(layer).__name__}", partial(self._record_setting, value))
        for cls in dict.fromkeys(map(type, self._layers)):
            self._attempt(f"the class {cls.__name__}", partial(self._record_order, cls))
        n_read = 0
        while n_read < len(self._found) or self._read_members():
            for one in self._found[n_read:]:
                n_read += 1
                if isinstance(one, FunctionType):
                    self._attempt(f"the code of {one.__qualname__}()", partial(self._read_function, one))
        functions = [one for one in self._found if isinstance(one, FunctionType)]
        self.lacks += taken_from_outside(functions, self.names, names_anything=self._names_anything)

    @property
    def digest(self) -> str:
        """A hash of everything that was read."""
        known = repr((sys.version_info[:2], sorted(self._versions.items()))).encode()
        return _joint_hash([known, *self._records])

    @property
    def settings_digest(self) -> str:
        """A hash of the functions and objects that layers hold; their own code is part of `digest`."""
        return _joint_hash(self._settings)

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
        """Describe a module of Python by name; what code names of it is read later."""
        if is_known(value.__name__):
            self.note_version(value.__name__)
        self._scopes[id(vars(value))] = value.__name__, vars(value)
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

    def _attempt(self, what: str, read: Callable[[], object], *, is_needed: bool = True) -> None:
        """Read something; note what cannot be read, unless the code does not name it."""
        try:
            read()
        except NotPortableError as error:
            self.lacks += [f"{what}, which uses {error}"] * is_needed
        except Exception as error:  # of whatever kind: objects decide how they are written
            self.lacks += [f"{what}: {error}"] * is_needed

    def _record(self, *value: Any) -> None:
        self._records.append(self.describe(value))

    def _record_setting(self, value: Any) -> None:
        self._settings.append(self.describe(value))

    def _record_order(self, cls: type) -> None:
        self._record(self._numbers[id(cls)], [one.__qualname__ for one in cls.__mro__])

    def _read_function(self, function: FunctionType) -> None:
        code, number = function.__code__, self._numbers[id(function)]
        names = names_in(code)
        self.names |= names
        self._record(number, described(code))
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        closure = {name: cell.cell_contents for name, cell in cells if name != "__class__"}
        contents = {"__defaults__": function.__defaults__, "__kwdefaults__": function.__kwdefaults__, **closure}
        self.snapshot.add_function(function, tuple(contents.values()))
        parts: list[tuple[str, Callable[[], Any]]] = [(name, partial(_itself, one)) for name, one in contents.items()]
        if not is_known(function.__globals__.get("__name__", "")):
            self._is_moded_everywhere |= "training" in names
            self._names_anything |= looks_up(code)
            for module in looked_up_modules(function):
                self.module(module)
            if not SCOPES.isdisjoint(globals_in(code)):
                self._follow(function)
            parts += [(name, partial(self._used, function, name)) for name in globals_in(code)]
            parts += [(name, partial(self._imported, function, n_up, name)) for n_up, name in imports_in(code)]
        for name, part in parts:
            what = f"the {name!r} in the code of {function.__qualname__}()"
            self._attempt(what, partial(self._record_part, number, name, part))

    def _record_part(self, number: int, name: str, part: Callable[[], Any]) -> None:
        self._record(number, name, part())

    def _used(self, function: FunctionType, name: str) -> Any:
        """Return what stands for a global of a function."""
        scope = function.__globals__ if name in function.__globals__ else vars(builtins)
        value = scope.get(name, _MISSING)
        self.snapshot.add_entry(function.__globals__, name)
        self.snapshot.add_entry(scope, name)
        self.snapshot.add_value(value)
        return value

    def _imported(self, function: FunctionType, n_up: int, name: str) -> Any:
        """Return what stands for something that a function imports when it is called."""
        package = function.__globals__.get("__package__") or ""
        full = resolve_name("." * n_up + name, package) if n_up else name
        self.snapshot.add_entry(sys.modules, full)
        if full in sys.modules:
            return self.module(sys.modules[full])[1]
        top = full.partition(".")[0]
        if is_known(full) or find_spec(top) is not None:
            if not (is_known(full) or version_of_package(top)):
                raise NotPortableError(f"{full} before it is imported: import it at the top of the file")
            self.note_version(full)
        return full

    def _follow(self, function: FunctionType) -> None:
        """Read later what is named of the module of Python that a function is from."""
        scope = function.__globals__
        self._scopes[id(scope)] = str(scope.get("__name__", "")), scope

    def _read_members(self) -> bool:
        """Read what the code names of classes, functions and modules of Python; return whether there was anything."""
        n_read = len(self._members)
        for number, one in enumerate(self._found):
            if isinstance(one, type):
                for owner, name in self._named_members(one):
                    what = f"the {name!r} of {owner.__name__}"
                    self._read_once(what, number, owner, name, partial(self._read_member, number, owner, name))
            else:
                for name in sorted(self._named(vars(one))):
                    what = f"the {name!r} of {one.__qualname__}()"
                    self._read_once(what, number, one, name, partial(self._read_entry, number, vars(one), name))
        for module, scope in sorted(self._scopes.values(), key=itemgetter(0)):
            for name in sorted(self._named(scope)):
                read = partial(self._read_entry, module, scope, name, only_foreign=is_known(module))
                self._read_once(f"the {name!r} of {module}", 0, scope, name, read)
        return len(self._members) > n_read

    def _read_once(self, what: str, number: int, owner: Any, name: str, read: Callable[[], object]) -> None:
        is_needed = name in self.names or is_dunder(name)
        key = number, id(owner), name, is_needed
        if key not in self._members:
            self._members.add(key)
            self._attempt(what, read, is_needed=is_needed)

    def _named(self, scope: Mapping[str, Any]) -> Iterable[str]:
        """List the globals, or attributes of a function, that the code names or may put together the names of."""
        if not self._names_anything:
            return self.names & scope.keys()
        return [name for name, value in scope.items() if name in self.names or is_code(name, value)]

    def _named_members(self, cls: type) -> Iterator[tuple[type, str]]:
        metaclasses = [one for one in inspect.getmro(type(cls)) if not is_known_class(one)]
        for owner in (*cls.__mro__, *metaclasses):
            if owner in {object, nn.Module} or (is_known_class(owner) and not issubclass(cls, nn.Module)):
                continue
            self.snapshot.add_class(owner)
            looks_up_any = self._names_anything and not is_known_class(owner)
            for name, value in sorted(vars(owner).items()):
                is_implicit = is_special(name, value) and not (name == "__init__" and cls in self._own)
                if name in self.names or is_implicit or (looks_up_any and not is_dunder(name)):
                    yield owner, name

    def _read_member(self, number: int, owner: type, name: str) -> None:
        value = vars(owner)[name]
        if not is_known_class(owner):
            self.snapshot.add_value(value)
            self._record(number, owner.__qualname__, name, value)
        elif isinstance(value, FunctionType):
            self.note_version(owner.__module__)
            self._follow(value)
            self.names |= names_in(value.__code__)
            self.snapshot.add_function(value, ())
            self._record(number, name, described(value.__code__))

    def _read_entry(self, owner: Any, scope: Mapping[str, Any], name: str, *, only_foreign: bool = False) -> None:
        """Read a global, or an attribute of a function; of a known module, what was put there by others."""
        value = scope[name]
        self.snapshot.add_entry(scope, name)
        if isinstance(value, ModuleType):
            self.module(value)
        if not only_foreign or is_foreign(value):
            self.snapshot.add_value(value)
            self._record(owner, name, value)


_STAND_INS: Final[tuple[tuple[Any, Callable[[CodeReader, Any], Any]], ...]] = (
    (FunctionType, CodeReader.function),
    (type, CodeReader.cls),
    (ModuleType, CodeReader.module),
    (BuiltinFunctionType, CodeReader.compiled),
    ((*_LOCKS, io.IOBase), lambda _, value: (type(value).__name__,)),
    (ContextVar, lambda _, value: ("variable", value.name, value.get(None))),
    (logging.Logger, lambda _, value: ("logger", value.name)),
    ((staticmethod, classmethod), lambda _, value: (type(value).__name__, value.__func__)),
    (property, lambda _, value: ("property", value.fget, value.fset, value.fdel)),
    (functools.cached_property, lambda _, value: ("cached_property", value.func)),
    (_SLOT, lambda _, value: ("slot", value.__name__)),
)


def _joint_hash(values: list[bytes]) -> str:
    return xxh3_128_hexdigest(b"".join(len(one).to_bytes(8, "big") + one for one in values))


def _itself(value: Any) -> Any:
    return value


def unusual_settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """List the attributes of a layer and of its tensors that may hold functions or objects."""
    for name, value in settings_of(layer).items():
        if type(value) not in _PLAIN:
            is_flat = type(value) in {tuple, list} and all(type(one) in _PLAIN for one in value)
            if not (is_flat or (isinstance(value, torch.Tensor) and not attributes_of_array(value))):
                yield name, value
