"""A module whose outputs are cached by row while nothing in it changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from mlr3torch_py.cache.admission import Admission, Request, dependent, is_fit_in_eval_mode, is_transformed
from mlr3torch_py.cache.answer import Answer
from mlr3torch_py.cache.check import HitCheck
from mlr3torch_py.cache.given import Given
from mlr3torch_py.cache.known import Known
from mlr3torch_py.cache.layout import Layout, relation_of
from mlr3torch_py.cache.packing import Recalled
from mlr3torch_py.cache.placeholder import Passes, Pending, Placeholder, arguments_made_real
from mlr3torch_py.cache.portable import NotPortableError
from mlr3torch_py.cache.rows import Call, NotCacheableError
from mlr3torch_py.cache.stopwatch import Stopwatch
from mlr3torch_py.cache.store import Budget
from mlr3torch_py.cache.tally import Tally

__all__ = ["CachedModule"]


class CachedModule:
    """Answer calls of a frozen module, taking known rows from memory.

    It takes the place of the module's own call until `remove`.

    Parameters
    ----------
    name : str
        The module's name in messages.
    module : torch.nn.Module
    budget : Budget
        The bytes that rows may take.
    check : int
        How many hits of one randomly drawn batch are recomputed and compared in each epoch.
    reject : callable
        Called when the module turns out not to be cacheable, with the reason and whether it would be in eval mode.
    passes : Passes, optional
        The forward pass under way, within which it gives placeholders.
    is_link : bool
        Whether it has no parameters, so that only calls with placeholders are answered.
    identity : str, optional
        What tells it from other cached modules of the network, in each process; by default its name.

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read, or it has forward hooks.

    See Also
    --------
    Admission : Decides which calls may be answered from memory.

    Examples
    --------
    >>> import torch
    >>> linear, batch = nn.Linear(2, 1).requires_grad_(False), torch.rand(3, 2)
    >>> cached = CachedModule("linear", linear, Budget(100_000), check=0, reject=print)
    >>> torch.equal(linear(batch), linear(batch))
    True
    >>> cached.tally.hits, cached.tally.misses
    (3, 3)
    >>> cached.remove()
    """

    is_cache = True  # tells it from a compiled call, which has the same place in a module

    def __init__(
        self,
        name: str,
        module: nn.Module,
        budget: Budget,
        check: int,
        reject: Callable[[NotCacheableError, bool], None],
        *,
        passes: Passes | None = None,
        is_link: bool = False,
        identity: str = "",
    ) -> None:
        self.name = name
        self.identity: str = identity or name
        self.module = module
        self.budget = budget
        self.reject = reject
        self.is_link = is_link
        self.tally: Tally = Tally()
        self.is_called: bool = False
        self.is_kept: bool = False  # after training, when it follows changes at every call
        self._passes = Passes() if passes is None else passes
        self._check = HitCheck(check)
        self._n_rows = self._n_known = 0
        self._seconds_computing = 0.0
        self._known = Known(self.identity)
        self.seconds_per_row: float = math.inf
        self.forget()
        # The place of a compiled call: the module's hooks run inside of it, and pickle and deepcopy skip it.
        module._compiled_call_impl = self

    @property
    def is_in_place(self) -> bool:
        """Whether calls of the module still arrive here."""
        return vars(self.module).get("_compiled_call_impl") is self

    @property
    def has_verdict(self) -> bool:
        """Whether trials have found some calls to be cacheable, or not."""
        return self._admission.has_verdict

    @property
    def is_idle(self) -> bool:
        """Whether the epoch began with known rows, and none of them came again."""
        return self._known.n_remembered > 0 and self._n_rows > 0 and self._n_known == 0

    @property
    def share_known(self) -> float:
        """The share of the rows of its calls in this epoch that were known."""
        return self._n_known / max(1, self._n_rows)

    @property
    def n_bytes(self) -> int:
        """The bytes that its rows take."""
        return sum(table.n_bytes for layout in self.layouts for table in layout.tables)

    @property
    def layouts(self) -> Iterable[Layout]:
        """What is known about its calls, and their rows."""
        return self._known.layouts

    def begin_epoch(self) -> None:
        """Start a new tally, and forget all rows if anything in the module has changed."""
        if self.is_called or self._known.has_recalled:
            self.follow_changes()
        for layout in self.layouts:
            layout.n_remembered = len(layout.complete)
        self._n_rows = self._n_known = 0
        self.tally = Tally()
        self._check.begin_epoch(sum(len(table) for layout in self.layouts for table in layout.tables))

    def follow_changes(self) -> bool:
        """Forget all rows if anything in the module has changed; return whether it has."""
        has_changed = self._admission.find_change() is not None
        if has_changed:
            self.forget()
        return has_changed

    def unstore(self, *, own: bool = False) -> None:
        """Drop the rows that are on disk, or those of this training."""
        for layout in self.layouts:
            layout.unstore(own=own)

    def end_epoch(self, used_epochs: Set[int] | None = None) -> None:
        """Drop rows that cannot be asked for any more, and stale ones; see `Table.end_epoch`."""
        self._known.end_epoch(used_epochs)

    @property
    def digest(self) -> str:
        """A hash of what the module is; see `Fingerprint.digest`."""
        return self._admission.digest

    @property
    def lost_on_resume(self) -> str:
        """Why a checkpoint cannot keep rows of it; empty if it can."""
        try:
            _ = self.digest
        except NotPortableError as error:
            return f"since no other process can tell what {error} is: use a function of a file, or plain values"
        try:
            for layout in self.layouts:
                layout.spec.packed()
        except NotPortableError as error:
            return f"since no file can hold {error} of its output: return tensors in tuples, lists and dicts"
        return ""

    def recall(self, rows: Recalled) -> None:
        """Take rows from a checkpoint, if the module is what it was."""
        with suppress(NotPortableError):
            if rows.digest == self.digest:
                self.seconds_per_row = rows.seconds_per_row
                self._known.recall(rows.by_digest)
                return
        rows.drop()

    def forget(self) -> None:
        """Forget all rows, and everything learned about the module."""
        self._known.drop()
        self._admission = Admission(self.module)
        self.seconds_per_row = math.inf

    def remove(self) -> None:
        """Restore the module's own call, and forget all rows."""
        self._known.drop()
        if self.is_in_place:
            del self.module._compiled_call_impl

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # for networks that pickle all of their attributes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""
        if len(args) == 1 and not kwargs and type(args[0]) is Placeholder and not self.is_kept:
            output = self._follow(args[0])
            if output is not None:
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

    def compute(self, call: Call) -> Any:
        """Compute a call."""
        with self._passes.suspended(), Stopwatch() as watch:
            output = self.module._call_impl(*call.args, **call.kwargs)  # type: ignore[no-untyped-call]
        self._seconds_computing += watch.seconds
        self.seconds_per_row = min(self.seconds_per_row, watch.seconds / max(1, len(call)))
        return output

    def count(self, answer: Answer, index: int, known: Sequence[int], value: torch.Tensor) -> None:
        """Count rows that were asked for, and check some of those from memory.

        Raises
        ------
        RuntimeError
            If a checked row differs by more than rounding.
        """
        if not answer.is_counted:
            answer.is_counted = True
            self.tally.hits += len(known)
            self.tally.misses += len(answer.keys) - len(known)
        rows = self._check.draw(known)
        if not rows or answer.has_changed_input:
            return
        with Stopwatch() as watch:
            again = answer.compute(rows)[index]
        self._check.pay(watch.seconds, answer.seconds_per_row)
        if not answer.is_near(index, value[rows], again):
            answer.layout.unstore()
            raise RuntimeError(
                f"frozen_cache: {self.name} now gives another output for a row than when the row was cached, although "
                "nothing in it, or in what comes before it, seems to have changed. Either an output depends on the "
                "rest of the batch or on something outside of its module, or a module was modified through .data or "
                "numpy during this epoch; name other modules in `modules`"
            )

    def skip_check(self, n_rows: int) -> None:
        """Check no hit in this epoch, since some rows from disk were compared."""
        self._check.skip(n_rows)

    def reject_dependent(self, call: Call) -> None:
        """Give the module up because its rows depend on each other, as in this call."""
        self._reject(dependent(), call)

    def _follow(self, placeholder: Placeholder) -> Any:
        """Answer a call like others before it, all of whose rows are known; None if it is not one."""
        pending = placeholder.pending
        answer = pending.answer
        if answer.missing or self._passes.current is None or not pending.is_current:
            return None
        with Stopwatch() as watch:
            layout = self._known.following(self._step(answer, pending.index))
            if layout is None or not self._admission.seems_usual:
                return None
            if layout.relation == "written" and pending.base is not None:
                return None
            following = Answer(self, layout, placeholder.reference(), answer.keys, answer.missing)
            output = self._give((placeholder,), {}, following, [None] * len(layout.spec.tensors))
        self._n_rows += len(answer.keys)
        self._n_known += len(answer.keys)
        self.tally.saved += len(answer.keys) * self.seconds_per_row - watch.seconds
        return output

    def _step(self, answer: Answer, index: int) -> Hashable:
        """Identify the layout of a call that is given one placeholder."""
        return answer.layout, index, self._admission.settings(answer.layout.spec.tensors[index].device)

    def _look_up(self, given: Given) -> tuple[Request, Layout, list[bytes]] | None:
        """Find the layout of a call and the keys of its rows; None if it cannot be answered from memory."""
        try:
            if not (self._admission.seems_current or self._catch_up()):
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
        if self._admission.find_change(trust_versions=True):
            self.forget()
        return True

    def _layout(self, request: Request) -> Layout:
        layout = self._known.find(request.layout)
        if layout is None:
            layout, is_recalled = self._known.make(request.layout, request.call)
            shelf = self.budget.shelf
            is_stored = shelf is not None and shelf.place(layout, request, self)
            if is_recalled or is_stored:
                self._admission.trust(request)
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
        if len(given.placeholders) == len(given.args) == 1 and not given.kwargs:
            pending = given.placeholders[0].pending
            self._known.follow(self._step(pending.answer, pending.index), layout)
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
        self._known.follow_nothing()
        call = request.call.take(None, given.whole)
        if self.is_link and any(tensor.is_inference() for tensor in call.tensors):  # whose changes cannot be seen
            return self._pass_through(given.args, given.kwargs)
        trial = self._admission.start_trial(request, call, catches_up=catches_up)
        if trial.is_module_changed:
            self._known.drop()
            layout = self._layout(request)
        output = self.compute(call)
        try:
            relation = relation_of(call, output) if self.is_link else "new"
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

    def _reject(self, error: NotCacheableError, call: Call) -> None:
        self.reject(error, error.may_depend_on_mode and is_fit_in_eval_mode(self.module, call))

    def _give(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Answer, parts: Sequence[torch.Tensor | None]
    ) -> Any:
        """Give placeholders within a forward pass, and values outside of any."""
        layout = answer.layout
        if self._passes.current is None:
            return layout.spec.join(answer.fetch(i, part) for i, part in enumerate(parts))
        if layout.relation == "new":
            return layout.spec.join(Placeholder(Pending(answer, i, part, self._passes)) for i, part in enumerate(parts))
        (placeholder,) = (one for one in (*args, *kwargs.values()) if type(one) is Placeholder)
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
            found.append([i for i, place in enumerate(layout.complete.find(keys)) if place is None])
    return found[0] if len(found) == 1 else sorted(set[int]().union(*found))
