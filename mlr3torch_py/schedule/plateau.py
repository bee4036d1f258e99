"""Plateau: the condition that a score has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlr3torch_py.select.value import Value, value

__all__ = ["Plateau", "Stagnation", "whole"]


@value
class Plateau(Value):
    """A condition instead of a time: a score of the history has stopped improving.

    It is looked at when an epoch begins, from the epochs before. A score counts as better when it beats the best one
    so far by more than `min_delta`; the condition holds after `patience` epochs without a better one. Several
    conditions of a callback come one after the other, in the order of the table: each looks only at the epochs since
    the one before it came.

    Parameters
    ----------
    monitor : str
        The key in a row of ``net.history``.
    patience : int
        How many epochs without a better score are waited for, from 1.
    min_delta : float
        By how much a score must be better to count, in the units of the score.
    lower_is_better : bool
        Whether a smaller score is the better one, as for a loss.
    no_later_than : int, optional
        The epoch at which the condition holds at the latest.

    Raises
    ------
    TypeError, ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> Plateau("valid_loss", patience=2).holds([0.9, 0.5, 0.6, 0.5])
    True
    >>> Plateau("valid_loss", patience=2).holds([0.9, 0.5, 0.6, 0.4])
    False
    """

    monitor: str = "valid_loss"
    patience: int = 3
    min_delta: float = 0.0
    lower_is_better: bool = True
    no_later_than: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str):
            raise TypeError(f"`monitor` is {self.monitor!r}; give the name of a score in the history")
        for name, n in (("patience", self.patience), ("no_later_than", self.no_later_than)):
            if not (name == "no_later_than" and n is None) and whole(n) is None:
                raise TypeError(f"`{name}` is {n!r}; give a whole number of epochs, such as 3")
            if n is not None and n < 1:
                raise ValueError(f"`{name}` is {n!r}; epochs count from 1")
            object.__setattr__(self, name, whole(n))
        if not isinstance(self.lower_is_better, bool):
            raise TypeError(f"`lower_is_better` is {self.lower_is_better!r}; it must be True or False")
        if isinstance(self.min_delta, bool) or not isinstance(self.min_delta, (int, float)) or not self.min_delta >= 0:
            raise ValueError(f"`min_delta` is {self.min_delta!r}; give a number from 0")

    def holds(self, scores: Sequence[float]) -> bool:
        """Say whether the scores of the epochs that are looked at have stopped improving.

        Parameters
        ----------
        scores : sequence of float
            One score per epoch, the oldest first. A missing score (NaN) is no improvement.

        Returns
        -------
        bool
        """
        return self.stagnation(enumerate(scores)).epochs_since >= self.patience

    def stagnation(self, scores: Iterable[tuple[int, float]]) -> Stagnation:
        """Say which epoch had the best score, and how many epochs have passed since.

        Parameters
        ----------
        scores : iterable of (int, float)
            Epochs and their scores, the oldest first.

        Returns
        -------
        Stagnation
        """
        best_cost, found = math.inf, Stagnation()
        for epoch, score in scores:
            cost = score if self.lower_is_better else -score
            if cost < best_cost - self.min_delta:
                best_cost, found = cost, Stagnation(epoch, score, 0)
            else:
                found = found._replace(epochs_since=found.epochs_since + 1)
        return found


class Stagnation(NamedTuple):
    """The best score of some epochs.

    Parameters
    ----------
    best_epoch : int or None
    best_score : float or None
    epochs_since : int
        How many epochs without a better score have passed since.
    """

    best_epoch: int | None = None
    best_score: float | None = None
    epochs_since: int = 0


def whole(cell: Any) -> int | None:
    """Return a cell as a whole number; None if it is none."""
    if isinstance(cell, bool) or not isinstance(cell, (int, float, np.integer, np.floating)):
        return None
    return int(cell) if isinstance(cell, (int, np.integer)) or cell.is_integer() else None
