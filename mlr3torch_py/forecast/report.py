"""FreezePlan: which parameters are trainable when, as tables, text and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlr3torch_py.names import listed
from mlr3torch_py.patterns import summarized

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FreezePlan", "Pending", "Phase"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training without freezing or unfreezing.

    Parameters
    ----------
    epoch, batch : int
        Its first epoch and batch, from 1.
    trainable : frozenset of str
        The trainable parameters.
    """

    epoch: int
    batch: int
    trainable: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pending:
    """A row that may come later than the plan has it, or never.

    Parameters
    ----------
    names : frozenset of str
        The parameters that it selects.
    freezes : bool
        Whether it freezes them.
    waits_for : str
        What it waits for, such as a plateau of a score, or its time after the last epoch.
    is_condition : bool
        Whether it waits for a condition; otherwise it never comes.
    until : float
        The epoch at which it comes in any case; infinity if there is none.
    """

    names: frozenset[str]
    freezes: bool
    waits_for: str
    is_condition: bool
    until: float = math.inf

    def waiting(self, phase: Phase) -> frozenset[str]:
        """Return the parameters that wait for the row in a phase."""
        if phase.epoch >= self.until:
            return frozenset()
        return self.names & phase.trainable if self.freezes else self.names - phase.trainable


@dataclass(frozen=True)
class FreezePlan:
    """The trainable parameters over a whole training, from `freeze_plan`.

    Parameters
    ----------
    sizes : dict of str to int
        The number of weights of every parameter, in the order of the network.
    aliases : frozenset of str
        Further names of tied parameters; they are not counted twice.
    phases : tuple of Phase
    max_epochs : int
        The last epoch of the plan.
    batches_per_epoch : int or None
        None if it is unknown and does not matter.
    notes : tuple of str
        Rows that depend on the training or have no effect, parameters that no optimizer holds, and what the cache of
        frozen parts will save.
    cache : pandas.DataFrame, optional
        One row per `epoch` with `cache_hits`, `cache_misses`, `cache_bytes` and `cache_saved`, as the history will have
        them, if the net has ``t_clbk("frozen_cache")`` and its data are given.
    pending : tuple of Pending
        The rows that wait for a condition, or come after the last epoch.
    """

    sizes: dict[str, int]
    aliases: frozenset[str]
    phases: tuple[Phase, ...]
    max_epochs: int
    batches_per_epoch: int | None
    notes: tuple[str, ...] = ()
    cache: pd.DataFrame | None = field(default=None, compare=False)
    pending: tuple[Pending, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per phase and parameter.

        Returns
        -------
        pandas.DataFrame
            `phase` from 1, its first `epoch` and `batch`, `name`, `n_weights`, and `trainable`.
        """
        n_names, n_phases = len(self.sizes), len(self.phases)
        columns = {
            "phase": np.repeat(np.arange(1, n_phases + 1), n_names),
            "epoch": np.repeat([phase.epoch for phase in self.phases], n_names),
            "batch": np.repeat([phase.batch for phase in self.phases], n_names),
            "name": list(self.sizes) * n_phases,
            "n_weights": np.tile(list(self.sizes.values()), n_phases),
            "trainable": [name in phase.trainable for phase in self.phases for name in self.sizes],
        }
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """Return one row per phase.

        Returns
        -------
        pandas.DataFrame
            Its first `epoch` and `batch`, the number of `trainable_tensors`, of `trainable` weights and of all weights
            (`total`), the `share` of trainable weights, and `frozen_prefix`, the number of frozen tensors from the
            input on, which need no backward pass.
        """
        total = self._count(self.sizes)
        rows = []
        for i, phase in enumerate(self.phases, start=1):
            trainable = self._count(phase.trainable)
            tensors = len(phase.trainable - self.aliases)
            share = trainable / total if total else 0.0
            rows.append((i, phase.epoch, phase.batch, tensors, trainable, total, share, len(self._prefix(phase))))
        columns = ["phase", "epoch", "batch", "trainable_tensors", "trainable", "total", "share", "frozen_prefix"]
        frame = pd.DataFrame(rows, columns=columns).set_index("phase")
        return frame if self.batches_per_epoch else frame.drop(columns="batch")

    def warnings(self) -> list[str]:
        """Describe trainable layers near the input that undo savings.

        The backward pass ends at the trainable weight nearest to the input. A phase is reported if freezing the layer
        of that weight as well would skip more weights than are skipped now, and more than the layer has.

        Returns
        -------
        list of str
        """
        found = []
        names = list(self.sizes)
        for i, phase in enumerate(self.phases, start=1):
            prefix = self._prefix(phase)
            if len(prefix) == len(names):
                continue
            layer = names[len(prefix)].rpartition(".")[0]
            above = names[len(prefix) :]
            trains = list(takewhile(lambda name: name in phase.trainable and name.rpartition(".")[0] == layer, above))  # noqa: B023
            skipped = list(takewhile(lambda name: name not in phase.trainable, above[len(trains) :]))  # noqa: B023
            if self._count(skipped) > max(self._count(prefix), self._count(trains)):
                found.append(
                    f"phase {i}: {listed(trains)} trains below {len(skipped)} frozen tensors "
                    f"({self._count(skipped):,} weights), so that the backward pass goes through them"
                )
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plan, with parameters or blocks down and epochs across.

        What waits for a condition is hatched, and so is, in another way, what a row after the last epoch selects.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure if missing.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is missing; the message has the line that installs it.
        """
        from mlr3torch_py.forecast.picture import plot_plan

        per_epoch = self.batches_per_epoch or 1
        return plot_plan(self.phases, list(self.sizes), self.max_epochs, per_epoch, ax, pending=self.pending)

    def _count(self, names: Iterator[str] | Sequence[str] | frozenset[str] | dict[str, int]) -> int:
        return sum(self.sizes[name] for name in names if name not in self.aliases)

    def _prefix(self, phase: Phase) -> list[str]:
        return list(takewhile(lambda name: name not in phase.trainable, self.sizes))

    def _changes(self) -> Iterator[str]:
        """Yield what each phase releases and freezes, a few tensors by name and more by the modules that hold them."""
        known = [name for name in self.sizes if name not in self.aliases]
        before: frozenset[str] = frozenset()
        for i, phase in enumerate(self.phases, start=1):
            now = phase.trainable - self.aliases
            for doing, names in (("+", now - before), ("-", before - now)):
                if names:
                    yield f"{i} {doing} {summarized(names, known)}"
            before = now

    def __repr__(self) -> str:
        weights = [self._count(phase.trainable) for phase in self.phases]
        n, ends = len(self.phases), sorted({min(weights), max(weights)})
        return (
            f"<FreezePlan: {n} phase{'s' * (n != 1)} in {self.max_epochs} epoch{'s' * (self.max_epochs != 1)}, "
            f"{' to '.join(f'{count:,}' for count in ends)} of {self._count(self.sizes):,} weights trainable>"
        )

    def __str__(self) -> str:
        frame = self.summary()
        frame["share"] = frame["share"].map(_percent)
        return "\n".join([frame.to_string(), *self._changes(), *self.warnings(), *self.notes])

    def _repr_html_(self) -> str:
        frame = self.summary()
        frame["share"] = frame["share"].map(_percent)
        table: str = frame.to_html(formatters={"trainable": "{:,}".format, "total": "{:,}".format})
        for lines in (list(self._changes()), [*self.warnings(), *self.notes]):
            items = "".join(f"<li>{escape(line, quote=False)}</li>" for line in lines)
            table += f"<ul>{items}</ul>" if items else ""
        return table


def _percent(share: float) -> str:
    """Write a share so that what is neither nothing nor all does not look like it.

    Examples
    --------
    >>> [_percent(share) for share in (0, 0.00067, 0.31, 0.9998, 1)]
    ['0%', '0.1%', '31%', '99.98%', '100%']
    """
    for digits in range(9):
        text = f"{share:.{digits}%}"
        if share in (0, 1) or float(text[:-1]) not in (0, 100):
            return text
    return ">0%" if share < 0.5 else "<100%"
