"""Factors on learning rates as functions of the batch, worked out from plans."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Generic, TypeVar

from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.steps import Act, Moment, Step

__all__ = ["Factor", "factors_at", "scaled_early", "scaling_column"]

_Tensor = TypeVar("_Tensor", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Factor:
    """The factor on the learning rate of a tensor, as a function of the batch.

    Parameters
    ----------
    mult : float
        The factor after the warm-up.
    warmup : int
        The number of batches in which it rises to `mult`: from ``mult / warmup`` in the first to `mult` in the last.
    first : int
        The first batch of the warm-up.

    Examples
    --------
    >>> factor = Factor(mult=0.1, warmup=4, first=11)
    >>> factor.at(11), factor.at(12), factor.at(14), factor.at(99)
    (0.025, 0.05, 0.1, 0.1)
    """

    mult: float = 1.0
    warmup: int = 0
    first: int = 1

    def at(self, batch: int) -> float:
        """Return the factor for a batch."""
        return self.mult * (self._n_begun(batch) / self.warmup) if self.is_rising(batch) else self.mult

    def is_rising(self, batch: int) -> bool:
        """Whether the factor of a batch is that of a later one only in part."""
        return self._n_begun(batch) < self.warmup

    def since(self, batch: int) -> Factor:
        """Return the factor without a warm-up that is over by a batch."""
        return self if self.is_rising(batch) else Factor(self.mult)

    def _n_begun(self, batch: int) -> int:
        return max(0, batch - self.first + 1)


def factors_at(plans: Iterable[Plan], moment: Moment, tensor_of: Mapping[str, _Tensor]) -> dict[_Tensor, Factor]:
    """Work out the factors that hold from a moment until the next row takes effect.

    A row with `lr_mult_from="start"` sets the factor from the first step; of several for a tensor, the first in the
    table counts. One with "row" replaces it from its own time on. The warm-up of a row is for the tensors that it has
    released, and begins with the first batch before which no plan holds them any more.

    Parameters
    ----------
    plans : iterable of Plan
        All that hold parameters of the network.
    moment : Moment
    tensor_of : mapping
        What stands for the tensor of each name; the same for the names of a tied tensor.

    Returns
    -------
    dict
        The factors of all tensors whose rates are scaled at any time, also if they are not at the moment.

    Examples
    --------
    >>> from mlr3torch_py import select_name
    >>> from mlr3torch_py.schedule.table import read_table
    >>> table = {"epoch": [3], "weights": [select_name("bias")], "lr_mult": [0.1], "warmup": [4]}
    >>> plan = Plan.resolve(select_name("weight"), read_table(table), ["weight", "bias"])
    >>> factors_at([plan], Moment(epoch=3, batch=20, firsts=(1, 11, 21)), {"weight": 0, "bias": 1})
    {1: Factor(mult=0.1, warmup=4, first=21)}
    """
    plans = tuple(plans)
    if not any(plan.scaling for plan in plans):
        return {}
    factors, holds = _from_start(plans, tensor_of), _Holds(plans, tensor_of)
    acts = [(act, plan) for plan in plans for act in plan.acts(moment, tensor_of)]
    for batch, at_once in groupby(sorted(acts, key=_time), key=_batch):
        for act, plan in at_once:
            factors |= _from_row(act.step, factors, tensor_of)
            holds.change(act, plan)
        for tensor, warmup in holds.take_released():
            factors[tensor] = Factor(factors.get(tensor, Factor()).mult, warmup, batch)
    ever = set[_Tensor]().union(*(_tensors(step, tensor_of) for plan in plans for step in plan.scaling))
    return {tensor: factors.get(tensor, Factor()).since(moment.batch) for tensor in ever}


def scaled_early(plan: Plan) -> Iterator[tuple[Step, Held]]:
    """Yield the rows whose factor also holds for what trains before them, with the names of that.

    Left out are rows that release nothing: setting a factor is all that they do.

    Parameters
    ----------
    plan : Plan

    Yields
    ------
    (Step, set of str)

    Examples
    --------
    >>> from mlr3torch_py import select_all, select_name
    >>> from mlr3torch_py.schedule.table import read_table
    >>> table = {"epoch": [3], "weights": [select_all()], "lr_mult": [0.1]}
    >>> plan = Plan.resolve(select_name("weight"), read_table(table), ["weight", "bias"])
    >>> [sorted(names) for _, names in scaled_early(plan)]
    [['weight']]
    """
    before, has_factor = plan.starting, frozenset[str]()
    for step, trainable in plan.in_turn():
        early = (step.names & before) - has_factor
        if step.row.lr_mult is not None and step.row.lr_mult_from == "start":
            has_factor |= step.names
            if early and trainable - before and step.scales and step.row.lr_mult != 1 and step.time > 1:
                yield step, early
        before = frozenset(trainable)


class _Holds(Generic[_Tensor]):
    """Which plans hold which tensors, and the warm-ups of those that are released.

    A plan holds a tensor while it holds all of its names.
    """

    def __init__(self, plans: Iterable[Plan], tensor_of: Mapping[str, _Tensor]) -> None:
        names_of: dict[_Tensor, set[str]] = {}
        for name, tensor in tensor_of.items():
            names_of.setdefault(tensor, set()).add(name)
        self._held = {
            id(plan): {tensor for tensor, names in names_of.items() if names.isdisjoint(plan.starting) and names <= own}
            for plan, own in ((plan, set(plan.names)) for plan in plans)
        }
        self._warmups: dict[_Tensor, dict[int, int]] = {}
        self._touched = set[_Tensor]()

    def change(self, act: Act, plan: Plan) -> None:
        """Follow what a step of a plan does."""
        self._held[id(plan)] |= act.frozen
        self._held[id(plan)] -= act.released
        self._touched |= act.released
        for tensor in act.frozen:
            self._warmups.get(tensor, {}).pop(id(plan), None)
        for tensor in act.released:
            self._warmups.setdefault(tensor, {})[id(plan)] = act.step.row.warmup

    def take_released(self) -> Iterator[tuple[_Tensor, int]]:
        """Yield what was released since the last call and is held by no plan now, with the longest warm-up."""
        for tensor in self._touched:
            if not any(tensor in held for held in self._held.values()):
                yield tensor, max(self._warmups.pop(tensor, {}).values(), default=0)
        self._touched.clear()


def scaling_column(steps: Iterable[Step]) -> str:
    """Return the column of the table by which steps scale learning rates, for messages."""
    return "lr_mult" if any(step.row.lr_mult for step in steps) else "warmup"


def _from_start(plans: Iterable[Plan], tensor_of: Mapping[str, _Tensor]) -> dict[_Tensor, Factor]:
    """Return the factors that hold from the first step of training: of several for a tensor, the first in the table."""
    factors: dict[_Tensor, Factor] = {}
    in_order = (step for plan in plans for step in sorted(plan.steps, key=lambda step: step.row.position))
    for step in in_order:
        if step.time > 0 and step.row.lr_mult is not None and step.row.lr_mult_from == "start":
            for tensor in _tensors(step, tensor_of):
                factors.setdefault(tensor, Factor(step.row.lr_mult))
    return factors


def _from_row(step: Step, factors: Mapping[_Tensor, Factor], tensor_of: Mapping[str, _Tensor]) -> dict[_Tensor, Factor]:
    """Return the factors that a step sets when it takes effect."""
    mult = step.row.lr_mult
    if mult is None or step.row.lr_mult_from != "row":
        return {}
    return {tensor: replace(factors.get(tensor, Factor()), mult=mult) for tensor in _tensors(step, tensor_of)}


def _tensors(step: Step, tensor_of: Mapping[str, _Tensor]) -> set[_Tensor]:
    return {tensor_of[name] for name in step.names}


def _time(one: tuple[Act, Plan]) -> tuple[int, bool]:
    return one[0].batch, one[0].step.row.unit == "batch"


def _batch(one: tuple[Act, Plan]) -> int:
    return one[0].batch
