"""The decorator of the immutable values that stand in tables: selectors and conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast, dataclass_transform

__all__ = ["Value", "fields_of", "value"]

_Class = TypeVar("_Class", bound=type)


class Value:
    """Base of the values; it makes them picklable."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(fields_of(self).values())


@dataclass_transform(frozen_default=True)
def value(cls: _Class) -> _Class:
    """Make a class a frozen dataclass with slots that configuration libraries take for a plain object.

    OmegaConf, and so hydra, turns every dataclass inside a list into a configuration node of its own.
    """
    made: Any = dataclass(frozen=True, slots=True, repr="__repr__" not in cls.__dict__)(cls)
    del made.__dataclass_fields__
    return cast(_Class, made)


def fields_of(one: Any) -> dict[str, Any]:
    """Return the fields of a value by their names."""
    return {name: getattr(one, name) for name in type(one).__match_args__}
