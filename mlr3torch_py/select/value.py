"""The decorator of the immutable values in tables: selectors and conditions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast, dataclass_transform

__all__ = ["fields_of", "value"]

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True)
def value(cls: _Class) -> _Class:
    """Make a class a frozen, slotted and picklable dataclass.

    It does not count as a dataclass for others: OmegaConf, and so hydra, would turn it into a configuration node.
    """
    has_repr = any("__repr__" in vars(parent) for parent in cls.__mro__[:-1])
    made: Any = dataclass(frozen=True, slots=True, repr=not has_repr)(cls)
    del made.__dataclass_fields__
    made.__reduce__ = _reduce
    _rebind_super(cls, made)
    return cast(_Class, made)


def fields_of(one: Any) -> dict[str, Any]:
    """Return the fields of a value by name.

    Examples
    --------
    >>> from mlr3torch_py import Plateau
    >>> fields_of(Plateau())["patience"]
    3
    """
    return {name: getattr(one, name) for name in type(one).__slots__}


def _reduce(one: Any) -> tuple[Any, ...]:
    return _make, (type(one), fields_of(one))


def _make(cls: type, fields: dict[str, Any]) -> Any:
    return cls(**fields)


def _rebind_super(cls: type, made: type) -> None:
    # A dataclass with slots is a new class, and super() in its methods serves the old one before Python 3.14.
    for member in vars(made).values():
        for cell in getattr(getattr(member, "__func__", member), "__closure__", None) or ():
            with suppress(ValueError):  # an empty cell
                if cell.cell_contents is cls:
                    cell.cell_contents = made
