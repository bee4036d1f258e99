"""Forecast the cache of frozen parts: measured on one batch, and extrapolated to all epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mlr3torch_py.cache.parts import CachedParts

__all__ = ["Cost", "Span", "estimate_epochs", "measure_costs"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one row of the data costs and saves in one cached module.

    Parameters
    ----------
    rows : float
        The number of rows that it is asked for; 0 if only other cached modules are given its output.
    n_bytes : float
        The bytes that the cache needs for these.
    seconds : float
        The seconds saved whenever the row is taken from memory.
    """

    rows: float
    n_bytes: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """A range of batches in which the same modules are cached.

    Parameters
    ----------
    batch : int
        The first batch, counted from 1.
    costs : mapping of str to Cost
        The cached modules by path.
    """

    batch: int
    costs: Mapping[str, Cost]


def measure_costs(parts: CachedParts, run: Callable[[], object], n_rows: int) -> dict[str, Cost]:
    """Run a batch through a network until it is answered from memory.

    Parameters
    ----------
    parts : CachedParts
        The cache of the network, with room for the batch.
    run : callable
        Calls the network with a batch.
    n_rows : int
        The number of rows in the batch.

    Returns
    -------
    dict of str to Cost
        The modules that are cached, by path.

    Warns
    -----
    UserWarning
        As in a training; see `CachedParts`.
    """
    parts.refresh()
    is_settled = False
    while not is_settled:
        run()
        is_settled = not parts.settle()
        parts.begin_epoch()
        run()
        is_settled = not parts.settle() and is_settled
    costs = {
        path: Cost(cached.tally.hits / n_rows, cached.n_bytes / n_rows, cached.tally.saved / n_rows)
        for path, cached in parts.stages.items()
        if cached.tally.saved and not cached.tally.misses
    }
    parts.end_epoch()
    parts.close()
    return costs


def estimate_epochs(
    spans: Sequence[Span], *, n_train: int, n_valid: int, per_epoch: int, max_epochs: int, max_bytes: int
) -> pd.DataFrame:
    """Estimate the cache statistics of each epoch.

    All rows of the data are assumed to be distinct, and to appear unchanged once per epoch.

    Parameters
    ----------
    spans : sequence of Span
        In chronological order; the first one starts at batch 1.
    n_train, n_valid : int
        The numbers of training and validation rows.
    per_epoch : int
        The number of batches in an epoch.
    max_epochs : int
    max_bytes : int
        The limit of the cache.

    Returns
    -------
    pandas.DataFrame
        One row per `epoch` with `cache_hits`, `cache_misses`, `cache_bytes` and `cache_saved`, as in the history.

    Examples
    --------
    >>> spans = [Span(1, {"encoder": Cost(rows=1, n_bytes=100, seconds=0.001)}), Span(5, {})]
    >>> estimate_epochs(spans, n_train=80, n_valid=20, per_epoch=2, max_epochs=3, max_bytes=5_000)
       epoch  cache_hits  cache_misses  cache_bytes  cache_saved
    0      1           0           100         5000         0.00
    1      2          50            50         5000         0.05
    2      3           0             0            0         0.00
    """
    n_rows = n_train + n_valid
    ends = [*(span.batch for span in spans[1:]), sys.maxsize]
    kept: dict[str, float] = {}
    asked: set[str] = set()
    table = []
    for epoch in range(1, max_epochs + 1):
        hits = misses = n_bytes = saved = 0.0
        first, next_first = per_epoch * (epoch - 1) + 1, per_epoch * epoch + 1
        for span, end in zip(spans, ends, strict=True):
            n_batches = min(end, next_first) - max(span.batch, first)
            if n_batches <= 0:
                continue
            requested = n_train * n_batches / per_epoch + (n_valid if end >= next_first else 0)
            capacity = max_bytes // max(1.0, sum(cost.n_bytes for cost in span.costs.values()))
            # Rows are kept where they are asked for, which may have been elsewhere before.
            kept = {
                path: kept.get(path, 0.0) if path in asked or not cost.rows else 0.0
                for path, cost in span.costs.items()
            }
            asked = {path for path, cost in span.costs.items() if cost.rows}
            for path, cost in span.costs.items():
                known = requested * kept[path] / n_rows
                kept[path] = min(kept[path] + requested - known, capacity)
                hits, misses = hits + known * cost.rows, misses + (requested - known) * cost.rows
                saved += known * cost.seconds
            n_bytes = sum(kept[path] * cost.n_bytes for path, cost in span.costs.items())
        table.append((epoch, round(hits), round(misses), round(n_bytes), saved))
    return pd.DataFrame(table, columns=["epoch", "cache_hits", "cache_misses", "cache_bytes", "cache_saved"])
