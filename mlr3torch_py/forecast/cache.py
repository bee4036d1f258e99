"""Forecast the cache of frozen parts: measured on one batch, and extrapolated to all epochs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

import pandas as pd

from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.storage.layout import N_TRIALS
from mlr3torch_py.cache.storage.tally import Tally

__all__ = ["CachedSpan", "Cost", "estimate_epochs", "measure_span"]


# A tally, and the share of the rows that were known.
Counted: TypeAlias = tuple[Tally, float]
Seen: TypeAlias = Mapping[str, Counted]
# The batch fills the cache, is answered for the first time, and once more.
Round: TypeAlias = tuple[Seen, Seen, Seen]


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
        The seconds saved whenever these are taken from memory.
    trial : float
        The seconds lost by a trial of a batch, in which its rows are computed again.
    again : float
        The share of its rows that come from memory when the row is new, since a step passes it on several times.
    proof : float
        The seconds lost by the first batch from memory, which is compared if few batches were tried.
    """

    rows: float
    n_bytes: float
    seconds: float
    trial: float = 0.0
    again: float = 0.0
    proof: float = 0.0


@dataclass(frozen=True, slots=True)
class CachedSpan:
    """A range of batches in which the same modules are cached.

    Parameters
    ----------
    batch : int
        The first batch, counted from 1.
    costs : mapping of str to Cost
        The cached modules by path.
    lost : float
        The seconds lost at its beginning by modules that are tried and turn out not to be cacheable.
    """

    batch: int
    costs: Mapping[str, Cost]
    lost: float = 0.0


def measure_span(batch: int, parts: CachedParts, run: Callable[[], object], n_rows: int) -> CachedSpan:
    """Run a batch through a network until it is answered from memory.

    Parameters
    ----------
    batch : int
        The first batch of the span.
    parts : CachedParts
        The cache of the network, with room for the batch.
    run : callable
        Calls the network with a batch.
    n_rows : int
        The number of rows in the batch.

    Returns
    -------
    CachedSpan

    Warns
    -----
    UserWarning
        As in a training; see `CachedParts`.
    """
    parts.refresh()
    rounds: list[Round] = []
    is_settled = False
    while not is_settled or len(rounds) < 2:  # once more, since a single measurement may have been disturbed
        for cached in parts.stages.values():
            cached.forget()
        filling, fits = _run_once(parts, run)
        proving, still_fits = _run_once(parts, run)
        answering, at_last_fits = _run_once(parts, run)
        rounds.append((filling, proving, answering))
        is_settled = fits and still_fits and at_last_fits
    costs = {
        path: min((_cost(*counts, cached.n_bytes, n_rows) for counts in found), key=attrgetter("trial"))
        for path, cached in parts.stages.items()
        if cached.tally.saved and not cached.tally.misses and (found := _answered(rounds, path))
    }
    lost = sum(one.tally.saved for one in parts.stages.values()) - parts.end_epoch().saved
    parts.close()
    return CachedSpan(batch, costs, max(0.0, lost))


def _run_once(parts: CachedParts, run: Callable[[], object]) -> tuple[Seen, bool]:
    """Run the batch; return what was counted by path, and whether the same modules are cached as before."""
    parts.begin_epoch()
    run()
    seen = {path: (one.tally, one.share_known) for path, one in parts.stages.items()}
    return seen, not parts.settle()


def _answered(rounds: Sequence[Round], path: str) -> list[tuple[Counted, Counted, Counted]]:
    """Return the counts of the rounds in which a module was filled, and then answered from memory."""
    found = [
        (filling[path], proving[path], answering[path])
        for filling, proving, answering in rounds
        if path in filling and path in proving and path in answering
    ]
    return [counts for counts in found if counts[0][1] < 1 and counts[1][1] > 0 and counts[2][1] > 0]


def _cost(filling: Counted, proving: Counted, answering: Counted, n_bytes: int, n_rows: int) -> Cost:
    """Compare the pass that fills the cache, and the first that is answered from it, with later ones."""
    (filled, again), (proved, _), (answered, _) = filling, proving, answering
    trial = max(0.0, answered.saved * again - filled.saved)
    proof = max(0.0, answered.saved - proved.saved)
    return Cost(answered.hits / n_rows, n_bytes / n_rows, answered.saved / n_rows, trial, again, proof)


