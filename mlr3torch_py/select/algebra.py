"""Operators on selectors: complement, union, intersection, difference, symmetric difference."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Set
from functools import reduce
from typing import Any, Final

from torch import nn

from mlr3torch_py.select.base import Select, selector
from mlr3torch_py.select.check import check_select

__all__ = ["Combined", "Difference", "Intersection", "Invert", "SymmetricDifference", "Union"]


@selector
class Invert(Select):
    """All names but those of another selector."""

    fn = "select_invert"
    select: Select

    def __post_init__(self) -> None:
        if not isinstance(self.select, Select):  # nesting is checked where the selector is used
            check_select("select", self.select)

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return names - self.select.matches(names, module)

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return self.select.unmatched(names, module)


_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "|": operator.or_,
    "&": operator.and_,
    "-": operator.sub,
    "^": operator.xor,
}


class Combined(Select):
    """Selectors joined by one set operator, from left to right."""

    __slots__ = ()

    parts: tuple[Select, ...]

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        matched: Set[str] = reduce(_OPERATORS[self.fn], (part.matches(names, module) for part in self.parts))
        return matched

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return [select for part in self.parts for select in part.unmatched(names, module)]

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Select:
        joined: Select = reduce(_OPERATORS[cls.fn], fields["parts"])
        return joined

    def __repr__(self) -> str:
        operands = (f"({part!r})" if isinstance(part, Combined) else repr(part) for part in self.parts)
        return f" {self.fn} ".join(operands)


@selector
class Union(Combined):
    """The names of any part."""

    fn = "|"
    parts: tuple[Select, ...]


@selector
class Intersection(Combined):
    """The names of all parts."""

    fn = "&"
    parts: tuple[Select, ...]


@selector
class Difference(Combined):
    """The names of the first part alone."""

    fn = "-"
    parts: tuple[Select, ...]


@selector
class SymmetricDifference(Combined):
    """The names of an odd number of parts."""

    fn = "^"
    parts: tuple[Select, ...]
