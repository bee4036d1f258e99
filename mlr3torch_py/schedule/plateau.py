"""Plateau: a condition that holds once a score has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mlr3torch_py.arguments import check_flag, check_number, check_text, check_whole
from mlr3torch_py.select.value import fields_of, value
from mlr3torch_py.values import plain

__all__ = ["Plateau", "Stagnation", "as_whole"]


@value
class Plateau:
    """A condition: a score has stopped improving.

    In a table it takes the place of a time. It is checked when an epoch begins, on the epochs before. A score is better
    if it beats the best one so far by more than `min_delta`; the condition holds after `patience` evaluations without a
    better one. An epoch without the score, or with NaN or None, is no evaluation. Several conditions of a callback are
    met one after the other, in the order of the table: each sees only the epochs since the previous one was met.

    Parameters
    ----------
    monitor : str
        The key in a row of ``net.history``.
    patience : int
        The number of evaluations without a better score, at least 1.
    min_delta : float
        The least improvement of a better score, in the units of the score.
    lower_is_better : bool, optional
        Whether smaller scores are better, as for a loss. By default the callback of the net that records the score is
        asked, see `CallbackSetEarlyStopping`; without a net, smaller ones are.
    no_later_than : int, optional
        The epoch from which the condition holds in any case.

    Raises
    ------
    TypeError, ValueError
        If a parameter has a wrong type or is out of range.

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
    lower_is_better: bool | None = None
    no_later_than: int | None = None

    def __post_init__(self) -> None:
        monitor = check_text("monitor", self.monitor, "the name of a score in the history")
        object.__setattr__(self, "monitor", monitor)
        object.__setattr__(self, "patience", check_whole("patience", as_whole(self.patience), "epochs"))
        if self.no_later_than is not None:
            latest = check_whole("no_later_than", as_whole(self.no_later_than), "epochs")
            object.__setattr__(self, "no_later_than", latest)
        if self.lower_is_better is not None:
            object.__setattr__(self, "lower_is_better", check_flag("lower_is_better", self.lower_is_better))
        min_delta = check_number("min_delta", self.min_delta, "a finite number, at least 0", least=0)
        object.__setattr__(self, "min_delta", min_delta)

    def directed(self, lower_is_better: bool) -> Plateau:
        """Return the condition with a direction, which is its own if it has one.

        Parameters
        ----------
        lower_is_better : bool

        Returns
        -------
        Plateau
        """
        return (
            self
            if self.lower_is_better is not None
            else Plateau(**{**fields_of(self), "lower_is_better": lower_is_better})
        )

    def holds(self, scores: Sequence[float]) -> bool:
        """Return whether scores have stopped improving.

        Parameters
        ----------
        scores : sequence of float
            One score per epoch, the oldest first. NaN is no evaluation, and does not count.

        Returns
        -------
        bool
        """
        return self.stagnation(enumerate(scores)).epochs_since >= self.patience

    def stagnation(self, scores: Iterable[tuple[int, float]]) -> Stagnation:
        """Return the best score and its age.

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
            if math.isnan(score):
                continue
            cost = -score if self.lower_is_better is False else score
            if cost < best_cost - self.min_delta:
                best_cost, found = cost, Stagnation(epoch, score, 0)
            else:
                found = found._replace(epochs_since=found.epochs_since + 1)
        return found


class Stagnation(NamedTuple):
    """The best score of some epochs, and its age.

    Parameters
    ----------
    best_epoch : int or None
    best_score : float or None
    epochs_since : int
        The number of epochs since, all without a better score.
    """

    best_epoch: int | None = None
    best_score: float | None = None
    epochs_since: int = 0


def as_whole(cell: Any) -> Any:
    """Return whole numbers as int, and other values as plain Python objects.

    Examples
    --------
    >>> as_whole(2.0), as_whole(2.5)
    (2, 2.5)
    """
    cell = plain(cell)
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell
