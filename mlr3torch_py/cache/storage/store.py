"""Tables of rows by key, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import accumulate, pairwise
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from mlr3torch_py.cache.rows.keys import BYTES_PER_KEY, Keys, Places, packed_keys, unpacked_keys
from mlr3torch_py.cache.rows.output import RowSpec
from mlr3torch_py.cache.storage.memory import Memory, index_on

if TYPE_CHECKING:
    from mlr3torch_py.cache.storage.shelf import Shelf

__all__ = ["Budget", "PackedTable", "Table"]

PackedTable: TypeAlias = tuple[torch.Tensor, torch.Tensor, dict[int, int]]


class Budget:
    """A number of bytes that several tables share.

    Parameters
    ----------
    max_bytes : int
    shelf : Shelf, optional
        The store on disk behind the tables.
    device : torch.device, optional
        Where the tables keep rows; by default where the outputs are.

    Attributes
    ----------
    epoch : int
        The number of the current epoch.
    n_changes : int
        How often rows were added to a table or dropped from it.

    Examples
    --------
    >>> budget = Budget(100)
    >>> budget.take(2, of=40), budget.take(2, of=15)
    (2, 1)
    >>> budget.used, budget.is_short
    (95, True)
    """

    def __init__(self, max_bytes: int, shelf: Shelf | None = None, device: torch.device | None = None) -> None:
        self.max_bytes: int = max_bytes
        self.shelf: Shelf | None = shelf
        self.device: torch.device | None = device
        self.used: int = 0
        self.is_short: bool = False
        self.epoch: int = 0
        self.n_changes: int = 0

    def take(self, n: int, *, of: int) -> int:
        """Take the bytes of `n` things of one size, or of as many as fit; return their number."""
        n_fitting = max(0, min(n, (self.max_bytes - self.used) // of))
        self.is_short |= n_fitting < n
        self.used += n_fitting * of
        return n_fitting

    def give_back(self, n_bytes: int) -> None:
        """Return bytes to the budget."""
        self.used -= n_bytes


class Table:
    """Copies of rows by key, in one tensor.

    Rows are not evicted when the budget is used up: training asks for all rows in turn, so evicting the least recently
    used one would drop each row just before it is needed. Only rows that were not used for a whole epoch make room. If
    none of the rows that were added in one epoch is used in another, all of these go, as rows that are augmented at
    random never come again.

    Parameters
    ----------
    row : RowSpec
    budget : Budget

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> table = Table(RowSpec(rows.shape[1:], rows.dtype, rows.device, (0, 1)), Budget(1000))
    >>> a, b, c = (letter.encode() * 16 for letter in "abc")
    >>> table.add([a, b], rows)
    >>> table.find([b, c]).tolist()
    [1, -1]
    >>> table.gather([1])
    tensor([[3., 4.]])
    """

    def __init__(self, row: RowSpec, budget: Budget) -> None:
        self._budget = budget
        self._row_bytes = prod(row.shape) * row.dtype.itemsize + BYTES_PER_KEY
        self._keys = Keys()
        self._added: dict[int, int] = {}  # how many of the rows, in their order, were added in which epoch
        self._is_used = np.zeros(1, bool)  # by row; the last one takes what is not found
        self._was_asked = False
        self._memory = Memory(row, budget.device)

    @property
    def n_bytes(self) -> int:
        """The bytes that the table takes."""
        return len(self._memory) * self._row_bytes

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Sequence[bytes]) -> Places:
        """Return the position of each key, -1 for unknown keys, and note the use of these rows."""
        self._was_asked = True
        slots = self._keys.find(keys)
        self._is_used[slots] = True
        return slots

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        """Return whether the row of each key is there."""
        return [slot >= 0 for slot in self._keys.find(keys).tolist()]

    def gather(self, slots: Sequence[int] | Places) -> torch.Tensor:
        """Copy the rows at some positions into a new tensor."""
        return self._memory.read(slots)

    def add(self, keys: Sequence[bytes], rows: torch.Tensor) -> None:
        """Copy rows into the table until the budget is used up."""
        slots = self.find(keys)
        new = {keys[i]: i for i in np.flatnonzero(slots < 0).tolist()}
        if not new:
            return
        start = len(self)
        if start + len(new) > len(self._memory):
            self._grow(max(start + len(new), len(self._memory) * 3 // 2))
        names = list(new)[: len(self._memory) - start]
        if not names:
            return
        chosen = [new[name] for name in names]
        rows = rows.detach()
        is_whole = chosen == list(range(len(rows)))
        self._memory.write(start, rows if is_whole else rows.index_select(0, index_on(chosen, rows.device)))
        self._keys.add(names)
        self._is_used = np.concatenate((self._is_used[:-1], np.ones(len(names) + 1, bool)))
        self._added[self._budget.epoch] = self._added.get(self._budget.epoch, 0) + len(names)
        self._budget.n_changes += 1

    def packed(self) -> PackedTable:
        """Return keys, rows and when these were added; later changes of the table leave all of it as it is."""
        return packed_keys(self._keys), self._memory.on_cpu(len(self)), dict(self._added)

    def recall(self, packed: PackedTable) -> None:
        """Add the rows that `packed` has returned."""
        keys, rows, added = packed
        self.add(unpacked_keys(keys), rows)
        self._forget_use()
        ends = [min(end, len(self)) for end in accumulate(added.values(), initial=0)]
        self._added = {epoch: end - start for epoch, (start, end) in zip(added, pairwise(ends), strict=True)}

    @property
    def used_epochs(self) -> set[int]:
        """The epochs in which rows were added that were used in this one."""
        return {epoch for epoch, slots in self._by_epoch() if self._is_used[slots.start : slots.stop].any()}

    def end_epoch(self, used_epochs: Set[int] | None = None) -> set[bytes]:
        """Return unused space, and drop rows.

        Parameters
        ----------
        used_epochs : set of int, optional
            Those of all tables. If something was asked for, the rows of other epochs are dropped; in any case all that
            were not used in this epoch, if the budget was short.

        Returns
        -------
        set of bytes
            The keys that were dropped.
        """
        kept: Sequence[int] = range(len(self))
        if self._budget.is_short:
            kept = np.flatnonzero(self._is_used[:-1]).tolist()
        elif self._was_asked and used_epochs is not None and not self._added.keys() <= used_epochs:
            kept = [slot for epoch, slots in self._by_epoch() if epoch in used_epochs for slot in slots]
        stale = self._dropped(kept) if len(kept) < len(self) else set()
        if stale or len(self) < len(self._memory):
            self._budget.give_back(self.n_bytes - len(kept) * self._row_bytes)
            self._memory.keep(kept)
        self._keys.pack()
        self._forget_use()
        return stale

    def clear(self) -> None:
        """Drop all rows."""
        self._budget.give_back(self.n_bytes)
        self._budget.n_changes += 1
        self._keys.clear()
        self._added = {}
        self._memory.keep([])
        self._forget_use()

    def _dropped(self, kept: Sequence[int]) -> set[bytes]:
        """Drop the keys of rows that are not kept, and return them."""
        self._budget.n_changes += 1
        is_kept = set(kept)
        stale = {key for slot, key in enumerate(self._keys) if slot not in is_kept}
        left = {epoch: len(is_kept.intersection(slots)) for epoch, slots in self._by_epoch()}
        self._added = {epoch: n for epoch, n in left.items() if n}
        self._keys.keep(kept)
        return stale

    def _forget_use(self) -> None:
        self._is_used, self._was_asked = np.zeros(len(self) + 1, bool), False

    def _by_epoch(self) -> Iterator[tuple[int, range]]:
        """List the positions of the rows that were added in each epoch."""
        ends = pairwise(accumulate(self._added.values(), initial=0))
        return ((epoch, range(start, end)) for epoch, (start, end) in zip(self._added, ends, strict=True))

    def _grow(self, n_rows: int) -> None:
        n_rows = len(self._memory) + self._budget.take(n_rows - len(self._memory), of=self._row_bytes)
        if n_rows > len(self._memory):
            self._memory.grow(n_rows)
