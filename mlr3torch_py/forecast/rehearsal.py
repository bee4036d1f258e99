"""Complete a plan by what a few steps of each phase show, taken on a copy of the net."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Final

import pandas as pd
import torch
from torch import nn

from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.forecast.cache import CachedSpan, estimate_epochs, measure_span
from mlr3torch_py.forecast.measure import Measurement, PhaseCost, measure_phase, measure_validation
from mlr3torch_py.forecast.probe import NetProbe, rows_in
from mlr3torch_py.forecast.report import FreezePlan, Phase
from mlr3torch_py.forecast.twin import first_line
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.freezing.pinning import check_pins, modules_to_pin
from mlr3torch_py.network.compiled import is_compiled
from mlr3torch_py.network.evaluation import Pins
from mlr3torch_py.network.internals import tree_leaves
from mlr3torch_py.network.parameters import Flags
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.values import length_of

__all__ = ["Rehearsal"]

_REMEDY: Final = "; if `fit` works, give a net that was fitted, as a callback may have to prepare it"


class RehearsalError(Exception):
    """Why a copy of a net cannot be trained."""


class Rehearsal:
    """Trains a copy of a net for a few steps in each phase of a plan.

    Parameters
    ----------
    plan : FreezePlan
    module : torch.nn.Module
        The network.
    probe : NetProbe, optional
        The net, with its data, if they are given.
    freezing : sequence of FreezingCallback
        Its callbacks, with their plans.
    cache : CallbackSetFrozenCache, optional
        What is forecast as well.
    measure : bool
        Whether to measure all phases, or only what the cache needs.
    """

    def __init__(
        self,
        plan: FreezePlan,
        module: nn.Module,
        probe: NetProbe | None,
        freezing: Sequence[FreezingCallback],
        cache: CallbackSetFrozenCache | None,
        measure: bool,
    ) -> None:
        self.plan = plan
        self.module = module
        self.given = probe
        self.freezing = freezing
        self.cache = cache
        self.measure = measure

    @property
    def probe(self) -> NetProbe:
        """The net that can take steps."""
        if self.given is None:
            raise RehearsalError("a network alone takes no steps; give a net with `X` and `y`")
        if self.given.problem:
            raise RehearsalError(self.given.problem)
        if self.plan.batches_per_epoch is None:
            raise RehearsalError("the number of batches in an epoch is not known; pass `batches_per_epoch`")
        return self.given

    def complete(self) -> FreezePlan:
        """Return the plan with all that was found, or with a note why nothing was.

        Raises
        ------
        TypeError, ValueError
            If an argument of the cache does not fit the network.
        """
        if self.cache is not None:
            self.cache.make_parts(self.module, self.freezing).close()
            if self.given is not None and any(map(is_compiled, self.given.module.modules())):
                refused = "frozen_cache: training will refuse a network that is compiled; leave out one of the two"
                self.plan, self.cache = replace(self.plan, notes=(*self.plan.notes, refused)), None
        if not (self.cache or self.measure):
            return self.plan
        try:
            spans, costs, said = self._run()
            validation = measure_validation(self.probe) if self.measure else 0.0
        except Exception as error:  # whatever a net raises, the plan is not lost
            why = str(error) if isinstance(error, RehearsalError) else first_line(error)
            missing = ["not measured"] * self.measure + ["no forecast of frozen_cache"] * (self.cache is not None)
            return replace(self.plan, notes=(*self.plan.notes, f"{' and '.join(missing)}: {why}"))
        table, notes = self._forecast(spans, said)
        measured = self._measured(costs, validation, table) if self.measure else None
        total = [] if measured is None else [_total(measured, is_shared=self.probe.is_shared)]
        return replace(self.plan, cache=table, measured=measured, notes=(*self.plan.notes, *total, *notes))

    def _run(self) -> tuple[list[CachedSpan], list[PhaseCost], list[str]]:
        spans, costs, pins, module = [], [], Pins(), bare(self.probe.module)
        with warnings.catch_warnings(record=True, action="always") as said:
            self.probe.begin()
            for i, phase in enumerate(self.plan.phases, start=1):
                held_by = [(callback, callback.held(self._moment(phase))) for callback in self.freezing]
                Flags(phase.trainable, frozenset()).restore(module)
                for tensor in module.parameters():
                    tensor.grad = None
                pins.set(modules_to_pin(module.train(), held_by))
                try:
                    check_pins(module)
                    if self.measure:
                        costs.append(measure_phase(self.probe))
                    if self.cache is not None:
                        spans.append(self._span(phase, self.cache))
                except Exception as error:
                    why = first_line(self.probe.fit_error or error) + _REMEDY
                    why = why if phase.trainable else "nothing is trainable"
                    raise RehearsalError(f"phase {i} cannot be trained on a copy of the net: {why}") from error
        ours = [str(one.message) for one in said if str(one.message).startswith("frozen_cache")]
        return spans, costs, list(dict.fromkeys(ours))

    def _moment(self, phase: Phase) -> Moment:
        per_epoch = self.plan.batches_per_epoch or 1
        return Moment(phase.epoch, phase.batch, tuple(1 + per_epoch * i for i in range(phase.epoch)))

    def _span(self, phase: Phase, cache: CallbackSetFrozenCache) -> CachedSpan:
        boundless = CallbackSetFrozenCache(cache.modules, max_bytes=sys.maxsize, check=cache.check)
        parts = boundless.make_parts(self.probe.module, self.freezing)
        batch = self.probe.first_batch
        if not self.measure:
            self.probe.train([batch])  # what is computed for the first time takes longer
        try:
            return measure_span(phase.batch, parts, lambda: self.probe.train([batch]), rows_in(batch))
        finally:
            parts.close()

    def _forecast(self, spans: list[CachedSpan], said: list[str]) -> tuple[pd.DataFrame | None, list[str]]:
        """Extrapolate from the first batch to all epochs."""
        if self.cache is None:
            return None, []
        per_epoch, n_train = self.plan.batches_per_epoch or 1, self.probe.n_train
        table = estimate_epochs(
            spans,
            n_train=per_epoch * rows_in(self.probe.first_batch) if n_train is None else n_train,
            n_drawn=length_of(getattr(self.probe.batches, "sampler", None)),
            n_valid=self.probe.n_valid,
            per_epoch=per_epoch,
            valid_per_epoch=self.probe.n_valid_batches,
            max_epochs=self.plan.max_epochs,
            max_bytes=int(self.cache.max_bytes),
        )
        total = table.sum()
        n_asked, n_bytes = total["cache_hits"] + total["cache_misses"], table["cache_bytes"].max()
        seconds = total["cache_saved"]
        summary = (
            f"frozen_cache: {total['cache_hits']:,.0f} of {n_asked:,.0f} rows come from memory, which holds up to "
            f"{n_bytes / 1e6:,.1f} MB; about {_rounded(abs(seconds))} s are {'saved' if seconds >= 0 else 'lost'}, "
            "filling included"
        )
        return table, [summary, *said, *self._padding(total["cache_hits"])]

    def _padding(self, hits: float) -> Iterator[str]:
        """Say that rows which are padded to various lengths do not hit."""
        shapes = [_row_shapes(batch) for batch in islice(self.probe.batches, 4)] if hits else []
        if any(one != other and len(one) == len(other) for one, other in pairwise(shapes)):
            yield (
                "frozen_cache: the rows of different batches have different lengths; a row that is padded to another "
                "length does not come from memory, so fewer will; pad all rows to one length, or keep the batches "
                "as they are from epoch to epoch"
            )

    def _measured(self, costs: list[PhaseCost], validation: float, table: pd.DataFrame | None) -> Measurement:
        plan = self.plan
        ends = [phase.batch for phase in plan.phases[1:]] + [plan.max_epochs * (plan.batches_per_epoch or 1) + 1]
        seconds = validation * plan.max_epochs + sum(
            cost.seconds * (end - phase.batch) for cost, phase, end in zip(costs, plan.phases, ends, strict=True)
        )
        cached = None if table is None else max(0.0, seconds - float(table["cache_saved"].sum()))
        return Measurement(tuple(costs), seconds, cached)


def _total(measured: Measurement, *, is_shared: bool) -> str:
    cached = measured.seconds_cached
    beside = "" if cached is None else f", {_rounded(cached)} s with frozen_cache, filling included"
    alone = ", without communication between processes" if is_shared else ""
    return f"measured: all batches of the training take about {_rounded(measured.seconds)} s{beside}{alone}"


def _rounded(seconds: float) -> str:
    """Write seconds to two digits, or to whole ones."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _row_shapes(batch: object) -> list[torch.Size]:
    return [leaf.shape[1:] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
