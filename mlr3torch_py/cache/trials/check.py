"""Which rows from memory are computed again, to see whether they still are what they were."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

__all__ = ["HitCheck"]

_MAX_SHARE: Final = 0.0005


class HitCheck:
    """Choose the rows from memory that are computed again: some of one batch, drawn at random.

    That is done in the first epoch with hits, and then as often as it takes no more than 0.05 % of the seconds that
    hits have saved in the meantime.

    Parameters
    ----------
    n_rows : int
        How many rows are checked at a time.

    Examples
    --------
    >>> check = HitCheck(2)
    >>> check.begin_epoch(n_known=3)
    >>> check.draw([0, 1, 2])
    [1, 2]
    >>> check.pay(0.5, seconds_per_row=0.01)
    >>> check.begin_epoch(n_known=3)
    >>> check.draw([0, 1, 2])
    []
    """

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._hits_until_drawn = -1
        self._hits_until_due = 0.0

    def begin_epoch(self, n_known: int) -> None:
        """Draw a hit, if a check is due."""
        # Drawn from the system, since training and checkpoints depend on all other generators.
        self._hits_until_drawn = (
            secrets.randbelow(max(1, n_known)) if self._n_rows and self._hits_until_due <= 0 else -1
        )

    def draw(self, known: Sequence[int]) -> list[int]:
        """Return which of the rows to check, if the hit that was drawn is among them."""
        is_drawn = 0 <= self._hits_until_drawn < len(known)
        self._hits_until_drawn -= len(known)
        self._hits_until_due -= len(known)
        return list(known[-self._n_rows :]) if is_drawn else []

    def skip(self, n_rows: int) -> None:
        """Draw no hit in this epoch, since some rows were computed again nevertheless."""
        self._hits_until_drawn = -1
        self._hits_until_due = n_rows / _MAX_SHARE

    def pay(self, seconds: float, seconds_per_row: float) -> None:
        """Wait until the hits have saved enough for the seconds of a check."""
        self._hits_until_due = seconds / seconds_per_row / _MAX_SHARE if seconds_per_row > 0 else 0.0
