"""What a call of a cached module gives: known by the keys of its rows, and computed where needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from mlr3torch_py.cache.rows.call import Call, Reference
from mlr3torch_py.cache.rows.rounding import distance, precision_of
from mlr3torch_py.cache.storage.layout import N_TRIALS, Layout
from mlr3torch_py.cache.storage.store import Budget, Table
from mlr3torch_py.cache.storage.tally import Tally

__all__ = ["Answer", "Stage"]


class Stage(Protocol):
    """What an answer needs of the cached module that gives it."""

    name: str
    module: nn.Module
    budget: Budget
    tally: Tally
    seconds_per_row: float

    def compute(self, call: Call) -> Any: ...
    def count(self, answer: Answer, index: int, known: Sequence[int], value: torch.Tensor) -> None: ...
    def reject_dependent(self, call: Call) -> None: ...
    def skip_check(self, n_rows: int) -> None: ...


class Rows(NamedTuple):
    """The values of all rows.

    Parameters
    ----------
    known : sequence of int
        Which of them were not computed: in memory, or on disk.
    value : torch.Tensor
    n_in_memory : int
        How many of them were in memory.
    """

    known: Sequence[int]
    value: torch.Tensor
    n_in_memory: int = 0


class Answer:
    """What a call of a cached module gives.

    It never changes, and holds no values but those that were given to the first of the modules.

    Parameters
    ----------
    stage : Stage
        The cached module.
    layout : Layout
    call : Call or tuple
        With a `Reference` in place of each tensor that another answer gives; or its arguments, if all answers have the
        same keys.
    keys : list of bytes
        The key of each row.
    missing : list of int
        The rows that were not known, and are computed during the call.
    n_tried : int
        For how many trials the call counts, if all rows were computed.
    """

    __slots__ = ("_call", "is_counted", "keys", "layout", "missing", "n_tried", "source_keys", "stage")

    def __init__(
        self,
        stage: Stage,
        layout: Layout,
        call: Call | tuple[tuple[Any, ...], dict[str, Any]],
        keys: list[bytes],
        missing: list[int],
        *,
        n_tried: int = 1,
    ) -> None:
        self.stage: Stage = stage
        self.layout: Layout = layout
        self._call: Call | tuple[tuple[Any, ...], dict[str, Any]] = call
        self.keys: list[bytes] = keys
        self.missing: list[int] = missing
        self.is_counted: bool = False
        self.n_tried: int = n_tried
        self.source_keys: Sequence[tuple[Layout, list[bytes]]] = (
            _source_keys(call, layout, keys) if isinstance(call, Call) else _first_source_keys(*call)
        )

    @property
    def call(self) -> Call:
        """The call."""
        if not isinstance(self._call, Call):  # made when it is needed, which is seldom
            self._call = Call(*self._call)
        return self._call

    @property
    def chain(self) -> list[Answer]:
        """The answers that it is made from, and itself, in the order of their calls."""
        found: dict[Answer, None] = {}
        waiting = [self]
        while waiting:  # not by recursion, since there may be more of them than Python allows
            before = [one.answer for one in waiting[-1].call.references if one.answer not in found]
            if before:
                waiting += before
            else:
                found[waiting.pop()] = None
        return list(found)

    @property
    def has_changed_input(self) -> bool:
        """Whether the values that the first modules were given were modified."""
        return any(answer.call.has_changed() for answer in self.chain)

    @property
    def seconds_per_row(self) -> float:
        """The estimated seconds for computing one row."""
        return sum(answer.stage.seconds_per_row for answer in self.chain)

    @property
    def precision(self) -> float:
        """The precision of the coarsest dtype that is known to take part."""
        return max(
            precision_of(
                answer.stage.module,
                answer.call,
                [torch.empty(0, dtype=row.dtype) for row in answer.layout.spec.tensors],
            )
            for answer in self.chain
        )

    def with_missing(self, rows: list[int]) -> Answer:
        """Return the answer if other rows had been computed."""
        return Answer(self.stage, self.layout, self.call, self.keys, rows, n_tried=self.n_tried)

    def compute(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """Compute some rows from the values that the first modules were given.

        Raises
        ------
        RuntimeError
            If these were modified.
        """
        return self._compute_chain(rows)[self]

    def _compute_chain(self, rows: Sequence[int]) -> dict[Answer, list[torch.Tensor]]:
        outputs: dict[Answer, list[torch.Tensor]] = {}
        for answer in self.chain:
            outputs[answer] = answer._compute_from(outputs, rows)
        return outputs

    def _compute_from(self, outputs: Mapping[Answer, list[torch.Tensor]], rows: Sequence[int]) -> list[torch.Tensor]:
        if self.call.has_changed():
            raise RuntimeError(
                f"frozen_cache: an input of {self.stage.name} was modified in place before its output was used; "
                "use out-of-place operations, or name other modules in `modules`"
            )
        call = self._call_with(outputs, rows)
        is_grad_enabled, dtype = self.layout.modes
        device = call.device.type
        with torch.set_grad_enabled(is_grad_enabled), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            output = self.stage.compute(call)
        return self.layout.spec.tensors_of(output, len(rows))

    def _call_with(self, outputs: Mapping[Answer, list[torch.Tensor]], rows: Sequence[int]) -> Call:
        is_written = self.layout.relation == "written"

        def values(reference: Reference) -> torch.Tensor:
            value = outputs[reference.answer][reference.index]
            return value.clone() if is_written else value

        return self.call.take(rows, values)

    def fetch(self, index: int, part: torch.Tensor | None) -> torch.Tensor:
        """Return a tensor of the output, and keep its rows.

        Parameters
        ----------
        index : int
            Its position in the output.
        part : torch.Tensor or None
            The missing rows of it.
        """
        table = self.layout.table(index, self.stage.budget)
        if part is not None and len(part) == len(self.keys):
            rows = Rows([], part)
            counts = [answer.n_tried for answer in self.chain]
            self.layout.n_tried[index] += max(counts) if all(counts) else 0
        else:
            rows = self._gather(table, index, part)
            if rows.known and self.layout.n_tried[index] < N_TRIALS and not self.has_changed_input:
                whole = self._find_fault(index, rows.known, rows.value)
                if whole is not None:
                    return whole
        if rows.n_in_memory < len(self.keys):
            table.add(self.keys, rows.value)
            self._keep(index, table, rows)
        if not self.is_counted:
            self.stage.tally.stored += len(rows.known) - rows.n_in_memory
        self.stage.count(self, index, rows.known, rows.value)
        return rows.value

    def _gather(self, table: Table, index: int, part: torch.Tensor | None) -> Rows:
        """Take rows from memory and from disk, and compute those that are unexpectedly missing there."""
        slots = table.find(self.keys)
        if self.missing:
            slots[self.missing] = -1
        if np.minimum.reduce(slots) >= 0:
            return Rows(range(len(slots)), table.gather(slots), len(slots))
        known = np.flatnonzero(slots >= 0).tolist()
        stored, loaded = self._load(index, np.flatnonzero(slots < 0).tolist(), part)
        if loaded is not None and len(stored) == len(slots):
            return Rows(stored, loaded)
        value = self.layout.spec.tensors[index].empty(len(slots))
        if known:
            value[known] = table.gather(slots[known])
        if loaded is not None:
            value[stored] = loaded
        if part is not None:
            value[self.missing] = part
        if lacking := sorted(set(range(len(slots))).difference(self.missing, known, stored)):
            value[lacking] = self.compute(lacking)[index]
        return Rows(sorted([*known, *stored]), value, len(known))

    def _load(self, index: int, rows: list[int], part: torch.Tensor | None) -> tuple[list[int], torch.Tensor | None]:
        """Take rows from disk, once some of them are what is computed now."""
        shelved = self.layout.shelved
        if shelved is None:
            return [], None
        found, loaded = shelved.load(index, self.layout.spec.tensors[index], [self.keys[i] for i in rows])
        if loaded is None:
            return [], None
        stored = [rows[i] for i in found]
        if shelved.must_compare(index):
            if self.has_changed_input:
                return [], None
            if not self._is_as_stored(index, stored, loaded, part):
                self.layout.unstore()
                shelved.distrust()
                return [], None
            shelved.note_compared(index)
        fresh = set(self.missing)
        kept = [i for i, row in enumerate(stored) if row not in fresh]
        return [stored[i] for i in kept], loaded if len(kept) == len(stored) else loaded[kept]

    def _is_as_stored(self, index: int, stored: list[int], loaded: torch.Tensor, part: torch.Tensor | None) -> bool:
        """Compare rows from disk with those that were computed during the call, or with some that are computed now."""
        fresh = {row: i for i, row in enumerate(self.missing)}
        chosen = [i for i, row in enumerate(stored) if row in fresh]
        if chosen and part is not None:
            again = part[[fresh[stored[i]] for i in chosen]]
        else:
            chosen = list(range(len(stored)))[:: max(1, len(stored) - 1)]
            again = self.compute([stored[i] for i in chosen])[index]
        self.stage.skip_check(len(chosen))
        return self.is_near(index, loaded[chosen], again)

    def _keep(self, index: int, table: Table, rows: Rows) -> None:
        """Keep rows on disk that are new, and note which ones are known now."""
        on_disk = self._put(index, rows)
        known = on_disk if self.layout.shelved is None else on_disk.union(self.keys[i] for i in rows.known)
        in_memory = table.has(self.keys)
        kept = [there or key in known for there, key in zip(in_memory, self.keys, strict=True)]
        is_lost = [not one for one in kept]
        for source, keys in self.source_keys:
            if not source.is_dropped:
                source.complete.add(compress(keys, kept))
                if any(is_lost):
                    source.complete.remove(list(compress(keys, is_lost)))
                if source.shelved is not None and on_disk:
                    source.shelved.mark(compress(keys, (key in on_disk for key in self.keys)))
        shelf = self.stage.budget.shelf
        if on_disk and shelf is not None and shelf.is_kept:
            shelf.write()

    def _put(self, index: int, rows: Rows) -> set[bytes]:
        """Put rows on disk that are new, and return the keys of those that are kept there."""
        shelved, is_old = self.layout.shelved, set(rows.known)
        new = [] if shelved is None else [i for i in range(len(self.keys)) if i not in is_old]
        if shelved is None or not new:
            return set()
        value = rows.value if len(new) == len(self.keys) else rows.value[new]
        return shelved.put(index, self.layout.spec.tensors[index], [self.keys[i] for i in new], value)

    def _find_fault(self, index: int, known: Sequence[int], value: torch.Tensor) -> torch.Tensor | None:
        """Recompute rows from memory before the first are given away, if trials have not seen all positions of a batch.

        Returns
        -------
        torch.Tensor or None
            The values as they are without the cache, if a module turns out to mix rows, which is then rejected.
        """
        for rows in filter(None, (list(known[::-2]), list(known[-2::-2]))):
            if not self._gives_again(index, rows, value):
                every = range(len(self.keys))
                whole = self._compute_chain(every)
                if (culprit := self._culprit(whole, rows)) is None:
                    return None  # which a check of hits may find
                culprit.stage.reject_dependent(culprit._call_with(whole, every))
                return whole[self][index]
        if len(known) == len(self.keys):
            self.layout.n_tried[index] = N_TRIALS
        return None

    def _gives_again(self, index: int, rows: Sequence[int], value: torch.Tensor) -> bool:
        """Recompute some rows in a smaller batch, and if in doubt in as large a one; see `Again`."""
        try:
            found = self._distance(index, value[rows], self.compute(rows)[index])
            if found == 1:
                found = self._distance(index, value[rows], self.compute(self._repeated(rows))[index][: len(rows)])
        except Exception:  # whatever a module raises that accepts whole batches only
            return False
        return found < 1

    def _repeated(self, rows: Sequence[int]) -> list[int]:
        return [rows[i % len(rows)] for i in range(len(self.keys))]

    def _culprit(self, whole: Mapping[Answer, list[torch.Tensor]], rows: Sequence[int]) -> Answer | None:
        """Find the first call of the chain that gives other rows than in the whole batch."""
        part: dict[Answer, list[torch.Tensor]] = {}
        for one in self.chain:
            try:
                part[one] = one._compute_from(part, self._repeated(rows))
            except Exception:
                return one
            pairs = zip(whole[one], part[one], strict=True)
            if any(one._distance(i, w[rows], p[: len(rows)]) >= 1 for i, (w, p) in enumerate(pairs)):
                return one
        return None

    def is_near(self, index: int, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Check whether some rows of a tensor of the output are the same up to rounding."""
        return self._distance(index, one, other) <= 1

    def _distance(self, index: int, one: torch.Tensor, other: torch.Tensor) -> float:
        stored = 0.0 if self.layout.shelved is None else self.layout.shelved.precision
        precision = max(self.precision, stored)
        return distance([one], [other], precision=precision, largest=[self.layout.largest[index]])


def _source_keys(call: Call, layout: Layout, keys: list[bytes]) -> Sequence[tuple[Layout, list[bytes]]]:
    """List the layouts to which rows are given by value, each once for each call of it, with the keys of these rows."""
    own = [(layout, keys)] if call.has_rows else []
    found = [one for reference in call.references for one in reference.answer.source_keys]
    return list({(id(source), id(keys)): (source, keys) for source, keys in (*found, *own)}.values())


def _first_source_keys(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[tuple[Layout, list[bytes]]]:
    return next(one for one in (*args, *kwargs.values()) if type(one) is Reference).answer.source_keys
