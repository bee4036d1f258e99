"""A module whose outputs are cached by row while nothing in it changes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final

import torch

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.passes.answer import Answer
from mlr3torch_py.cache.passes.given import Given
from mlr3torch_py.cache.passes.modes import is_plain, is_transformed
from mlr3torch_py.cache.passes.placeholder import Pending, Placeholder, arguments_made_real
from mlr3torch_py.cache.passes.stage import CachedStage
from mlr3torch_py.cache.passes.stopwatch import Stopwatch
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.storage.layout import Layout, relation_of
from mlr3torch_py.cache.trials.admission import Request

__all__ = ["CachedModule"]

_PLAIN: Final = frozenset({type(None), bool, int, str})


class CachedModule(CachedStage):
    """Answer calls of a frozen module, taking known rows from memory.

    Parameters
    ----------
    name, module, budget, check, reject, passes, is_link, identity
        See `CachedStage`.

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read, or it has forward hooks.

    See Also
    --------
    Admission : Decides which calls may be answered from memory.

    Examples
    --------
    >>> from torch import nn
    >>> from mlr3torch_py.cache.storage.store import Budget
    >>> linear, batch = nn.Linear(2, 1).requires_grad_(False), torch.rand(3, 2)
    >>> cached = CachedModule("linear", linear, Budget(100_000), check=0, reject=print)
    >>> torch.equal(linear(batch), linear(batch))
    True
    >>> cached.tally.hits, cached.tally.misses
    (3, 3)
    >>> cached.remove()
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""
        output = self._repeat(args, kwargs)
        if output is not NotImplemented:
            return output
        if is_transformed():
            args, kwargs = arguments_made_real(args, kwargs)
            return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        given = Given(args, kwargs)
        if self.is_link and not given.placeholders:
            return self.module._call_impl(*given.args, **given.kwargs)  # type: ignore[no-untyped-call]
        self.is_called = True
        if self.is_kept and not self._follow_all_changes():
            return self._pass_through(args, kwargs)
        computing_before, n_known_before = self._seconds_computing, self._n_known
        with Stopwatch() as watch:
            found = self._look_up(given)
            output = None if found is None else self._answer(given, *found)
        if found is None:
            return self._pass_through(given.args, given.kwargs)
        n_known = self._n_known - n_known_before
        overhead = watch.seconds - (self._seconds_computing - computing_before)
        self.tally.saved += (n_known * self.seconds_per_row if n_known else 0.0) - overhead
        return output

    def described(self, value: Any) -> Hashable:
        """Describe an argument that is no placeholder, the same for equal ones; None if that takes long."""
        return (type(value), value) if type(value) in _PLAIN else None

    def _repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call that is given known rows alone, as one was before; `NotImplemented` for others."""
        if self.is_kept or self._passes.current is None or not is_plain():
            return NotImplemented
        began = perf_counter()
        step, keys = self._step(args, kwargs)
        if step is None:
            step = self._kind(args, kwargs)
        layout = None if step is None else self._known.repeated(step)
        if layout is None or not self._admission.state.seems_usual:
            return NotImplemented
        if layout.relation == "same":
            output = _placeholder_of(args, kwargs)
        else:
            call: Any = tuple(map(_referred, args)), {name: _referred(value) for name, value in kwargs.items()}
            if any(isinstance(value, torch.Tensor) for value in call[0]) or not keys:
                call = Call(*call)
            if not keys:
                try:
                    keys = call.row_keys()
                except (RuntimeError, TypeError):  # as it will say again
                    return NotImplemented
                if _missing(call, layout, keys):
                    return NotImplemented
            output = self._give(args, kwargs, Answer(self, layout, call, keys, []), [None] * len(layout.spec.tensors))
        self._n_rows += len(keys)
        self._n_known += len(keys)
        self.tally.saved += len(keys) * self.seconds_per_row - (perf_counter() - began)
        return output

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Hashable, list[bytes]]:
        """Describe a call that is given known rows of placeholders alone, and return their keys; None for others."""
        keys: list[bytes] = []
        step: list[Hashable] = [len(args), *kwargs]
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is Placeholder:
                pending = value.pending
                answer = pending.answer
                if answer.missing or not pending.is_current or (keys and answer.keys is not keys):
                    return None, keys
                keys = answer.keys
                step += answer.layout, pending.index, pending.base is None
            else:
                step.append(description := self.described(value))
                if description is None:
                    return None, keys
        if not keys:
            return None, keys
        return (
            *step,
            len(keys),
            self._admission.state.settings(answer.layout.spec.tensors[pending.index].device),
        ), keys

    def _kind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Describe a call that is given tensors of as many rows, and plain values; None for others."""
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if type(value) is torch.Tensor]
        if self.is_link or not tensors:
            return None
        if any(one.is_nested or one.requires_grad or one.layout is not torch.strided for one in tensors):
            return None
        if not all(one.ndim and len(one) == len(tensors[0]) for one in tensors):
            return None
        described = [
            (value.shape, value.dtype, value.device) if type(value) is torch.Tensor else self.described(value)
            for value in values
        ]
        if None in described:
            return None
        return len(args), *kwargs, *described, self._admission.state.settings(tensors[0].device)

    def _look_up(self, given: Given) -> tuple[Request, Layout, list[bytes]] | None:
        """Find the layout of a call and the keys of its rows; None if it cannot be answered from memory."""
        try:
            if not (self._admission.state.seems_current or self._catch_up()):
                return None
            request = self._admission.read(given.call)
            if request is None:
                return None
            layout = self._layout(request)
            keys = request.call.row_keys()
        except NotCacheableError as error:
            self.reject(error, False)
        except (RuntimeError, TypeError) as error:
            self.reject(NotCacheableError(f"its input cannot be split into rows: {error}"), False)
        else:
            return (request, layout, keys) if keys else None
        return None

    def _follow_all_changes(self) -> bool:
        """Follow changes of every kind, through ``.data`` and numpy, too; return whether the module can be read."""
        try:
            self.follow_changes()
        except NotCacheableError as error:
            self.reject(error, False)
            return False
        return True

    def _catch_up(self) -> bool:
        """Follow a change of the module; return whether it is still frozen."""
        if any(tensor.requires_grad for tensor in self.module.parameters()):
            self._known.drop()
            return False
        if change := self._admission.state.find_change(trust_versions=True):
            self.lost_to = change
            self.forget()
        return True

    def _layout(self, request: Request) -> Layout:
        layout = self._known.find(request.layout)
        if layout is None:
            layout, is_recalled = self._known.make(request.layout, request.call)
            shelf = self.budget.shelf
            is_stored = shelf is not None and shelf.place(layout, request, self)
            if is_recalled or is_stored:
                self._admission.trust(request, layout.largest_batch)
        return layout

    def _answer(self, given: Given, request: Request, layout: Layout, keys: list[bytes]) -> Any:
        missing = _missing(request.call, layout, keys)
        self._n_rows += len(keys)
        if self._admission.is_behind(request):
            self._n_known += len(keys) - len(missing)
            return self._fill(given, request, layout, keys, catches_up=len(missing) < len(keys))
        if layout.is_new or len(missing) == len(keys) or not self._admission.is_row_wise(request):
            return self._fill(given, request, layout, keys)
        if layout.relation == "written" and given.is_view:  # what it is a view of would not be written
            return self._pass_through(given.args, given.kwargs)
        self._n_known += len(keys) - len(missing)
        if self._admission.is_larger(request):
            return self._fill(given, request, layout, keys)
        if not missing:
            step, _ = self._step(given.args, given.kwargs)
            if step is not None or (step := self._kind(given.args, given.kwargs)) is not None:
                self._known.note_answered(step, layout)
        parts: Sequence[torch.Tensor | None] = [None] * len(layout.spec.tensors)
        if missing:
            call, watch = request.call.take(missing, given.values(missing)), self._admission.start_watch()
            output = self.compute(call)
            try:
                with self._passes.suspended():
                    self._admission.finish_watch(watch, call, output)
                parts = layout.spec.tensors_of(output, len(missing))
            except NotCacheableError as error:
                self._reject(error, call)
                return self._pass_through(given.args, given.kwargs)
        return self._give(given.args, given.kwargs, Answer(self, layout, request.call, keys, missing), parts)

    def _fill(
        self, given: Given, request: Request, layout: Layout, keys: list[bytes], *, catches_up: bool = False
    ) -> Any:
        """Compute a whole batch, and keep what it gives if trials find its rows independent."""
        self._known.forget_answered()
        call = request.call.take(None, given.whole)
        if self.is_link and any(tensor.is_inference() for tensor in call.tensors):  # whose changes cannot be seen
            return self._pass_through(given.args, given.kwargs)
        trial = self._admission.start_trial(request, call, catches_up=catches_up)
        if trial.is_module_changed:
            self._known.drop()
            layout = self._layout(request)
        output = self.compute(call)
        try:
            relation = relation_of(call, output, may_share=self.is_link)
            with self._passes.suspended():
                is_unchanged = self._admission.finish_trial(trial, request, call, output, relation)
            if not is_unchanged:
                self._known.drop()
                self.tally.misses += len(keys)
                return output
            if not self._admission.is_row_wise(request):
                self.tally.misses += len(keys)
                return output
            if layout.is_new:
                layout.learn(output, len(keys), relation)
            layout.largest_batch = max(layout.largest_batch, self._admission.largest_batch(request))
            parts = layout.spec.tensors_of(output, len(keys))
        except NotCacheableError as error:
            self.tally.misses += len(keys)
            self._reject(error, call)
            return output
        if relation == "written" and given.is_view:
            return output
        n_tried = self._admission.n_tried(request)
        answer = Answer(self, layout, request.call, keys, list(range(len(keys))), n_tried=n_tried)
        return self._give(given.args, given.kwargs, answer, parts)

    def _pass_through(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module itself."""
        args, kwargs = arguments_made_real(args, kwargs)
        with self._passes.suspended():
            return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _give(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Answer, parts: Sequence[torch.Tensor | None]
    ) -> Any:
        """Give placeholders within a forward pass; values outside of any, and where they are asked for anyway."""
        layout = answer.layout
        if self._passes.current is None or layout.gives_values:
            return layout.spec.join(answer.fetch(i, part) for i, part in enumerate(parts))
        if layout.relation == "new" and layout.spec.is_tensor:
            return Placeholder(Pending(answer, 0, parts[0], self._passes))
        if layout.relation == "new":
            return layout.spec.join(Placeholder(Pending(answer, i, part, self._passes)) for i, part in enumerate(parts))
        placeholder = _placeholder_of(args, kwargs)
        if layout.relation == "view":
            view = partial(self._pass_through, args, kwargs)
            return Placeholder(Pending(answer, 0, parts[0], self._passes, placeholder, view))
        if layout.relation == "written":
            placeholder.pending = Pending(answer, 0, parts[0], self._passes)
        return placeholder


def _missing(call: Call, layout: Layout, keys: Sequence[bytes]) -> list[int]:
    """List the rows that must be computed during the call."""
    found = [reference.answer.missing for reference in call.references]
    if call.has_rows:
        if layout.shelved is not None:
            found.append(layout.shelved.find(keys, layout.complete))
        else:
            found.append(layout.complete.lacking(keys))
    return found[0] if len(found) == 1 else sorted(set[int]().union(*found))


def _referred(value: Any) -> Any:
    return value.reference() if type(value) is Placeholder else value


def _placeholder_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placeholder:
    (placeholder,) = [one for one in (*args, *kwargs.values()) if type(one) is Placeholder]
    return placeholder
