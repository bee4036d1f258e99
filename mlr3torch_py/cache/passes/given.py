"""The arguments of a call of a cached module, with placeholders among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mlr3torch_py.cache.passes.placeholder import Placeholder, arguments_made_real, made_real
from mlr3torch_py.cache.rows.call import Call, Reference

__all__ = ["Given"]


class Given:
    """The arguments of a call.

    Placeholders among them stay what they are while their keys are known; those inside of containers, into which a
    module could write, become real.

    Parameters
    ----------
    args : tuple
    kwargs : dict
    """

    __slots__ = ("_by_reference", "args", "kwargs", "placeholders")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args: tuple[Any, ...] = tuple(map(_kept, args)) if args else args
        self.kwargs: dict[str, Any] = {name: _kept(value) for name, value in kwargs.items()} if kwargs else kwargs
        self.placeholders: list[Placeholder] = [
            one for one in (*self.args, *self.kwargs.values()) if type(one) is Placeholder
        ]
        self._by_reference: dict[int, Placeholder] = {}

    @property
    def is_view(self) -> bool:
        """Whether an argument is a view of another tensor."""
        return any(one.pending.base is not None for one in self.placeholders)

    @property
    def call(self) -> Call:
        """The call, with references in place of placeholders."""
        if not self.placeholders:
            return Call(self.args, self.kwargs)
        args = tuple(map(self._referred, self.args))
        call = Call(args, {name: self._referred(value) for name, value in self.kwargs.items()})
        if call.shares_references:
            self.made_real()
            return self.call
        return call

    def whole(self, reference: Reference) -> torch.Tensor:
        """Return all values of a reference, without keeping them."""
        return self._by_reference[id(reference)].pending.whole()

    def values(self, rows: Sequence[int]) -> Callable[[Reference], torch.Tensor]:
        """Return a function that gives some rows of a reference, without keeping them."""

        def of_reference(reference: Reference) -> torch.Tensor:
            pending = self._by_reference[id(reference)].pending
            if pending.part is not None and pending.answer.missing == rows:
                return pending.part
            return pending.answer.compute(rows)[pending.index]

        return of_reference

    def made_real(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the placeholders their values."""
        self.args, self.kwargs = arguments_made_real(self.args, self.kwargs)
        self.placeholders = []
        return self.args, self.kwargs

    def _referred(self, value: Any) -> Any:
        if type(value) is not Placeholder:
            return value
        reference = value.reference()
        self._by_reference[id(reference)] = value
        return reference


def _kept(value: Any) -> Any:
    if type(value) is Placeholder:
        return value if value.pending.is_current else made_real(value)
    return made_real(value)
