"""Read the history of a net: the current moment, and the scores of its epochs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, overload

from mlr3torch_py.protocols import History, Net
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.values import plain, shown

__all__ = [
    "has_ended",
    "moment_of",
    "n_batches_of",
    "row_of",
    "rows_of",
    "score_of",
    "scores_by_epoch",
    "take_back_epoch",
]


_AT_END: Final = ("valid_batch_count", "dur", "train_loss")  # what skorch records after all batches of an epoch


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
    rows = rows_of(history)
    n_ranks = getattr(history, "world_size", 1)
    if not rows:
        return Moment()
    ends = _ends_before_last(history, rows, n_ranks)
    batch = ends[len(rows) - 1] + n_batches_of(row_of(history, -1), n_ranks)
    return Moment(len(rows), batch, _Firsts(ends, len(rows)))


def row_of(history: History, i: int) -> dict[str, Any]:
    """Return a row of a history, without skorch's search in it, which takes longer the more rows there are."""
    row: dict[str, Any] = list.__getitem__(rows_of(history), i)
    return row


def rows_of(history: History) -> list[dict[str, Any]]:
    """Return the rows of a history, without a copy if it is a list."""
    return history if isinstance(history, list) else history.to_list()


def has_ended(row: Mapping[str, Any], scores: Iterable[str] = ()) -> bool:
    """Check whether an epoch is complete: nothing has interrupted it, in training or in validation.

    Parameters
    ----------
    row : mapping
    scores : iterable of str
        What else the callbacks of the net record at its end.

    Examples
    --------
    >>> has_ended({"train_batch_count": 3, "train_loss": 0.5}), has_ended({"train_batch_count": 3})
    (True, False)
    """
    return "train_batch_count" in row and not {*_AT_END, *scores}.isdisjoint(row)


class _Firsts(Sequence[int]):
    """The first batch of each epoch, as a view on a list that grows."""

    def __init__(self, ends: list[int], n: int) -> None:
        self._ends = ends
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[int, ...]: ...
    def __getitem__(self, i: int | slice) -> int | tuple[int, ...]:
        at = range(self._n)[i]
        return self._ends[at] + 1 if isinstance(at, int) else tuple(self._ends[one] + 1 for one in at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[type[tuple[int, ...]], tuple[tuple[int, ...]]]:
        return tuple, (tuple(self),)


# By the id of a history: the batches before each of its rows but the last, and the last row that was counted, so that
# an epoch costs the same however many there were.
_COUNTED: Final[dict[int, tuple[list[int], Any]]] = {}


def _ends_before_last(history: History, rows: list[dict[str, Any]], n_ranks: int) -> list[int]:
    """Return the number of batches finished before each row."""
    at: Callable[[int], dict[str, Any]] = partial(list.__getitem__, rows)
    ends, counted = _COUNTED.get(id(history), ([0], None))
    n_counted = len(ends) - 1
    if n_counted >= len(rows) or (n_counted and at(n_counted - 1) is not counted):
        ends, n_counted = [0], 0
    for i in range(n_counted, len(rows) - 1):
        ends.append(ends[-1] + n_batches_of(at(i), n_ranks))
    if id(history) not in _COUNTED:
        weakref.finalize(history, _COUNTED.pop, id(history), None)
    _COUNTED[id(history)] = ends, at(-2) if len(rows) > 1 else None
    return ends


def n_batches_of(row: Mapping[str, Any], n_ranks: int = 1) -> int:
    """Count the training batches of an epoch; of an interrupted one, those that were finished."""
    if "train_batch_count" in row:
        return int(row["train_batch_count"])
    return sum("train_loss" in entry for entry in row.get("batches", ())) // n_ranks


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
        If it is no number; True and False are none.

    Examples
    --------
    >>> score_of({"valid_loss": 0.5}, "valid_loss"), score_of({}, "valid_loss")
    (0.5, None)
    """
    value = plain(row.get(monitor))
    if value is None:
        return None
    message = f"`monitor` is {monitor!r}, and the history has {shown(value)}; record a number"
    if isinstance(value, bool):
        raise TypeError(message)
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(message) from error
    return None if math.isnan(score) else score


def scores_by_epoch(history: History, monitor: str) -> list[tuple[int, float]]:
    """List the scores of a history with their epochs.

    Epochs that were not evaluated are left out.
    """
    scores = [(epoch, score_of(row, monitor)) for epoch, row in enumerate(history.to_list(), start=1)]
    return [(epoch, score) for epoch, score in scores if score is not None]
