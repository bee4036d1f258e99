"""The timeline of plans: when something may be frozen or unfrozen, and what is held frozen from then on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.steps import Moment

__all__ = ["UNKNOWN_LENGTH", "Stretch", "timeline"]

UNKNOWN_LENGTH: Final = 10**9
"""The number of batches in an epoch that is taken for endless."""


class Stretch(NamedTuple):
    """The time from one row of some plans to the next.

    Parameters
    ----------
    moment : Moment
        Where it begins.
    held : set of str
        The names that at least one of the plans holds frozen in it.
    """

    moment: Moment
    held: Held


def timeline(
    plans: Sequence[Plan], per_epoch: int, *, since: Moment | None = None, last_epoch: float = math.inf
) -> Iterator[Stretch]:
    """Walk through time from row to row.

    Parameters
    ----------
    plans : sequence of Plan
        Conditions that have not been met are left out.
    per_epoch : int
        The number of training batches in an epoch.
    since : Moment, optional
        The beginning of an epoch, before its first batch; that of epoch 1 if missing.
    last_epoch : int
        The epoch at whose end to stop.

    Yields
    ------
    Stretch

    Examples
    --------
    >>> from mlr3torch_py import select_all, select_none
    >>> from mlr3torch_py.schedule.table import read_table
    >>> table = {"epoch": [3], "weights": [select_all()]}
    >>> plan = Plan.resolve(select_none(), read_table(table), ["weight"])
    >>> [(moment.epoch, moment.batch, list(held)) for moment, held in timeline([plan], per_epoch=10)]
    [(1, 1, ['weight']), (3, 21, [])]
    """
    if since is None:
        since = Moment(epoch=1, firsts=(1,))
    first = since.batch + 1
    batches = {first}
    for step in (step for plan in plans for step in plan.steps if 0 < step.time < math.inf):
        time = int(step.time)
        batches.add(time if step.row.unit == "batch" else first + (time - since.epoch) * per_epoch)
    for batch in sorted(batch for batch in batches if batch >= first):
        n_epochs = (batch - first) // per_epoch
        if since.epoch + n_epochs > last_epoch:
            return
        firsts = (*since.firsts, *(first + i * per_epoch for i in range(1, n_epochs + 1)))
        moment = Moment(since.epoch + n_epochs, batch, firsts)
        yield Stretch(moment, frozenset[str]().union(*(plan.held(moment) for plan in plans)))
