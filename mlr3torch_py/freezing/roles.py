"""What a freezing engine asks of those around it: the host that drives it, and the holders that it combines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.steps import Moment

__all__ = ["Holder", "Host", "Mode"]

Mode = Literal["train", "eval"]
"""The mode of what is frozen."""


class Host(Protocol):
    """What drives an engine: it has the network and its optimizers, and a place to record what happens."""

    @property
    def network(self) -> nn.Module:
        """The network that the host has now, wrapped or not."""

    @property
    def optimizer(self) -> object:
        """The first optimizer that the host has now for the network; None without one."""

    def optimizers(self) -> Iterable[tuple[str, Optimizer]]:
        """Yield the optimizers that the host has now, under the names by which rates are recorded."""

    def learnable(self) -> Iterable[torch.Tensor]:
        """Yield what the optimizers move, where they have no groups of parameters."""

    def record(self, key: str, value: object) -> None:
        """Record something of the epoch."""

    def recorded(self, key: str) -> Any:
        """Return what was recorded of the epoch; None if nothing was."""

    def last_recorded(self, key: str, part: str) -> object:
        """Return a part of the last entry that was recorded in a list, in whatever epoch; None if nothing was."""

    def record_rate(self, name: str, rate: float) -> None:
        """Record a learning rate of the batch."""

    def flags_changed(self) -> None:
        """React to flags that may have changed."""

    def drop_epoch(self) -> None:
        """Remove the record of an epoch that did not take place."""


class Holder(Protocol):
    """What declares, by plans, which parameters it holds frozen when.

    The engine sets `held_`, and `missing_` of the first holder: the names of which it has warned that no optimizer
    holds them.
    """

    plans_: tuple[Plan, ...]
    held_: Held
    missing_: Held

    @property
    def governed(self) -> Held:
        """The parameters whose flags are set when training begins, whatever they were."""

    def resolve(self, network: nn.Module, known: Held, renamed: Mapping[str, str] | None) -> None:
        """Make the plans for a network; for names that are `known` or `renamed`, those from before hold."""

    def held(self, moment: Moment) -> Held:
        """Return the names that are held frozen at a moment."""

    @property
    def modes(self) -> tuple[Mode, Mode]:
        """The modes, "train" or "eval", of frozen normalisation layers and of all other frozen modules."""

    def opening(self) -> str:
        """Describe, for the log, what training begins with."""

    def describe(self, moment: Moment) -> str:
        """Describe what is held and until when, for an error message."""
