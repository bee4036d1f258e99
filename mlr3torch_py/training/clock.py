"""Read the history of a net: the current moment, and the scores of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from mlr3torch_py.arguments import shown
from mlr3torch_py.protocols import History, Net
from mlr3torch_py.schedule.plan import Moment

__all__ = ["moment_of", "score_of", "scores_by_epoch", "take_back_epoch"]


def moment_of(history: History) -> Moment:
    """Return the current moment of a net from its history.

    Parameters
    ----------
    history : skorch.history.History or skorch.history.DistributedHistory
        Batches of an interrupted epoch count if they have a training loss. In such a row a distributed history holds
        the batches of all ranks; those of one rank are counted.

    Returns
    -------
    Moment
        Its batch is the last finished one. Validation batches do not count; micro-batches under gradient accumulation
        do.

    Examples
    --------
    >>> from skorch.history import History
    >>> moment = moment_of(History([{"train_batch_count": 3}, {"batches": [{"train_loss": 0.5}, {}]}]))
    >>> moment.epoch, moment.batch, moment.firsts
    (2, 4, (1, 4))
    """
    n_ranks = getattr(history, "world_size", 1)
    counts = [
        row["train_batch_count"]
        if "train_batch_count" in row
        else sum("train_loss" in entry for entry in row.get("batches", ())) // n_ranks
        for row in history.to_list()
    ]
    *finished_before, finished = accumulate(counts, initial=0)
    return Moment(epoch=len(counts), batch=finished, firsts=tuple(n + 1 for n in finished_before))


def take_back_epoch(net: Net) -> None:
    """Remove the history row of an untrained epoch."""
    if isinstance(net.history, list):
        net.history.pop()


def score_of(row: Mapping[str, Any], monitor: str) -> float | None:
    """Return a score from a row of a history.

    Returns
    -------
    float or None
        None if the epoch was not evaluated: if the row lacks the score, or it is None or NaN.

    Raises
    ------
    TypeError
        If it is no number.

    Examples
    --------
    >>> score_of({"valid_loss": 0.5}, "valid_loss"), score_of({}, "valid_loss")
    (0.5, None)
    """
    value = row.get(monitor)
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`monitor` is {monitor!r}, and the history has {shown(value)}; record a number") from error
    return None if math.isnan(score) else score


def scores_by_epoch(history: History, monitor: str) -> list[tuple[int, float]]:
    """List the scores of a history with their epochs.

    Epochs that were not evaluated are left out.
    """
    scores = [(epoch, score_of(row, monitor)) for epoch, row in enumerate(history.to_list(), start=1)]
    return [(epoch, score) for epoch, score in scores if score is not None]
