"""Factors on learning rates as functions of the batch, worked out from plans."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.steps import Act, Moment, Step

__all__ = ["Factor", "factors_at"]

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
    made trainable.

    Parameters
    ----------
    plans : iterable of Plan
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
    scaling = [plan for plan in plans if plan.scaling]
    factors: dict[_Tensor, Factor] = {}
    for step in (step for plan in scaling for step in _from_start(plan)):
        for tensor in _tensors(step, tensor_of):
            factors.setdefault(tensor, Factor(step.row.lr_mult or 1.0))
    acts = [act for plan in scaling for act in plan.acts(moment, tensor_of)]
    for act in sorted(acts, key=_time):
        if act.step.row.lr_mult_from == "row" and act.step.row.lr_mult is not None:
            for tensor in _tensors(act.step, tensor_of):
                factors[tensor] = replace(factors.get(tensor, Factor()), mult=act.step.row.lr_mult)
        for tensor in act.released:
            mult = factors.get(tensor, Factor()).mult
            factors[tensor] = Factor(mult, act.step.row.warmup, act.batch)
    ever = set[_Tensor]().union(*(_tensors(step, tensor_of) for plan in scaling for step in plan.scaling))
    return {tensor: factors.get(tensor, Factor()).since(moment.batch) for tensor in ever}


def _from_start(plan: Plan) -> Iterator[Step]:
    """Yield the steps whose factors hold from the first step of training, in the order of the table."""
    for step in sorted(plan.steps, key=lambda step: step.row.position):
        if step.time > 0 and step.row.lr_mult is not None and step.row.lr_mult_from == "start":
            yield step


def _tensors(step: Step, tensor_of: Mapping[str, _Tensor]) -> set[_Tensor]:
    return {tensor_of[name] for name in step.names}


def _time(act: Act) -> tuple[int, bool]:
    return act.batch, act.step.row.unit == "batch"
