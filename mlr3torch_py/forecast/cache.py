"""What the cache of frozen parts will do in a training: measured on one batch, and reckoned for all epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mlr3torch_py.cache.parts import CachedParts

__all__ = ["Cost", "Span", "measure_costs", "reckon"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one row of the data costs and saves in one cached module.

    Parameters
    ----------
    rows : float
        The rows of the module that it becomes.
    n_bytes : float
    seconds : float
        What is saved each time that it comes again.
    """

    rows: float
    n_bytes: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which the same modules are cached.

    Parameters
    ----------
    batch : int
        Where it begins, from 1.
    costs : mapping of str to Cost
        The modules by their paths.
    """

    batch: int
    costs: Mapping[str, Cost]


def measure_costs(parts: CachedParts, run: Callable[[], object], n_rows: int) -> dict[str, Cost]:
    """Run a batch through a network until it comes from memory.

    Parameters
    ----------
    parts : CachedParts
        Of the network, with room for the batch.
    run : callable
        Calls the network with a batch.
    n_rows : int
        The rows of the batch.

    Returns
    -------
    dict of str to Cost
        Of the modules that are cached.
    """
    parts.find()
    run()
    while parts.replace_uncalled():
        run()
    parts.begin_epoch()
    run()
    costs = {
        path: Cost(part.tally.hits / n_rows, part.rows.n_bytes / n_rows, part.tally.saved / n_rows)
        for path, part in parts.modules.items()
        if part.tally.hits and not part.tally.misses
    }
    parts.close()
    return costs


def reckon(
    spans: Sequence[Span], *, n_train: int, n_valid: int, per_epoch: int, max_epochs: int, max_bytes: int
) -> pd.DataFrame:
    """Say for each epoch what comes from memory.

    All rows of the data are taken to differ, and to come once in each epoch, as they are.

    Parameters
    ----------
    spans : sequence of Span
        In their order, the first from batch 1.
    n_train, n_valid : int
        The rows of the data.
    per_epoch : int
        The batches of an epoch.
    max_epochs : int
    max_bytes : int

    Returns
    -------
    pandas.DataFrame
        One row per `epoch` with `cache_hits`, `cache_misses`, `cache_bytes` and `cache_saved`, as in the history.

    Examples
    --------
    >>> spans = [Span(1, {"encoder": Cost(rows=1, n_bytes=100, seconds=0.001)}), Span(5, {})]
    >>> reckon(spans, n_train=80, n_valid=20, per_epoch=2, max_epochs=3, max_bytes=5_000)
       epoch  cache_hits  cache_misses  cache_bytes  cache_saved
    0      1           0           100         5000         0.00
    1      2          50            50         5000         0.05
    2      3           0             0            0         0.00
    """
    n_rows = n_train + n_valid
    ends = [*(span.batch for span in spans[1:]), sys.maxsize]
    kept: dict[str, float] = {}
    table = []
    for epoch in range(1, max_epochs + 1):
        hits = misses = n_bytes = saved = 0.0
        first, beyond = per_epoch * (epoch - 1) + 1, per_epoch * epoch + 1
        for span, end in zip(spans, ends, strict=True):
            n_batches = min(end, beyond) - max(span.batch, first)
            if n_batches <= 0:
                continue
            asked = n_train * n_batches / per_epoch + (n_valid if end >= beyond else 0)
            room = max_bytes // max(1.0, sum(cost.n_bytes for cost in span.costs.values()))
            kept = {path: kept.get(path, 0.0) for path in span.costs}
            for path, cost in span.costs.items():
                known = asked * kept[path] / n_rows
                kept[path] = min(kept[path] + asked - known, room)
                hits, misses = hits + known * cost.rows, misses + (asked - known) * cost.rows
                saved += known * cost.seconds
            n_bytes = sum(kept[path] * cost.n_bytes for path, cost in span.costs.items())
        table.append((epoch, round(hits), round(misses), round(n_bytes), saved))
    return pd.DataFrame(table, columns=["epoch", "cache_hits", "cache_misses", "cache_bytes", "cache_saved"])
