"""What is kept of a frozen module whose outputs are cached: its rows, what is known about it, and a tally."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.code import Code
from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.passes.answer import Answer
from mlr3torch_py.cache.passes.place import InPlace
from mlr3torch_py.cache.passes.placeholder import Passes
from mlr3torch_py.cache.passes.stopwatch import Pace, Stopwatch
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.storage.known import Known
from mlr3torch_py.cache.storage.layout import Layout
from mlr3torch_py.cache.storage.packing import Recalled
from mlr3torch_py.cache.storage.store import Budget
from mlr3torch_py.cache.storage.tally import Tally
from mlr3torch_py.cache.trials.admission import Admission, dependent, is_fit_in_eval_mode
from mlr3torch_py.cache.trials.check import HitCheck

__all__ = ["CachedStage"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


class CachedStage(InPlace):
    """A frozen module in whose place calls are answered, as `CachedModule` does, until `remove`.

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
    """

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
        super().__init__(module)
        self.name = name
        self.identity: str = identity or name
        self.budget = budget
        self.reject = reject
        self.is_link = is_link
        self.tally: Tally = Tally()
        self.is_called: bool = False
        self.is_kept: bool = False  # after training, when it follows changes at every call
        self._kept_code: Code | None = None  # then
        self._passes = Passes() if passes is None else passes
        self._check = HitCheck(check)
        self._n_rows = self._n_known = 0
        self._had_rows = False  # when the epoch began; what it is given may be known for longer
        self.lost_to: str = ""  # what has changed since the epoch began, so that all rows were forgotten
        self.n_in_vain: int = 0  # epochs in a row before this one in which no row came again for that reason
        self._seconds_computing = 0.0
        self._known = Known(self.identity)
        self.forget()
        self.put_in_place()

    @property
    def has_verdict(self) -> bool:
        """Whether trials have found some calls to be cacheable, or not."""
        return self._admission.has_verdict

    @property
    def is_in_vain(self) -> bool:
        """Whether all rows were forgotten since the epoch began, and none came again."""
        return bool(self.lost_to) and self._n_rows > 0 and self._n_known == 0

    @property
    def is_idle(self) -> bool:
        """Whether the epoch began with known rows, and none of them came again."""
        return self._had_rows and self._known.n_remembered > 0 and self._n_rows > 0 and self._n_known == 0

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
        self._had_rows = any(True for _ in self.layouts)
        self.tally = Tally()
        self._check.begin_epoch(sum(len(table) for layout in self.layouts for table in layout.tables))

    @property
    def last_change(self) -> str | None:
        """What has changed in the module when something had last."""
        return self._admission.state.last_change

    def follow_changes(self) -> str | None:
        """Forget all rows if anything in the module has changed; return what."""
        change = self._admission.state.find_change()
        if change is None and self._has_other_code:
            change = "its code, or what it refers to,"
        if change is not None:
            logger.info("frozen_cache: rows of %s are forgotten, since %s has changed", self.name, change)
            self.lost_to = change
            self.forget()
        return change

    @property
    def _has_other_code(self) -> bool:
        """Whether code has changed, and after training what objects hold, too."""
        state = self._admission.state
        return state.code_now() != self._kept_code if self.is_kept else state.has_other_code()

    def keep(self) -> None:
        """Answer calls after training, too, from now on following what code and objects hold, as far as it is known."""
        self.is_kept = True
        self._kept_code = self._admission.state.code_now()
        if lacks := self._kept_code.lacks:
            logger.info("frozen_cache: of %s, changes are not followed in %s", self.name, "; ".join(lacks))

    def unstore(self, *, own: bool = False) -> None:
        """Drop the rows that are on disk, or those of this training."""
        for layout in self.layouts:
            layout.unstore(own=own)

    def end_epoch(self, used_epochs: Set[int] | None = None) -> None:
        """Drop rows that cannot be asked for any more, and stale ones; see `Table.end_epoch`."""
        self.n_in_vain, self.lost_to = (self.n_in_vain + 1 if self.is_in_vain else 0), ""
        self._known.end_epoch(used_epochs)

    @property
    def digest(self) -> str:
        """A hash of the module's state and of its code, which is the same in other processes.

        Raises
        ------
        NotPortableError
            If there is none; the message names what is to blame.
        """
        return self._admission.state.digest

    @property
    def code(self) -> Code:
        """The module's code.

        Raises
        ------
        NotPortableError
            If some of it cannot be read.
        """
        return self._admission.state.code

    @property
    def lost_on_resume(self) -> str:
        """Why a checkpoint cannot keep rows of it; empty if it can."""
        try:
            _ = self.digest
        except NotPortableError as error:
            return f"since no other process can tell {error}: use functions and classes of a file, and plain values"
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
        self._pace = Pace()
        if self.is_kept:
            self._kept_code = self._admission.state.code_now()

    def remove(self) -> None:
        """Restore the module's own call, and forget all rows."""
        self._known.drop()
        super().remove()

    @property
    def seconds_per_row(self) -> float:
        """The seconds for computing a row, by the fastest call so far."""
        return self._pace.seconds_per_row

    @seconds_per_row.setter
    def seconds_per_row(self, seconds: float) -> None:
        self._pace = Pace(seconds)

    def compute(self, call: Call) -> Any:
        """Compute a call."""
        with self._passes.suspended(), Stopwatch(call.device) as watch:
            output = self.module._call_impl(*call.args, **call.kwargs)  # type: ignore[no-untyped-call]
        self._seconds_computing += watch.seconds
        self._pace.note(watch, len(call))
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

    def _reject(self, error: NotCacheableError, call: Call) -> None:
        self.reject(error, error.may_depend_on_mode and is_fit_in_eval_mode(self.module, call))
