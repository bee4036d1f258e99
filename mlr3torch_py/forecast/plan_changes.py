"""What the phases of a plan release, freeze and scale, in words; when they begin, and what waits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mlr3torch_py.patterns import summarized

if TYPE_CHECKING:
    from mlr3torch_py.forecast.report import FreezePlan, Pending, Phase

__all__ = ["changes", "epochs_of", "n_weights", "range_of_rates", "size_in_words", "waits", "warmup_end"]


def n_weights(plan: FreezePlan, names: Iterable[str]) -> int:
    """Count the weights of some parameters, those of tied ones once."""
    return sum(plan.sizes[name] for name in names if name not in plan.aliases)


def changes(plan: FreezePlan) -> list[list[str]]:
    """Describe for each phase what it releases (+) and freezes (-), and which factors on rates it changes.

    A few tensors are named, more of them by the modules that hold them.
    """
    known = [name for name in plan.sizes if name not in plan.aliases]
    found: list[list[str]] = []
    before: Phase | None = None
    for phase in plan.phases:
        now = phase.trainable - plan.aliases
        earlier = frozenset[str]() if before is None else before.trainable - plan.aliases
        lines = [
            f"{sign} {summarized(one, known)}" for sign, one in (("+", now - earlier), ("-", earlier - now)) if one
        ]
        found.append([*lines, *_rate_changes(before, phase, known)])
        before = phase
    return found


def _rate_changes(before: Phase | None, phase: Phase, known: Sequence[str]) -> Iterator[str]:
    """Yield the factors on learning rates that a phase changes, and the warm-ups that begin with it."""
    earlier: Mapping[str, float] = {} if before is None else before.mults
    kept = frozenset[str]() if before is None else before.trainable
    mults, warmups = phase.mults, phase.warmups
    found: dict[str, list[str]] = {}
    for name in known:
        mult = mults.get(name, 1.0)
        if name in phase.trainable and mult != (earlier.get(name, 1.0) if name in kept else 1.0):
            found.setdefault(f"lr_mult {mult:.4g}", []).append(name)
    for name in known:
        if name in warmups:
            found.setdefault(f"warmup {warmups[name]}", []).append(name)
    yield from (f"{text}: {summarized(names, known)}" for text, names in found.items())


def warmup_end(phases: Sequence[Phase], i: int, name: str) -> int:
    """Return the batch after a warm-up that is in progress in a phase, counted from 0, or that cuts it short.

    Examples
    --------
    >>> from mlr3torch_py.forecast.report import Phase
    >>> from mlr3torch_py.schedule.rates import Factor
    >>> rising = Phase(2, 11, frozenset("ab"), dict.fromkeys("ab", Factor(warmup=40, first=11)))
    >>> after = Phase(3, 21, frozenset("b"), {"b": rising.factors["b"]})
    >>> [warmup_end([rising, after], 0, name) for name in "ab"]
    [21, 51]
    """
    factor = phases[i].factors[name]
    end = factor.first + factor.warmup
    for phase in phases[i + 1 :]:
        if phase.batch >= end:
            break
        now = phase.factors.get(name)
        if name not in phase.trainable or now is None or now.first != factor.first:
            return phase.batch
    return end


def range_of_rates(phase: Phase) -> str:
    """Write the factors on the rates of what trains in a phase: one, or the least and the largest.

    Examples
    --------
    >>> from mlr3torch_py.forecast.report import Phase
    >>> from mlr3torch_py.schedule.rates import Factor
    >>> range_of_rates(Phase(1, 1, frozenset("ab"), {"a": Factor(0.25)}))
    '0.25 to 1'
    """
    factors = phase.factors_in_use or {1.0}
    low, high = f"{min(factors):.3g}", f"{max(factors):.3g}"
    return low if low == high else f"{low} to {high}"


def epochs_of(plan: FreezePlan, i: int) -> str:
    """Describe when a phase, counted from 0, lasts."""
    phase, per_epoch = plan.phases[i], plan.batches_per_epoch or 1
    end = plan.max_epochs
    if i + 1 < len(plan.phases):
        after = plan.phases[i + 1]
        end = after.epoch - (_batch_in_epoch(after, per_epoch) == 1)
    text = f"{phase.epoch} to {end}" if end > phase.epoch else str(phase.epoch)
    batch = _batch_in_epoch(phase, per_epoch)
    return text if batch == 1 else f"{text}, from batch {batch}"


def _batch_in_epoch(phase: Phase, per_epoch: int) -> int:
    """Return the first batch of a phase, counted from 1 in its epoch."""
    return (phase.batch - 1) % per_epoch + 1


def waits(plan: FreezePlan, row: Pending) -> list[str]:
    """Describe a row that waits for a condition or never comes: which of the two, until when, what it would do."""
    known = [name for name in plan.sizes if name not in plan.aliases]
    if not row.is_condition:
        when = ["never", f"{row.waits_for} is after the last one"]
    else:
        when = ["waits", f"for {row.waits_for}" + (f", until epoch {row.until:g}" if row.until < math.inf else "")]
    names = row.names - plan.aliases
    return [*when, f"{'-' if row.freezes else '+'} {summarized(names, known)}" if names else "nothing"]


def size_in_words(plan: FreezePlan) -> str:
    """Describe a plan by the number of its phases and epochs, and by how many weights train.

    Returns
    -------
    str
        Such as "3 phases in 3 epochs, 27 to 139 of 139 weights trainable".
    """
    weights = [n_weights(plan, phase.trainable) for phase in plan.phases]
    n, ends = len(plan.phases), sorted({min(weights, default=0), max(weights, default=0)})
    return (
        f"{n} phase{'s' * (n != 1)} in {plan.max_epochs} epoch{'s' * (plan.max_epochs != 1)}, "
        f"{' to '.join(f'{count:,}' for count in ends)} of {n_weights(plan, plan.sizes):,} weights trainable"
    )
