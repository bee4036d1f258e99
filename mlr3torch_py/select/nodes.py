"""The selectors behind the select functions: small immutable values with one method, `matches`."""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import reduce
from operator import or_
from time import monotonic
from typing import Any, Final

import regex
import torch
from torch import nn

from mlr3torch_py.arguments import check_flag, check_names, check_text, check_whole
from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.blocks import Block, find_blocks
from mlr3torch_py.network.parameters import frozen_before_us
from mlr3torch_py.network.unwrap import named_modules
from mlr3torch_py.patterns import expanded, patterns
from mlr3torch_py.select.algebra import Union
from mlr3torch_py.select.base import Select, selector
from mlr3torch_py.values import shown
from mlr3torch_py.warn import warn

__all__ = ["All", "First", "Glob", "Grep", "Last", "Name", "Nothing", "Prefix", "Trainable", "Type", "joined"]

# More paths than these are shown by their common pattern.
_MOST_PATHS: Final = 4

# The longest time that a pattern may take for all names of a network.
_SECONDS: Final = 2


@selector
class All(Select):
    """Every parameter."""

    fn = "select_all"

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return names


@selector
class Nothing(Select):
    """No parameter."""

    fn = "select_none"

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return frozenset()

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return []


@selector
class Name(Select):
    """Names given one by one."""

    fn = "select_name"
    param_names: str | Sequence[str]
    assert_present: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "param_names", check_names("param_names", self.param_names))
        if isinstance(self.assert_present, str):
            raise TypeError(f"`assert_present` is {shown(self.assert_present)}; pass several names as one list")
        object.__setattr__(self, "assert_present", check_flag("assert_present", self.assert_present))

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        missing = [name for name in self.param_names if name not in names]
        if missing and self.assert_present:
            raise ValueError(
                f"`param_names` names {listed(map(repr, missing))}, which the network lacks; {nearest(missing, names)}"
            )
        return names & set(self.param_names)

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return []

    def __repr__(self) -> str:
        return f"{self.fn}({list(self.param_names)!r}{'' if self.assert_present else ', assert_present=False'})"


@selector
class Grep(Select):
    """Names with a match of a regular expression or text."""

    fn = "select_grep"
    pattern: str
    ignore_case: bool = False
    perl: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", check_text("pattern", self.pattern))
        for flag in ("ignore_case", "perl", "fixed"):
            object.__setattr__(self, flag, check_flag(flag, getattr(self, flag)))
        if self.fixed and self.ignore_case:
            warn("`ignore_case=True` is ignored, because `fixed=True` compares letter by letter")
            object.__setattr__(self, "ignore_case", False)
        if not self.fixed:
            try:
                compiled(self.pattern, self.ignore_case)
            except (regex.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"`pattern` is {shown(self.pattern)}, which does not compile: {error}; "
                    "for plain text pass fixed=True"
                ) from error

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        if self.fixed:
            return {name for name in names if self.pattern in name}
        search, end = compiled(self.pattern, self.ignore_case).search, monotonic() + _SECONDS
        try:
            return {name for name in names if search(name, timeout=max(end - monotonic(), 1e-3))}
        except TimeoutError as error:
            raise ValueError(
                f"`pattern` is {shown(self.pattern)}, which takes more than {_SECONDS} s to match; leave out nested "
                "repetitions, such as (a+)+"
            ) from error


@selector
class Glob(Select):
    """Names matched as a whole by a shell pattern."""

    fn = "select_glob"
    pattern: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", check_text("pattern", self.pattern))

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return {name for name in names if fnmatch.fnmatchcase(name, self.pattern)}


@selector
class Prefix(Select):
    """Everything at or below paths of the module tree."""

    fn = "select_prefix"
    prefixes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.prefixes:
            raise TypeError("`prefixes` is empty; name at least one path, as in select_prefix('encoder')")
        given = self.prefixes[0] if len(self.prefixes) == 1 else ()
        if isinstance(given, (list, tuple)) and given and all(isinstance(path, str) for path in given):
            code = ", ".join(map(repr, given))
            raise TypeError(f"`prefixes` is a list; give its paths one after the other: select_prefix({code})")
        paths = tuple(check_text("prefixes", prefix, "paths").rstrip(".") for prefix in self.prefixes)
        if not all(paths):
            raise ValueError(f"`prefixes` is {shown(self.prefixes)}; leave out empty paths, or use select_all()")
        object.__setattr__(self, "prefixes", tuple(path for given in paths for path in _expanded(given)))

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        below = tuple(f"{prefix}." for prefix in self.prefixes)
        return {name for name in names if name in self.prefixes or name.startswith(below)}

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return [one for prefix in self.prefixes if not (one := Prefix((prefix,))).matches(names)]

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Select:
        return cls(check_names("prefixes", fields["prefixes"]))

    def __repr__(self) -> str:
        paths: Sequence[str] = self.prefixes
        if len(paths) > _MOST_PATHS:
            short = patterns(paths)
            # A module may have braces in its name.
            paths = short if [one for path in short for one in expanded(path)] == list(paths) else paths
        return f"{self.fn}({', '.join(map(repr, paths))})"


