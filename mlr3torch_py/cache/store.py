"""A store of rows by key, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch

from mlr3torch_py.cache.rows import RowTensors

__all__ = ["Budget", "RowCache"]

# About what Python and torch need for a tensor object, its key, and its entries in the tables.
_BYTES_PER_OBJECT: Final = 1024


class Budget:
    """A number of bytes that several caches share.

    Parameters
    ----------
    max_bytes : int

    Examples
    --------
    >>> budget = Budget(100)
    >>> budget.take(80), budget.take(30)
    (True, False)
    >>> budget.used, budget.is_short
    (80, True)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used: int = 0
        self.is_short: bool = False

    def take(self, n_bytes: int) -> bool:
        """Take some bytes, if so many are left."""
        if self.used + n_bytes > self.max_bytes:
            self.is_short = True
            return False
        self.used += n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """Return bytes to the budget."""
        self.used -= n_bytes


class RowCache:
    """Copies of rows by key.

    Rows are not evicted when the budget is used up: training asks for all rows in turn, so evicting the least recently
    used one would drop each row just before it is needed. Only rows that were not used for a whole epoch make room.

    Parameters
    ----------
    budget : Budget

    Examples
    --------
    >>> cache = RowCache(Budget(1500))
    >>> cache.add([b"a", b"b"], [(torch.ones(2),), (torch.zeros(2),)])
    >>> cache.get([b"a", b"b"])
    [(tensor([1., 1.]),), None]
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._rows: dict[bytes, RowTensors] = {}
        self._used: set[bytes] = set()

    @property
    def n_bytes(self) -> int:
        """The bytes that the rows take."""
        return sum(map(_size, self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[bytes]) -> list[RowTensors | None]:
        """Return the row of each key, None for unknown keys."""
        rows = list(map(self._rows.get, keys))
        self._used.update(key for key, row in zip(keys, rows, strict=True) if row is not None)
        return rows

    def add(self, keys: Iterable[bytes], rows: Iterable[RowTensors]) -> None:
        """Copy rows into the cache until the budget is used up."""
        with torch.inference_mode(False):
            for key, row in zip(keys, rows, strict=True):
                if key not in self._rows:
                    if not self._budget.take(_size(row)):
                        return
                    self._rows[key] = tuple(tensor.clone() for tensor in row)
                self._used.add(key)

    def end_epoch(self) -> None:
        """Drop the rows not used since the last call, if the budget was short."""
        if self._budget.is_short:
            for key in self._rows.keys() - self._used:
                self._budget.give_back(_size(self._rows.pop(key)))
        self._used.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self._budget.give_back(self.n_bytes)
        self._rows.clear()
        self._used.clear()


def _size(row: RowTensors) -> int:
    return sum(tensor.nbytes + _BYTES_PER_OBJECT for tensor in row)