def estimate_epochs(
    spans: Sequence[CachedSpan],
    *,
    n_train: int,
    n_valid: int,
    per_epoch: int,
    max_epochs: int,
    max_bytes: int,
    valid_per_epoch: int = 1,
    n_drawn: int | None = None,
) -> pd.DataFrame:
    """Estimate the cache statistics of each epoch.

    All rows of the data are assumed to be distinct, and to appear unchanged once per epoch; if a sampler draws more or
    fewer, any of them.

    Parameters
    ----------
    spans : sequence of CachedSpan
        In chronological order; the first one starts at batch 1.
    n_train, n_valid : int
        The numbers of training and validation rows.
    per_epoch, valid_per_epoch : int
        The numbers of training and validation batches in an epoch.
    max_epochs : int
    max_bytes : int
        The limit of the cache.
    n_drawn : int, optional
        How many rows a sampler draws for training in an epoch, if not all of them once.

    Returns
    -------
    pandas.DataFrame
        One row per `epoch` with `cache_hits`, `cache_misses`, `cache_bytes` and `cache_saved`, as in the history.

    Examples
    --------
    >>> spans = [CachedSpan(1, {"encoder": Cost(rows=1, n_bytes=100, seconds=0.001, trial=0.004)}), CachedSpan(5, {})]
    >>> estimate_epochs(spans, n_train=80, n_valid=20, per_epoch=2, max_epochs=3, max_bytes=5_000)
       epoch  cache_hits  cache_misses  cache_bytes  cache_saved
    0      1           0           100         5000       -0.012
    1      2          50            50         5000        0.050
    2      3           0             0            0        0.000
    """
    n_drawn = n_train if n_drawn is None else n_drawn
    ends = [*(span.batch for span in spans[1:]), sys.maxsize]
    kept: dict[str, dict[str, float]] = {}
    trials = _Trials()
    asked: set[str] = set()
    table = []
    for epoch in range(1, max_epochs + 1):
        hits = misses = n_bytes = saved = 0.0
        first, next_first = per_epoch * (epoch - 1) + 1, per_epoch * epoch + 1
        for span, end in zip(spans, ends, strict=True):
            n_batches, validates = min(end, next_first) - max(span.batch, first), end >= next_first
            if n_batches <= 0:
                continue
            requests = {"train": (n_drawn * n_batches / per_epoch, n_train), "valid": (n_valid * validates, n_valid)}
            requested = sum(n for n, _ in requests.values())
            capacity = max_bytes // max(1.0, sum(cost.n_bytes for cost in span.costs.values()))
            kept, asked = _kept_now(kept, asked, span.costs, requests), _asked_for(span.costs)
            trials.keep(span.costs)
            saved -= span.lost if span.batch >= first else 0
            for path, cost in span.costs.items():
                n_valid_batches = valid_per_epoch if validates and n_valid else 0
                saved -= trials.seconds(path, cost, any(kept[path].values()), n_batches, n_valid_batches)
                known = requested - _keep(kept[path], requests, capacity)
                answered = known + (requested - known) * cost.again
                hits, misses = hits + answered * cost.rows, misses + (requested - answered) * cost.rows
                saved += answered * cost.seconds
            n_bytes = sum(sum(kept[path].values()) * cost.n_bytes for path, cost in span.costs.items())
        table.append((epoch, round(hits), round(misses), round(n_bytes), saved))
    return pd.DataFrame(table, columns=["epoch", "cache_hits", "cache_misses", "cache_bytes", "cache_saved"])


def _kept_now(
    kept: Mapping[str, dict[str, float]], asked: set[str], costs: Mapping[str, Cost], parts: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Return the rows kept of each module: where they are asked for, which may have been elsewhere before."""
    found = {path: kept.get(path) if path in asked or not cost.rows else None for path, cost in costs.items()}
    return {path: rows or dict.fromkeys(parts, 0.0) for path, rows in found.items()}


def _asked_for(costs: Mapping[str, Cost]) -> set[str]:
    return {path for path, cost in costs.items() if cost.rows}


def _keep(kept: dict[str, float], requests: Mapping[str, tuple[float, int]], capacity: float) -> float:
    """Keep rows, given how many are requested of how many; return the number of those that were not known."""
    n_new = 0.0
    for part, (n, n_rows) in requests.items():
        new = min(n * (1 - kept[part] / n_rows), n_rows - kept[part]) if n_rows else 0.0
        n_new += new
        others = sum(kept.values()) - kept[part]
        kept[part] = max(0.0, min(kept[part] + new, capacity - others))
    return n_new


class _Trials:
    """Counts the batches of which no row is known yet, some of which are tried; see `Admission.start_trial`."""

    def __init__(self) -> None:
        self._n_computed: Counter[tuple[str, str]] = Counter()
        self._proven: set[str] = set()

    def keep(self, paths: Iterable[str]) -> None:
        """Forget all other modules."""
        for key in [key for key in self._n_computed if key[0] not in set(paths)]:
            del self._n_computed[key]
        self._proven &= set(paths)

    def seconds(self, path: str, cost: Cost, is_known: bool, n_batches: int, n_valid_batches: int) -> float:
        """Count the batches of a module in a span, and return the seconds that trials and proofs take."""
        if is_known:
            return self.prove(path) * cost.proof
        return self.add(path, n_batches, n_valid_batches) * cost.trial

    def add(self, path: str, n_train: int, n_valid: int) -> int:
        """Count batches of a module, and return how many of them are tried; validation has trials of its own."""
        n_trials = 0
        for mode, n in (("train", n_train), ("valid", n_valid)):
            before = self._n_computed[path, mode]
            n_trials += sum(
                number <= N_TRIALS or number.bit_count() == 1 for number in range(before + 1, before + n + 1)
            )
            self._n_computed[path, mode] += n
        return n_trials

    def prove(self, path: str) -> int:
        """Return how many batches are compared when a module is answered from memory for the first time."""
        if path in self._proven:
            return 0
        self._proven.add(path)
        return sum(0 < self._n_computed[path, mode] < N_TRIALS for mode in ("train", "valid"))
