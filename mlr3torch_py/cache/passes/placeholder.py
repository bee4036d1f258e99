"""Tensors whose values are looked up when something other than a cached module asks for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from mlr3torch_py.cache.passes.answer import Answer
from mlr3torch_py.cache.passes.modes import in_inference_mode, without_modes
from mlr3torch_py.cache.passes.stopwatch import Stopwatch
from mlr3torch_py.cache.passes.wrapped import is_of_torch, wrapped_by
from mlr3torch_py.cache.rows.call import Reference
from mlr3torch_py.network.bits import version_of
from mlr3torch_py.network.internals import tree_leaves, tree_map

__all__ = ["Passes", "Pending", "Placeholder", "arguments_made_real", "made_real"]

_PLAIN: Final = (torch.Tensor, int, float, str, type(None))
_TENSOR: Final = torch.Tensor
# What is answered without values.
_METADATA: Final = frozenset(
    [
        *(getattr(_TENSOR, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(
            getattr(_TENSOR, name)
            for name in ("size", "dim", "numel", "stride", "is_contiguous", "__len__", "__hash__")
        ),
        *(getattr(_TENSOR, name) for name in ("is_floating_point", "is_complex", "get_device", "element_size")),
        *(torch.numel, torch.is_floating_point, torch.is_complex),
    ]
)


class Passes(threading.local):
    """The forward pass of a network that is under way in this thread, if any.

    Attributes
    ----------
    current : dict or None
        The placeholders that were made during it and are alive, by id.
    has_given : bool
        Whether a placeholder was made during it.
    operations : callable or None
        Answers a call of a function that is given placeholders by others; `NotImplemented` if it cannot.
    """

    current: dict[int, weakref.ref[torch.Tensor]] | None = None
    has_given: bool = False

    def __init__(self, operations: Callable[..., Any] | None = None) -> None:
        self.operations = operations

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let no module give placeholders."""
        current, self.current = self.current, None
        try:
            yield
        finally:
            self.current = current

    def end(self) -> None:
        """Give all placeholders that are alive their values."""
        while self.current:
            made_real(self.current.popitem()[1]())


@dataclass(slots=True)
class Pending:
    """What stands behind a placeholder.

    Parameters
    ----------
    answer : Answer
    index : int
        The position of the tensor in the answer.
    part : torch.Tensor or None
        The rows that were not known, and so were computed.
    passes : Passes
    base : Placeholder or torch.Tensor, optional
        What the tensor is a view of.
    view : callable, optional
        Makes the view.
    """

    answer: Answer
    index: int
    part: torch.Tensor | None
    passes: Passes
    base: torch.Tensor | None = None
    view: Callable[[], torch.Tensor] | None = None
    value: torch.Tensor | None = None
    _version: int | None = None
    _has_view: bool = False
    _is_inference: bool = False

    def __post_init__(self) -> None:
        self._is_inference = torch.is_inference_mode_enabled()
        self._version = None if self.part is None else version_of(self.part)
        if type(self.base) is Placeholder:
            self.base.pending.note_view()

    def note_view(self) -> None:
        """Note that there is a view of the tensor; what one writes into it, another one sees."""
        if self._has_view:
            self.answer.layout.seen.add(self.index)
        self._has_view = True

    @property
    def is_written(self) -> bool:
        """Whether somebody has written into the memory of the computed rows."""
        return self.part is not None and version_of(self.part) != self._version

    @property
    def is_current(self) -> bool:
        """Whether the answer still tells what the values are: what a view is of may have been written since."""
        if self.value is not None or self.is_written:
            return False
        if self.base is None:
            return True
        (reference,) = self.answer.call.references
        below = vars(self.base).get("pending") if type(self.base) is Placeholder else None
        return below is not None and below.answer is reference.answer and below.is_current

    def fetch(self) -> torch.Tensor:
        """Return the values, as a tensor object of its own."""
        with without_modes(), in_inference_mode(self._is_inference):  # as when the module was called
            if self.value is None:
                self.answer.layout.seen.add(self.index)
                self.value = self._look_up()
            return self.value.detach()

    def whole(self) -> torch.Tensor:
        """Return the values without keeping them; they are computed if they were not."""
        if self.part is None or len(self.part) < len(self.answer.keys):
            rows = list(range(len(self.answer.keys)))
            self.part = self.answer.compute(rows)[self.index]
            self.answer = self.answer.with_missing(rows)
            self._version = version_of(self.part)
        return self.part

    @property
    def _is_base_seen(self) -> bool:
        """Whether other code may see what the tensor is a view of, as it did while the cache was filled."""
        if type(self.base) is not Placeholder:
            return self.base is not None
        base = self.base.pending
        is_same = self.answer.call.references[0].answer is base.answer
        return not is_same or base.index in base.answer.layout.seen or base.is_written or base._is_base_seen

    def _look_up(self) -> torch.Tensor:
        if self.view is not None and self._is_base_seen:
            made: torch.Tensor = self.view()
            return made
        if self.is_written:
            return self.whole()
        with Stopwatch() as watch:
            value = self.answer.fetch(self.index, self.part)
        self.answer.stage.tally.saved -= watch.seconds
        return value


