"""Rows that wait for a condition: which conditions have been met, and at which epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlr3torch_py.protocols import History, Net
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.scoring import lower_is_better

__all__ = ["conditions_of", "met_before", "met_by_now"]


def conditions_of(plans: Iterable[Plan]) -> dict[int, Plateau]:
    """Map the positions of rows to their conditions."""
    rows = [step.row for plan in plans for step in plan.conditions]
    return {row.position: row.time for row in rows if isinstance(row.time, Plateau)}


def met_before(history: History, keys: Mapping[int, str]) -> dict[int, int]:
    """Read from a history which conditions have been met, and at which epoch.

    Parameters
    ----------
    history : skorch.history.History
    keys : mapping of int to str
        The key under which it says so, by the position of the row.
    """
    return {
        position: epoch
        for position, key in keys.items()
        for epoch, row in enumerate(history.to_list(), start=1)
        if row.get(key)
    }


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
