"""Steps: rows of a table resolved against one network, and the moments at which they take effect."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import Row, Unit

__all__ = ["Act", "Moment", "Step"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in the life of a net.

    Parameters
    ----------
    epoch : int
        The epoch, from 1; 0 before the first.
    batch : int
        The training batch over the whole life of the net, from 1; 0 before the first.
    firsts : sequence of int
        The first batch of each epoch so far. It matters only to plans with rows of both epochs and batches.
    """

    epoch: int = 0
    batch: int = 0
    firsts: Sequence[int] = ()

    def first_batch(self, epoch: int) -> int:
        """Return the first batch of an epoch; for a future epoch, the next batch."""
        return self.firsts[epoch - 1] if 0 < epoch <= len(self.firsts) else self.batch + 1

    def epoch_of(self, batch: int) -> int:
        """Return the epoch of a batch that has begun, or of the next one."""
        return bisect_right(self.firsts, batch)


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the table, resolved against the names of one network."""

    row: Row
    names: frozenset[str]

    def act(self, trainable: set[str]) -> None:
        """Unfreeze or freeze the names in `trainable`."""
        if self.row.action == "unfreeze":
            trainable |= self.names
        else:
            trainable -= self.names

    @property
    def time(self) -> float:
        """When it takes effect; infinity for a condition."""
        return math.inf if isinstance(self.row.time, Plateau) else float(self.row.time)

    def is_of(self, moment: Moment, unit: Unit) -> bool:
        """Whether it is a row of epochs, or of batches, that takes effect at a moment."""
        return self.row.unit == unit and self.time == (moment.epoch if unit == "epoch" else moment.batch)

    @property
    def sets_factor(self) -> bool:
        """Whether it sets a factor on learning rates when it takes effect."""
        return self.row.lr_mult_from == "row" and bool(self.names)

    @property
    def scales(self) -> bool:
        """Whether it ever scales the learning rate of something."""
        has_factor = self.row.lr_mult not in (None, 1.0) or self.row.warmup > 1
        return has_factor and self.time > 0 and bool(self.names)


class Act(NamedTuple):
    """A step that has taken effect.

    Parameters
    ----------
    batch : int
        The batch before which it took effect.
    step : Step
    released, frozen : set
        What it made trainable, and frozen, in fact.
    """

    batch: int
    step: Step
    released: Set[Any]
    frozen: Set[Any]

    @property
    def changes(self) -> bool:
        """Whether it changed what is trainable, or a factor on a learning rate."""
        return bool(self.released or self.frozen) or self.step.sets_factor