class Placeholder(torch.Tensor):
    """A tensor that becomes real in place as soon as anything asks for its values.

    Parameters
    ----------
    pending : Pending
    """

    pending: Pending

    @staticmethod
    def __new__(cls, pending: Pending) -> Placeholder:
        answer = pending.answer
        made: Placeholder = torch.Tensor._make_wrapper_subclass(
            cls, **answer.layout.geometry(pending.index, len(answer.keys))
        )
        torch._C._set_throw_on_mutable_data_ptr(made)  # where C code would read from nowhere
        made.pending = pending
        pending.passes.has_given = True
        if pending.passes.current is not None:
            pending.passes.current[id(made)] = weakref.ref(made)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a function to the values, or to the metadata alone."""
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if not is_of_torch(func):
            func = wrapped_by(func)
        if (passes := _passes_of(args)) is not None and passes.operations is not None:
            output = passes.operations(passes, func, args, kwargs or {})
            if output is not NotImplemented:
                return output
        args, kwargs = arguments_made_real(args, kwargs or {})
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Apply an operation to the values, if it was called below Python."""
        args, kwargs = tree_map(_values, (args, kwargs or {}))
        return func(*args, **kwargs)

    def reference(self) -> Reference:
        """Refer to the values without holding any."""
        return Reference(self.pending.answer, self.pending.index)


def made_real(value: Any) -> Any:
    """Give all placeholders in a nested value their values."""
    if type(value) is Placeholder:
        return _made_real(value)
    if isinstance(value, _PLAIN):
        return value
    is_affected = any(type(leaf) is Placeholder for leaf in tree_leaves(value))
    return tree_map(_made_real, value) if is_affected else value


def arguments_made_real(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give all placeholders among arguments their values."""
    return tuple(map(made_real, args)), {name: made_real(value) for name, value in kwargs.items()} if kwargs else kwargs


def _values(leaf: Any) -> Any:
    return leaf.pending.fetch() if type(leaf) is Placeholder else leaf


def _made_real(leaf: Any) -> Any:
    """Turn a placeholder into a plain tensor in place; if something holds on to it, return another with its values."""
    if type(leaf) is not Placeholder:
        return leaf
    pending = leaf.pending
    value = pending.fetch()
    vars(value).update({name: one for name, one in vars(leaf).items() if name != "pending"})
    if pending.passes.current is not None:
        pending.passes.current.pop(id(leaf), None)  # nothing with weak references can be swapped
    with torch._C.DisableTorchFunctionSubclass():
        if leaf.requires_grad:  # after a function in C++ has returned it
            return leaf.view_as(leaf)
        try:
            torch.utils.swap_tensors(leaf, value)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return value
        return leaf


def _passes_of(args: tuple[Any, ...]) -> Passes | None:
    """Find the forward pass under way to which the first placeholder among the arguments belongs."""
    for value in args[:2]:
        for leaf in value if type(value) in {tuple, list} else (value,):
            if type(leaf) is Placeholder:
                passes = leaf.pending.passes
                return passes if passes.current is not None else None
    return None
