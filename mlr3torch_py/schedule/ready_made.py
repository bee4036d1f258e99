"""Ready-made schedules as values: the tables of well-known ways of fine-tuning."""

from __future__ import annotations

import math
import sys
from typing import get_args

import pandas as pd

from mlr3torch_py.arguments import check_choice, check_number, check_whole
from mlr3torch_py.network.tree import Level
from mlr3torch_py.schedule.blocks import Head
from mlr3torch_py.schedule.table import Unit
from mlr3torch_py.schedule.value import Groups, Schedule, UnfreezeArguments
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.nodes import joined
from mlr3torch_py.select.value import value
from mlr3torch_py.values import shown

__all__ = ["READY_MADE", "ChainThaw", "GradualUnfreezing", "HeadFirst"]


@value
class GradualUnfreezing(Schedule):
    """Block after block, from the head to the input."""

    fn = "gradual_unfreezing"
    every: int = 1
    start: int = 1
    unit: Unit = "epoch"
    groups: Groups = None
    lr_decay: float = 1.0
    among: Select | None = None
    head: Head = None
    n_groups: int | None = None
    level: Level = "layer"
    warmup: int = 0

    def __post_init__(self) -> None:
        _check_times(self)
        _check_warmup(self)
        decay = check_number("lr_decay", self.lr_decay, "a number above 0, such as 2.6", above=0)
        object.__setattr__(self, "lr_decay", decay)
        super().__post_init__()

    def _arguments(self, blocks: list[Select]) -> UnfreezeArguments:
        *body, head = blocks
        table = pd.DataFrame({self.unit: _times(self.start, self.every, self.unit, len(body)), "weights": body[::-1]})
        if (factors := _factors(self.lr_decay, len(body))) is not None:
            table["lr_mult"] = factors
        return UnfreezeArguments(head, _with_warmup(table, self.warmup))


@value
class ChainThaw(Schedule):
    """The head, each other block alone, then all."""

    fn = "chain_thaw"
    every: int = 1
    start: int = 1
    unit: Unit = "epoch"
    groups: Groups = None
    among: Select | None = None
    head: Head = None
    n_groups: int | None = None
    level: Level = "layer"

    def __post_init__(self) -> None:
        _check_times(self)
        super().__post_init__()

    def _arguments(self, blocks: list[Select]) -> UnfreezeArguments:
        *body, head = blocks
        *times, last_time = _times(self.start, self.every, self.unit, len(body) + 1)
        rows: list[tuple[int, Select, str]] = []
        for time, block, before in zip(times, body, [head, *body], strict=False):
            rows += [(time, block, "unfreeze"), (time, before, "freeze")]
        if body:
            rows.append((last_time, joined([*body[:-1], head]), "unfreeze"))
        return UnfreezeArguments(head, pd.DataFrame(rows, columns=[self.unit, "weights", "action"]))


@value
class HeadFirst(Schedule):
    """The head alone, then all."""

    fn = "head_first"
    epochs: int = 1
    groups: Groups = None
    among: Select | None = None
    head: Head = None
    n_groups: int | None = None
    level: Level = "layer"
    lr_mult: float = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        epochs = check_whole("epochs", self.epochs, "epochs", most=sys.maxsize - 1)
        object.__setattr__(self, "epochs", epochs)
        lr_mult = check_number("lr_mult", self.lr_mult, "a factor on the learning rate above 0, such as 0.1", above=0)
        object.__setattr__(self, "lr_mult", lr_mult)
        _check_warmup(self)
        super().__post_init__()

    def _arguments(self, blocks: list[Select]) -> UnfreezeArguments:
        *body, head = blocks
        scaled = body if self.lr_mult == 1 else blocks
        rows = [(self.epochs + 1, joined(scaled))] if body else []
        table = pd.DataFrame(rows, columns=["epoch", "weights"])
        if self.lr_mult != 1:
            table = table.assign(lr_mult=self.lr_mult, lr_mult_from="row")
        return UnfreezeArguments(head, _with_warmup(table, self.warmup))


READY_MADE: dict[str, type[Schedule]] = {one.fn: one for one in (GradualUnfreezing, ChainThaw, HeadFirst)}
"""The classes of ready-made schedules by the function that makes them."""


def _check_times(schedule: GradualUnfreezing | ChainThaw) -> None:
    unit = check_choice("unit", schedule.unit, get_args(Unit))
    what = "epochs" if unit == "epoch" else "batches"
    for name in ("start", "every"):
        object.__setattr__(schedule, name, check_whole(name, getattr(schedule, name), what))


def _check_warmup(schedule: GradualUnfreezing | HeadFirst) -> None:
    object.__setattr__(schedule, "warmup", check_whole("warmup", schedule.warmup, "batches", least=0))


def _with_warmup(table: pd.DataFrame, warmup: int) -> pd.DataFrame:
    return table.assign(warmup=warmup) if warmup else table


def _times(start: int, every: int, unit: Unit, n: int) -> list[int]:
    """Return the `n` times after `start`."""
    if start + every * n > sys.maxsize:
        what = "epochs" if unit == "epoch" else "batches"
        raise ValueError(f"`every` is {every}, with which the last block comes after {what} 2**63; give a smaller one")
    return [start + every * i for i in range(1, n + 1)]


def _factors(decay: float, n: int) -> list[float] | None:
    """Return the factors on the learning rates of the `n` blocks below the head; None if all are 1."""
    if decay == 1:
        return None
    if not math.log(sys.float_info.min) < -n * math.log(decay) < math.log(sys.float_info.max):
        raise ValueError(f"`lr_decay` is {shown(decay)}, too far from 1 for {n} blocks; give a number such as 2.6")
    return [decay**-i for i in range(1, n + 1)]
