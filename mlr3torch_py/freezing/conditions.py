"""Rows that wait for a condition: which conditions have been met, and at which epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mlr3torch_py.protocols import History, Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import Row
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.scoring import lower_is_better

__all__ = ["CAME", "conditions_of", "effects_of", "met_before", "met_by_now"]

# A list of what the rows did whose conditions were met in an epoch. skorch prints no key that ends so.
CAME: Final = "conditions{}_met_from_batch_count"


def conditions_of(plans: Iterable[Plan]) -> dict[int, Plateau]:
    """Map the positions of rows to their conditions."""
    return {row.position: row.time for row in _rows_of(plans) if isinstance(row.time, Plateau)}


def effects_of(plans: Iterable[Plan]) -> dict[int, str]:
    """Map the positions of rows with conditions to what they do, by which a history tells them from others."""
    return {row.position: f"{row.action} {row.weights!r}" for row in _rows_of(plans)}


def met_before(history: History, key: str, effects: Mapping[int, str]) -> dict[int, int]:
    """Read from a history which conditions have been met, and at which epoch.

    Parameters
    ----------
    history : skorch.history.History
    key : str
        The key under which it says what those rows did whose conditions were met in an epoch.
    effects : mapping of int to str
        What the rows do that there are now, by position. Of rows that do the same, the first have come first.
    """
    came: dict[str, list[int]] = {}
    for epoch, row in enumerate(history.to_list(), start=1):
        for effect in row.get(key) or ():
            came.setdefault(effect, []).append(epoch)
    met = ((position, came[effect].pop(0)) for position, effect in effects.items() if came.get(effect))
    return dict(met)


def _rows_of(plans: Iterable[Plan]) -> Iterator[Row]:
    return (step.row for plan in plans for step in plan.conditions)


def met_by_now(net: Net, conditions: Mapping[int, Plateau], met: Mapping[int, int]) -> dict[int, int]:
    """Decide which conditions are met; the last row of the history is that of the epoch that begins.

    Parameters
    ----------
    net : skorch.NeuralNet
    conditions : mapping of int to Plateau
        By the position of the row. Each counts epochs since the one before it was met.
    met : mapping of int to int
        Those that were met before, and at which epoch.
    """
    met, epoch, since = dict(met), len(net.history), 1
    for position, condition in conditions.items():
        if position not in met:
            by_epoch = scores_by_epoch(net.history, condition.monitor)
            scores = [score for at, score in by_epoch if since <= at < epoch]
            too_late = condition.no_later_than is not None and epoch >= condition.no_later_than
            if too_late or condition.directed(lower_is_better(net, condition.monitor)).holds(scores):
                met[position] = epoch
        since = met.get(position, epoch)
    return met
