"""A module whose outputs are cached by row while nothing in it changes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from mlr3torch_py.cache.admission import Admission, Request, is_fit_in_eval_mode, is_transformed
from mlr3torch_py.cache.rounding import largest_values, reproduces
from mlr3torch_py.cache.rows import Call, NotCacheableError, OutputSpec, RowTensors
from mlr3torch_py.cache.stopwatch import Stopwatch
from mlr3torch_py.cache.store import Budget, RowCache

__all__ = ["CachedModule", "Tally"]

_MAX_LAYOUTS: Final = 1000


@dataclass(slots=True)
class Tally:
    """Hit and miss counts of a module.

    Parameters
    ----------
    hits, misses : int
        Rows taken from memory, and rows computed.
    saved : float
        Estimated seconds for computing the hits, minus the seconds that the cache itself took.
    """

    hits: int = 0
    misses: int = 0
    saved: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.misses + other.misses, self.saved + other.saved)


@dataclass(slots=True)
class _Layout:
    """What calls share that differ only in the number and contents of their rows."""

    seed: int
    output: OutputSpec | None = None
    largest: Sequence[float] = ()


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
    ) -> None:
        self.name = name
        self.module = module
        self.check = check
        self.reject = reject
        self.rows: RowCache = RowCache(budget)
        self.tally: Tally = Tally()
        self.is_called: bool = False
        self._n_rows_before = 0
        self._hits_until_check = 0
        self._seconds_computing = 0.0
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
        """Whether the epoch began with cached rows, and none of them was used."""
        return self._n_rows_before > 0 and self.tally.misses > 0 and self.tally.hits == 0

    def begin_epoch(self) -> None:
        """Start a new tally, and forget all rows if anything in the module has changed."""
        if self._admission.find_change():
            self.forget()
        self.tally, self._n_rows_before = Tally(), len(self.rows)
        # Drawn from the system, since training and checkpoints depend on all other generators.
        self._hits_until_check = secrets.randbelow(max(1, len(self.rows)))

    def forget(self) -> None:
        """Forget all rows, and everything learned about the module."""
        self.rows.clear()
        self._admission = Admission(self.module)
        self._layouts: dict[Hashable, _Layout] = {}
        self._seconds_per_row = math.inf

    def remove(self) -> None:
        """Restore the module's own call, and forget all rows."""
        self.rows.clear()
        if self.is_in_place:
            del self.module._compiled_call_impl

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # for networks that pickle all of their attributes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""
        self.is_called = True
        hits_before, computing_before = self.tally.hits, self._seconds_computing
        with Stopwatch() as watch:
            found = self._look_up(args, kwargs)
            output = None if found is None else self._answer(*found)
        if found is None:
            return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        n_hits = self.tally.hits - hits_before
        overhead = watch.seconds - (self._seconds_computing - computing_before)
        self.tally.saved += (n_hits * self._seconds_per_row if n_hits else 0.0) - overhead
        return output

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Request, _Layout, list[bytes]] | None:
        """Find the layout of a call and the keys of its rows; None if it cannot be answered from memory."""
        if is_transformed():
            return None
        try:
            if not (self._admission.seems_current or self._catch_up()):
                return None
            request = self._admission.read(args, kwargs)
            if request is None:
                return None
            if len(self._layouts) > _MAX_LAYOUTS:
                self.rows.clear()
                self._layouts.clear()
            layout = self._layouts.get(request.layout)
            if layout is None:
                layout = self._layouts[request.layout] = _Layout(secrets.randbits(64))
            keys = request.call.row_keys(layout.seed)
        except NotCacheableError as error:
            self.reject(error, False)
        except (RuntimeError, TypeError) as error:
            self.reject(NotCacheableError(f"its input cannot be split into rows: {error}"), False)
        else:
            return (request, layout, keys) if keys else None
        return None

    def _catch_up(self) -> bool:
        """Follow a change of the module; return whether it is still frozen."""
        if any(tensor.requires_grad for tensor in self.module.parameters()):
            self.remove()
            return False
        if self._admission.find_change(trust_versions=True):
            self.forget()
        return True

    def _answer(self, request: Request, layout: _Layout, keys: list[bytes]) -> Any:
        known = {i: row for i, row in enumerate(self.rows.get(keys)) if row is not None}
        if layout.output is None or not known:
            return self._fill(request, layout, keys)
        if self.check:
            self._check_hits(request.call, layout, known)
        missing = [i for i in range(len(keys)) if i not in known]
        if missing:
            computed, watch = request.call.take(missing), self._admission.start_watch()
            output = self._compute(computed)
            try:
                self._admission.finish_watch(watch, computed, output)
                fresh = self._store(layout, [keys[i] for i in missing], output)
            except NotCacheableError as error:
                self._reject(error, request.call)
                return self._compute(request.call)
            known.update(zip(missing, fresh, strict=True))
        self.tally.hits += len(keys) - len(missing)
        self.tally.misses += len(missing)
        return layout.output.join([known[i] for i in range(len(keys))])

    def _fill(self, request: Request, layout: _Layout, keys: list[bytes]) -> Any:
        """Compute a whole batch, and cache its rows if trials find them independent."""
        self.tally.misses += len(keys)
        trial = self._admission.start_trial(request)
        if trial is not None and trial.is_module_changed:
            self.rows.clear()
        watch = trial or self._admission.start_watch()
        output = self._compute(request.call)
        try:
            if trial is None:
                self._admission.finish_watch(watch, request.call, output)
            else:
                self._admission.finish_trial(trial, request, output)
            if self._admission.is_row_wise(request):
                self._store(layout, keys, output)
        except NotCacheableError as error:
            self._reject(error, request.call)
        return output

    def _reject(self, error: NotCacheableError, call: Call) -> None:
        self.reject(error, error.may_depend_on_mode and is_fit_in_eval_mode(self.module, call))

    def _store(self, layout: _Layout, keys: Sequence[bytes], output: Any) -> list[RowTensors]:
        known = layout.output or OutputSpec.of(output, len(keys))
        rows = known.split(output, len(keys))
        if layout.output is None:
            layout.output, layout.largest = known, largest_values(rows)
        self.rows.add(keys, rows)
        return rows

    def _check_hits(self, call: Call, layout: _Layout, hits: Mapping[int, RowTensors]) -> None:
        is_due = 0 <= self._hits_until_check < len(hits)
        self._hits_until_check -= len(hits)
        if not is_due or layout.output is None:
            return
        drawn = dict(list(hits.items())[-self.check :])
        if not reproduces(self.module, call, drawn, layout.output, layout.largest):
            raise RuntimeError(
                f"frozen_cache: {self.name} now gives another output for a row than when the row was cached, although "
                "nothing in it seems to have changed. Either its output depends on the rest of the batch or on "
                "something outside of it, or it was modified through .data or numpy during this epoch; "
                "name other modules in `modules`"
            )

    def _compute(self, call: Call) -> Any:
        with Stopwatch() as watch:
            output = self.module._call_impl(*call.args, **call.kwargs)  # type: ignore[no-untyped-call]
        self._seconds_computing += watch.seconds
        self._seconds_per_row = min(self._seconds_per_row, watch.seconds / len(call))
        return output
