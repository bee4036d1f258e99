"""FreezePlan: which parameters are trainable when, as tables, text and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlr3torch_py.forecast.measure import Measurement
from mlr3torch_py.forecast.picture import check_axes, plot_plan
from mlr3torch_py.forecast.plan_changes import n_weights
from mlr3torch_py.forecast.plan_html import plan_html
from mlr3torch_py.forecast.plan_text import plan_text
from mlr3torch_py.names import counted, listed
from mlr3torch_py.schedule.rates import Factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FreezePlan", "Pending", "Phase"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training without freezing or unfreezing, or another factor on a learning rate.

    Parameters
    ----------
    epoch, batch : int
        Its first epoch and batch, from 1.
    trainable : frozenset of str
        The trainable parameters.
    factors : mapping of str to Factor
        The factors on the learning rates of trainable parameters, other than 1.
    """

    epoch: int
    batch: int
    trainable: frozenset[str]
    factors: Mapping[str, Factor] = field(default_factory=dict[str, Factor], hash=False)

    @property
    def mults(self) -> dict[str, float]:
        """The factors after all warm-ups, other than 1."""
        return {name: one.mult for name, one in self.factors.items() if one.mult != 1}

    @property
    def factors_in_use(self) -> set[float]:
        """The factors of all that is trainable, after all warm-ups, 1 among them."""
        mults = self.mults
        return {mults.get(name, 1.0) for name in self.trainable}

    @property
    def warmups(self) -> dict[str, int]:
        """The batches of the warm-ups that begin with the phase."""
        return {name: one.warmup for name, one in self.factors.items() if one.warmup > 1 and one.first == self.batch}


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
        The times between two changes. Each has an `epoch` and a `batch` in which it begins, and `trainable`, the names
        of the parameters that train.
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
    measured : Measurement, optional
        What each phase and the whole training take, from ``freeze_plan(..., measure=True)``.
    blocks : tuple of (str, frozenset of str)
        The blocks of the network, by which a notebook shows the plan: their names, and the parameters that they hold.

    Notes
    -----
    A plan prints as a table with a row for each phase, and what it releases (+) and freezes (-) by block, as wide as
    the terminal; of many phases the first and the last ones. In a notebook it shows itself: a strip of the
    blocks by epoch, with names, sizes and rates as tooltips, and a table.

    See Also
    --------
    freeze_plan : Makes a plan.

    Examples
    --------
    >>> from mlr3torch_py import freeze_plan, head_first, t_clbk
    >>> callback = t_clbk("unfreeze", schedule=head_first(epochs=2))
    >>> plan = freeze_plan(iris_net(module__neurons=8, max_epochs=3, callbacks=[callback]), X, y)
    >>> plan.summary()[["epoch", "trainable_tensors"]].to_dict("list")
    {'epoch': [1, 3], 'trainable_tensors': [2, 4]}
    >>> plan.phases[0].trainable == {"3.weight", "3.bias"}, plan.warnings()
    (True, [])
    """

    sizes: dict[str, int]
    aliases: frozenset[str]
    phases: tuple[Phase, ...]
    max_epochs: int
    batches_per_epoch: int | None
    notes: tuple[str, ...] = ()
    cache: pd.DataFrame | None = field(default=None, compare=False)
    pending: tuple[Pending, ...] = ()
    measured: Measurement | None = field(default=None, compare=False)
    blocks: tuple[tuple[str, frozenset[str]], ...] = field(default=(), compare=False)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per phase and parameter.

        Returns
        -------
        pandas.DataFrame
            `phase` from 1, its first `epoch` and `batch`, `name`, `n_weights`, and `trainable`. If learning rates are
            scaled, also `lr_mult`, the factor after all warm-ups, and `warmup`, the batches of one that begins with
            the phase.
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
        frame = pd.DataFrame(columns)
        for column, default, cells in (
            ("lr_mult", 1.0, [phase.mults for phase in self.phases]),
            ("warmup", 0, [phase.warmups for phase in self.phases]),
        ):
            if any(cells):
                frame[column] = [one.get(name, default) for one in cells for name in self.sizes]
        return frame

    def summary(self) -> pd.DataFrame:
        """Return one row per phase.

        Returns
        -------
        pandas.DataFrame
            Its first `epoch` and `batch`, the number of `trainable_tensors`, of `trainable` weights and of all weights
            (`total`), the `share` of trainable weights, and `frozen_prefix`, the number of frozen tensors from the
            input on, which need no backward pass. If learning rates are scaled, also `lr_mult`, the factors of what is
            trainable after all warm-ups, and `warmup`, the batches of the longest one that begins with the phase. If
            the plan is measured, `frozen_prefix` is the number of those that the backward pass does not go through;
            `ms_per_batch` are the milliseconds of a training batch, loading included, and `peak_mb` the megabytes that
            tensors take in it at most.
        """
        total = n_weights(self, self.sizes)
        rows = []
        for i, phase in enumerate(self.phases, start=1):
            trainable = n_weights(self, phase.trainable)
            tensors = len(phase.trainable - self.aliases)
            share = trainable / total if total else 0.0
            rows.append((i, phase.epoch, phase.batch, tensors, trainable, total, share, len(self._skipped(i))))
        columns = ["phase", "epoch", "batch", "trainable_tensors", "trainable", "total", "share", "frozen_prefix"]
        frame = pd.DataFrame(rows, columns=columns).set_index("phase")
        if self.measured is not None:
            frame["ms_per_batch"] = [cost.seconds * 1e3 for cost in self.measured.phases]
            frame["peak_mb"] = [cost.peak_bytes / 1e6 for cost in self.measured.phases]
        if any(phase.mults for phase in self.phases):
            frame["lr_mult"] = [_listed(phase.factors_in_use) for phase in self.phases]
        if any(phase.warmups for phase in self.phases):
            frame["warmup"] = [max(phase.warmups.values(), default=0) for phase in self.phases]
        return frame if self.batches_per_epoch else frame.drop(columns="batch")

    def warnings(self) -> list[str]:
        """Describe trainable layers near the input that undo savings.

        The backward pass goes through frozen tensors to reach trainable ones nearer to the input. A phase is reported
        if it goes through more weights than are skipped, and than these trainable ones have; unless the plan is
        measured, the backward pass is assumed to end at the first trainable layer.

        Returns
        -------
        list of str
        """
        found = []
        for i in range(1, len(self.phases) + 1):
            below, passed = self._passed(i)
            if n_weights(self, passed) > max(n_weights(self, self._skipped(i)), n_weights(self, below)):
                verb, it = "trains" if len(below) == 1 else "train", "it" if len(passed) == 1 else "them"
                frozen = f"{counted(len(passed), 'frozen tensor')} ({counted(n_weights(self, passed), 'weight')})"
                found.append(
                    f"phase {i}: {listed(below)} {verb} nearer to the input than {frozen}, so "
                    f"the backward pass has to go through {it}"
                )
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plan, with parameters or blocks down and epochs across.

        The numbers of weights stand on the right, and a line marks the end of the training, by `max_epochs`. What waits
        for a condition is hatched, and so is, in another way, what a row after the last epoch selects. Factors on
        learning rates are written where they begin, with x1 where they end; a line that rises to the top shows a
        warm-up. If the plan is measured, the milliseconds of a training batch stand above each phase.

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
        TypeError
            If `ax` is no axes of matplotlib.
        """
        ax = check_axes(ax)
        per_epoch, measured = self.batches_per_epoch or 1, () if self.measured is None else self.measured.phases
        labels = [f"{cost.seconds * 1e3:.3g} ms" for cost in measured]
        sizes = {name: 0 if name in self.aliases else size for name, size in self.sizes.items()}
        return plot_plan(self.phases, sizes, self.max_epochs, per_epoch, ax, pending=self.pending, labels=labels)

    def _skipped(self, i: int) -> list[str]:
        """Return the frozen tensors that the backward pass of a phase does not go through."""
        trainable = self.phases[i - 1].trainable
        if self.measured is None:
            return list(takewhile(lambda name: name not in trainable, self.sizes))
        done = trainable | self.measured.phases[i - 1].passed
        return [name for name in self.sizes if name not in done]

    def _passed(self, i: int) -> tuple[list[str], list[str]]:
        """Return what trains near the input, and the frozen tensors that the backward pass goes through for it."""
        trainable = self.phases[i - 1].trainable
        if self.measured is not None:
            cost = self.measured.phases[i - 1]
            return list(cost.below), [name for name in self.sizes if name in cost.passed]
        above = list(self.sizes)[len(self._skipped(i)) :]
        layer = above[0].rpartition(".")[0] if above else ""
        below = list(takewhile(lambda name: name in trainable and name.rpartition(".")[0] == layer, above))
        return below, list(takewhile(lambda name: name not in trainable, above[len(below) :]))

    def __repr__(self) -> str:
        return plan_text(self)

    def _repr_html_(self) -> str:
        return plan_html(self)


def _listed(factors: Iterable[float]) -> str:
    """Write factors in a cell of a table, the smallest first."""
    return listed([f"{factor:.3g}" for factor in sorted(factors)], most=4)
