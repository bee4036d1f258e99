"""freeze_plan: what the freezing callbacks of a net will do, to be looked at before training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.forecast.cache import Span, measure_costs, reckon
from mlr3torch_py.forecast.probe import NetProbe, is_one_of, random_states_kept
from mlr3torch_py.freezing.holder import FreezingCallback, layers_to_hold
from mlr3torch_py.names import listed
from mlr3torch_py.network.evaluation import hold_in_evaluation
from mlr3torch_py.network.parameters import Flags, bare, frozen_by_us, named_parameters
from mlr3torch_py.schedule.plan import Moment, Step
from mlr3torch_py.schedule.table import Plateau

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FreezePlan", "Phase", "freeze_plan"]

_KINDS = (FreezingCallback, CallbackSetFrozenCache)


@dataclass(frozen=True, slots=True)
class Phase:
    """A time in which nothing is frozen or unfrozen.

    Parameters
    ----------
    epoch, batch : int
        Where it begins, both from 1.
    trainable : frozenset of str
        What trains in it.
    """

    epoch: int
    batch: int
    trainable: frozenset[str]


@dataclass(frozen=True)
class FreezePlan:
    """What trains when, over a whole training; `freeze_plan` makes it.

    Parameters
    ----------
    sizes : dict of str to int
        The number of weights of every parameter, in the order of the network.
    aliases : frozenset of str
        Further names of tied parameters, which are not counted again.
    phases : tuple of Phase
    max_epochs : int
        The last epoch that is looked at.
    batches_per_epoch : int or None
        None where it is not known and does not matter.
    notes : tuple of str
        What cannot be known before training, and what the cache of frozen parts will do.
    cache : pandas.DataFrame, optional
        One row per `epoch` with `cache_hits`, `cache_misses`, `cache_bytes` and `cache_saved`, as the history will have
        them, if the net has ``t_clbk("frozen_cache")`` and its data are given.
    """

    sizes: dict[str, int]
    aliases: frozenset[str]
    phases: tuple[Phase, ...]
    max_epochs: int
    batches_per_epoch: int | None
    notes: tuple[str, ...] = ()
    cache: pd.DataFrame | None = field(default=None, compare=False)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per phase and parameter.

        Returns
        -------
        pandas.DataFrame
            `phase` from 1, the `epoch` and the `batch` where it begins, `name`, `n_weights`, and `trainable`.
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
            The `epoch` and the `batch` where it begins, the number of `trainable_tensors`, of `trainable` and of all
            weights (`total`), the `share` of trainable weights, and `frozen_prefix`, the number of tensors from the
            input on that are frozen, for which no backward pass is needed.
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
        """Say where one trainable layer near the input undoes what freezing would save.

        A backward pass ends at the lowest trainable weight. A phase is named where freezing this one layer as well
        would let it end later, with more weights skipped than now and than the layer has.

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
        """Draw the plan: parameters down, or blocks where there are many, and epochs across.

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

        return plot_plan(self, ax)

    def _count(self, names: Iterator[str] | Sequence[str] | frozenset[str] | dict[str, int]) -> int:
        return sum(self.sizes[name] for name in names if name not in self.aliases)

    def _prefix(self, phase: Phase) -> list[str]:
        return list(takewhile(lambda name: name not in phase.trainable, self.sizes))

    def __str__(self) -> str:
        frame = self.summary()
        frame["share"] = frame["share"].map("{:.0%}".format)
        lines = [frame.to_string()]
        before: frozenset[str] = frozenset()
        for i, phase in enumerate(self.phases, start=1):
            for doing, names in (("+", phase.trainable - before), ("-", before - phase.trainable)):
                if names:
                    lines.append(f"{i} {doing} {listed((name for name in self.sizes if name in names), most=6)}")
            before = phase.trainable
        return "\n".join([*lines, *self.warnings(), *self.notes])

    def _repr_html_(self) -> str:
        formats = {"share": "{:.0%}".format, "trainable": "{:,}".format, "total": "{:,}".format}
        notes = "".join(f"<li>{note}</li>" for note in (*self.warnings(), *self.notes))
        table: str = self.summary().to_html(formatters=formats)
        return table + (f"<ul>{notes}</ul>" if notes else "")


def freeze_plan(
    net: Any,
    X: Any = None,
    y: Any = None,
    max_epochs: int | None = None,
    batches_per_epoch: int | None = None,
    callbacks: Sequence[Any] = (),
) -> FreezePlan:
    """Say what all freezing callbacks of a net together will do in a training from the start.

    Parameters
    ----------
    net : skorch.NeuralNet or torch.nn.Module
        A net, initialized or not, which is left as it is, or a network.
    X, y : array-like, optional
        The training data, from which the number of batches in an epoch is found, and what frozen_cache will do.
    max_epochs : int, optional
        How many epochs are looked at. That of the net if missing; for a network up to the last row of a table.
    batches_per_epoch : int, optional
        Instead of the data.
    callbacks : sequence of callbacks
        The freezing callbacks, where `net` is a network.

    Returns
    -------
    FreezePlan

    Raises
    ------
    TypeError, ValueError
        If an argument, or an argument of a callback, is wrong; if batches count and their number is not known.

    See Also
    --------
    plot_history : What happened, after training.

    Notes
    -----
    Conditions are taken to come at their `no_later_than`, or never. The order of the parameters is taken for their
    order from the input to the head. What frozen_cache will do is measured on the first batch, and reckoned for data of
    which all rows differ and come as they are in each epoch.

    Examples
    --------
    >>> from mlr3torch_py import MLP, gradual_unfreezing, t_clbk
    >>> network = MLP(4, 3, neurons=(8, 8))
    >>> print(freeze_plan(network, callbacks=[t_clbk("unfreeze", **gradual_unfreezing(network))]))
           epoch  trainable_tensors  trainable  total share  frozen_prefix
    phase
    1          1                  2         27    139   19%              4
    2          2                  4         99    139   71%              2
    3          3                  6        139    139  100%              0
    1 + 6.weight, 6.bias
    2 + 3.weight, 3.bias
    3 + 0.weight, 0.bias
    """
    for argument, value in (("max_epochs", max_epochs), ("batches_per_epoch", batches_per_epoch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`{argument}` is {value!r}; give a whole number from 1")
    if isinstance(net, nn.Module):
        probe, module, planned = None, net, _clones(callbacks)
    else:
        if callbacks or not hasattr(net, "initialized_"):
            what = "`callbacks` are given beside a net, which has its own" if callbacks else f"`net` is {net!r}"
            raise TypeError(f"{what}; give a net of skorch, or a torch.nn.Module and `callbacks`")
        max_epochs = net.max_epochs if max_epochs is None else max_epochs
        with random_states_kept():
            probe = NetProbe(net, _KINDS)
            module, planned = probe.module, probe.callbacks
            if X is not None and batches_per_epoch is None:
                probe.load(X, y)
                batches_per_epoch = probe.n_batches
    module = bare(module)
    freezing = [callback for callback in planned if isinstance(callback, FreezingCallback)]
    for callback in freezing:
        callback.require_params()
        callback.plans_ = callback.make_plans(module)
    steps = [step for callback in freezing for plan in callback.plans_ for step in plan.steps]
    if batches_per_epoch is None and any(step.row.unit == "batch" and step.time > 0 for step in steps):
        raise ValueError(
            "the plan counts batches, whose number in an epoch is not known: pass `X` or `batches_per_epoch`"
        )
    per_epoch = batches_per_epoch or 1
    begins = sorted({1, *(_batch(step, per_epoch) for step in steps)} - {0})
    n_epochs = (begins[-1] - 1) // per_epoch + 1 if max_epochs is None else max_epochs
    tensors = named_parameters(module)
    governed = frozenset().union(frozen_by_us(module), *(callback.governed for callback in freezing))
    may_train = frozenset(name for name, tensor in tensors.items() if name in governed or tensor.requires_grad)
    has_aliases = len({id(tensor) for tensor in tensors.values()}) < len(tensors)
    phases: list[Phase] = []
    for batch in begins:
        epoch = (batch - 1) // per_epoch + 1
        trainable = may_train.difference(*(_held(callback, epoch, batch, per_epoch) for callback in freezing))
        if has_aliases:
            trainable = _with_aliases(trainable, tensors)
        if epoch <= n_epochs and not (phases and phases[-1].trainable == trainable):
            phases.append(Phase(epoch, batch, trainable))
    first_name: dict[int, str] = {}
    plan = FreezePlan(
        sizes={name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in tensors.items()},
        aliases=frozenset(name for name, t in tensors.items() if first_name.setdefault(id(t), name) != name),
        phases=tuple(phases),
        max_epochs=n_epochs,
        batches_per_epoch=batches_per_epoch,
        notes=tuple(
            f"{step.row} depends on the training; here it comes at its `no_later_than`, or never"
            for step in steps
            if isinstance(step.row.time, Plateau)
        ),
    )
    for cache in (callback for callback in planned if isinstance(callback, CallbackSetFrozenCache)):
        if probe is None or not probe.n_batches:
            notes = (
                *plan.notes,
                "frozen_cache: give a net and `X` instead of `batches_per_epoch` to see what it saves",
            )
            plan = replace(plan, notes=notes)
        else:
            with random_states_kept():
                plan = _with_cache(plan, cache, probe, freezing)
    return plan


def _batch(step: Step, per_epoch: int) -> int:
    """Return the first batch at which a step acts; 0 if it never comes."""
    time = step.row.time.no_later_than or 0 if isinstance(step.row.time, Plateau) else step.row.time
    return time if step.row.unit == "batch" or time == 0 else per_epoch * (time - 1) + 1


def _held(callback: FreezingCallback, epoch: int, batch: int, per_epoch: int) -> Set[str]:
    """Return what a callback holds at a moment; conditions are taken to come at their latest."""
    firsts, held = tuple(1 + per_epoch * i for i in range(epoch)), set[str]()
    for plan in callback.plans_:
        times = ((step.row.position, step.row.time) for step in plan.conditions)
        latest = {at: time.no_later_than for at, time in times if isinstance(time, Plateau) and time.no_later_than}
        held |= plan.held(Moment(epoch, batch, firsts, fired=latest))
    return held


def _with_aliases(names: frozenset[str], tensors: dict[str, nn.Parameter]) -> frozenset[str]:
    """Add the further names of tied tensors: a tensor trains when one of its names does."""
    free = {id(tensors[name]) for name in names}
    return frozenset(name for name, tensor in tensors.items() if id(tensor) in free)


def _clones(callbacks: Sequence[Any]) -> list[Any]:
    for item in callbacks:
        if not is_one_of(item, _KINDS):
            raise TypeError(
                f"`callbacks` holds {item!r}; it takes freezing callbacks, as t_clbk('unfreeze') makes them"
            )
    return [clone(item[1] if isinstance(item, tuple) else item) for item in callbacks]


def _with_cache(
    plan: FreezePlan, cache: CallbackSetFrozenCache, probe: NetProbe, freezing: list[FreezingCallback]
) -> FreezePlan:
    """Run the first batch through a copy of the network in each phase, and reckon what that means for all epochs."""
    module, per_epoch = deepcopy(bare(probe.module)).to(probe.net.device), plan.batches_per_epoch or 1
    call, n_rows = probe.first_batch()
    boundless = CallbackSetFrozenCache(cache.modules, max_bytes=sys.maxsize, check=cache.check)
    spans = []
    with warnings.catch_warnings(record=True, action="always") as said:
        for phase in plan.phases:
            Flags(phase.trainable, frozenset()).restore(module)
            held_by = ((cb, _held(cb, phase.epoch, phase.batch, per_epoch)) for cb in freezing)
            hold_in_evaluation(module.train(), layers_to_hold(module, held_by))
            parts = boundless.make_parts(module)
            spans.append(Span(phase.batch, measure_costs(parts, lambda: call(module), n_rows)))
    table = reckon(
        spans,
        n_train=probe.n_train,
        n_valid=probe.n_valid,
        per_epoch=per_epoch,
        max_epochs=plan.max_epochs,
        max_bytes=int(cache.max_bytes),
    )
    total = table.sum()
    n_asked, n_bytes = total["cache_hits"] + total["cache_misses"], table["cache_bytes"].max()
    summary = (
        f"frozen_cache: {total['cache_hits']:,.0f} of {n_asked:,.0f} rows come from memory, which holds up to "
        f"{n_bytes / 1e6:,.1f} MB; about {total['cache_saved']:.1f} s are saved"
    )
    return replace(plan, cache=table, notes=(*plan.notes, summary, *dict.fromkeys(str(one.message) for one in said)))