@selector
class Trainable(Select):
    """What required a gradient before any callback acted."""

    fn = "select_trainable"

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return names - frozen_before_us(_needed(module, self))

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return []


@selector
class Type(Select):
    """Everything inside modules of given types."""

    fn = "select_type"
    module_types: tuple[type[nn.Module], ...]

    def __post_init__(self) -> None:
        if not self.module_types:
            raise TypeError("`module_types` is empty; name at least one type, as in select_type(nn.Linear)")
        for module_type in self.module_types:
            if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
                raise TypeError(f"`module_types` holds {shown(module_type)}; give subclasses of torch.nn.Module")

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        network = _needed(module, self)
        wanted = {path for path, part in named_modules(network) if isinstance(part, self.module_types)}
        return {name for name in names if not wanted.isdisjoint(ancestors(name))}

    def to_plain(self) -> dict[str, Any]:
        if not all(map(_is_of_torch, self.module_types)):
            raise ValueError(f"{self!r} names a type that is not in torch.nn; select its weights by name instead")
        return {"module_types": tuple(module_type.__name__ for module_type in self.module_types)}

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Select:
        return cls(tuple(getattr(nn, name) for name in check_names("module_types", fields["module_types"])))

    def __repr__(self) -> str:
        return f"{self.fn}({', '.join(map(_type_name, self.module_types))})"


class Blocks(Select):
    """Some blocks of a network."""

    __slots__ = ()

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_whole("n", self.n, "blocks"))

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        blocks = find_blocks(_needed(module, self))
        if not blocks:
            raise ValueError(f"{self!r}: the network has no parameters, and so no blocks")
        return names & frozenset().union(*(block.names for block in self.some(blocks)))

    @abstractmethod
    def some(self, blocks: list[Block]) -> list[Block]:
        """Return the selected ones of `blocks`."""


@selector
class First(Blocks):
    """The first blocks of a network."""

    fn = "select_first"
    n: int

    def some(self, blocks: list[Block]) -> list[Block]:
        return blocks[: self.n]


@selector
class Last(Blocks):
    """The last blocks of a network."""

    fn = "select_last"
    n: int

    def some(self, blocks: list[Block]) -> list[Block]:
        return blocks[-self.n :]


def joined(selects: Iterable[Select]) -> Select:
    """Join selectors by ``|``, all paths and all names in one selector each, so that they print in few words."""
    names: list[str] = []
    paths: list[str] = []
    others: list[Select] = []
    for select in selects:
        for part in select.parts if isinstance(select, Union) else (select,):
            if isinstance(part, Prefix):
                paths += part.prefixes
            elif isinstance(part, Name) and part.assert_present:
                names += part.param_names
            else:
                others.append(part)
    first: list[Select] = [Name(names)] if names else []
    return reduce(or_, [*first, *([Prefix(tuple(paths))] if paths else []), *others])


def compiled(pattern: str, ignore_case: bool) -> regex.Pattern[str]:
    r"""Compile a pattern of R.

    In R, ``\<`` and ``\>`` are word boundaries.
    """
    pattern = regex.sub(r"\\(.)", lambda escape: {"<": r"\m", ">": r"\M"}.get(escape[1], escape[0]), pattern)
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


def _expanded(path: str) -> list[str]:
    try:
        return expanded(path)
    except ValueError as error:
        raise ValueError(f"`prefixes`: {error}") from error


def _needed(module: nn.Module | None, select: Select) -> nn.Module:
    if module is None:
        raise ValueError(f"{select!r} needs a network, not only names; use {select!r}.expand(module)")
    return module


def _is_of_torch(module_type: type) -> bool:
    return getattr(torch.nn, module_type.__name__, None) is module_type


def _type_name(module_type: type) -> str:
    if _is_of_torch(module_type):
        return f"torch.nn.{module_type.__name__}"
    scope = module_type.__module__
    return module_type.__qualname__ if scope in ("__main__", "builtins") else f"{scope}.{module_type.__qualname__}"
