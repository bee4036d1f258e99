"""Rows that are kept in memory by their keys, within a limit of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mlr3torch_py.cache.rows import Row

__all__ = ["Budget", "RowCache"]

# What Python and torch take for a tensor of their own, its key, and its places in the tables, about.
_BYTES_BESIDE = 1024


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
        self.used = 0
        self.is_short = False

    def take(self, n_bytes: int) -> bool:
        """Take some bytes, if they are left."""
        if self.used + n_bytes > self.max_bytes:
            self.is_short = True
            return False
        self.used += n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """Give bytes back."""
        self.used -= n_bytes


class RowCache:
    """Copies of rows by their keys.

    What is there stays when the budget is used up, since in training all rows are asked for in turn: to drop the one
    that was used longest ago would drop each just before it is needed. Only rows that nobody asked for during a whole
    epoch make room.

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
        self._rows: dict[bytes, Row] = {}
        self._used: set[bytes] = set()

    @property
    def n_bytes(self) -> int:
        """What the rows take."""
        return sum(map(_size, self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Return the row of each key, None where there is none."""
        rows = list(map(self._rows.get, keys))
        self._used.update(key for key, row in zip(keys, rows, strict=True) if row is not None)
        return rows

    def add(self, keys: Iterable[bytes], rows: Iterable[Row]) -> None:
        """Keep copies of rows, as many as the budget has room for."""
        with torch.inference_mode(False):
            for key, row in zip(keys, rows, strict=True):
                if key not in self._rows:
                    if not self._budget.take(_size(row)):
                        return
                    self._rows[key] = tuple(tensor.clone() for tensor in row)
                self._used.add(key)

    def end_epoch(self) -> None:
        """Drop, if there was no room, the rows that were not asked for since the last call."""
        if self._budget.is_short:
            for key in self._rows.keys() - self._used:
                self._budget.give_back(_size(self._rows.pop(key)))
        self._used.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self._budget.give_back(self.n_bytes)
        self._rows.clear()
        self._used.clear()


def _size(row: Row) -> int:
    return sum(tensor.nbytes + _BYTES_BESIDE for tensor in row)
