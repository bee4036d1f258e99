"""The engine that decides what is frozen in one network: it combines what all freezing callbacks of a net hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.freezing.rates import RateFactors
from mlr3torch_py.names import listed
from mlr3torch_py.network.evaluation import DROPOUT, NORMALISATION, frozen_layers, pin_in_eval_mode
from mlr3torch_py.network.parameters import Flags, freeze, n_trainable
from mlr3torch_py.network.unwrap import named_parameters
from mlr3torch_py.schedule.plan import Held, Moment, Plan

__all__ = ["FreezingEngine", "Holder", "Host", "layers_to_pin"]

logger = logging.getLogger("mlr3torch_py")

# Events are numbered over all engines, so that no two of them have the same number.
_EVENTS: Final = count(1)


class Host(Protocol):
    """What drives an engine: it has the network and its optimizers, and a place to record what happens."""

    @property
    def network(self) -> nn.Module:
        """The network, wrapped or not."""

    def optimizers(self) -> Iterable[tuple[str, Optimizer]]:
        """Yield the optimizers under the names by which rates are recorded."""

    def learnable(self) -> Iterable[torch.Tensor]:
        """Yield what the optimizers move, where they have no groups of parameters."""

    def record(self, key: str, value: object) -> None:
        """Record something of the epoch."""

    def recorded(self, key: str) -> object:
        """Return what was recorded of the epoch; None if nothing was."""

    def record_rate(self, name: str, rate: float) -> None:
        """Record a learning rate of the batch."""

    def flags_changed(self) -> None:
        """React to flags that may have changed."""

    def drop_epoch(self) -> None:
        """Remove the record of an epoch that did not take place."""


class Holder(Protocol):
    """What declares, by plans, which parameters it holds frozen when; the engine sets `held_`."""

    frozen_norm: str
    frozen_dropout: str
    plans_: tuple[Plan, ...]
    held_: Held

    @property
    def governed(self) -> Held:
        """The parameters whose flags are set when training begins, whatever they were."""

    def held(self, moment: Moment) -> Held:
        """Return what is held frozen at a moment."""

    def opening(self, moment: Moment) -> str:
        """Describe, for the log, the state at a moment."""

    def describe(self, moment: Moment) -> str:
        """Describe what is held and until when, for an error message."""


_Host = TypeVar("_Host", bound=Host)


class FreezingEngine(Generic[_Host]):
    """The one place where the flags of a net are decided: a parameter is trainable when no holder holds it.

    The host calls `begin` when training begins, `begin_epoch` when an epoch begins, `begin_batch` before a batch that
    is `due`, and `end`. Each of them may be called twice without effect.

    Parameters
    ----------
    host : Host
    holders : sequence of Holder
        Their plans are made, and may be replaced before `begin_epoch`.
    moment : Moment
        The time when training begins.

    Attributes
    ----------
    moment : Moment
        The time of the last event.
    batch : int
        The current training batch; the host counts it.
    due : float
        The batch before which `begin_batch` must be called next.
    held : set of str
        The names that at least one holder holds frozen.
    event : int
        The number of the last event at which `held` changed; no two engines have the same.
    """

    def __init__(self, host: _Host, holders: Sequence[Holder], moment: Moment) -> None:
        self.host = host
        self.holders = holders
        self.moment = moment
        self.batch, self.due = moment.batch, 0.0
        self.held: Held = frozenset()
        self.event = next(_EVENTS)
        self._flags_before: Flags | None = None
        self._rates: list[RateFactors] = []

    @property
    def is_provisional(self) -> bool:
        """Whether no step has been taken since training began."""
        return self._flags_before is not None

    def begin(self) -> None:
        """Set the flags of all governed parameters when training begins."""
        self._scale_rates()
        self._flags_before = Flags.of(self.host.network)
        self._apply(governed=frozenset().union(*(holder.governed for holder in self.holders)))

    def begin_epoch(self, moment: Moment) -> None:
        """Apply the plans when an epoch begins."""
        self.moment, is_first = moment, self.is_provisional
        if is_first:  # a history may have been loaded since training began
            since = replace(moment, epoch=moment.epoch - 1)
            for holder in self.holders:
                holder.held_ = holder.held(since)
                if logger.isEnabledFor(logging.INFO):
                    logger.info(holder.opening(since))
        has_changed = self._change(f"epoch {moment.epoch}")
        self.host.record("n_trainable", n_trainable(self.host.network))
        self.batch = moment.batch
        self.due = self.batch + 1 if has_changed or is_first else self._next_batch(self.batch)

    def begin_batch(self, moment: Moment) -> None:
        """Apply the plans before a training batch, and check that something trains."""
        if self.is_provisional or self._next_batch(self.batch - 1) == self.batch:
            self.moment = replace(moment, batch=self.batch)
            self._change(f"batch {self.batch}")
        self._check_something_trains()
        self.due, self._flags_before = self._next_batch(self.batch), None

    def end(self) -> None:
        """Give the optimizers back as they were."""
        for factors in self._rates:
            factors.remove()
        self._rates = []

    def _next_batch(self, batch: int) -> float:
        plans = (plan for holder in self.holders for plan in holder.plans_)
        return min((plan.next_batch(batch) for plan in plans), default=math.inf)

    def _apply(self, governed: Held = frozenset()) -> None:
        network = self.host.network
        for holder in self.holders:
            holder.held_ = holder.held(self.moment)
        before, self.held = self.held, frozenset().union(*(holder.held_ for holder in self.holders))
        if self.held != before or governed:
            self.event = next(_EVENTS)
        if freeze(network, self.held, governed=governed):
            self._clear_directions()
        if governed or any("eval" in (holder.frozen_norm, holder.frozen_dropout) for holder in self.holders):
            # A copied network may still carry pins when training begins.
            pin_in_eval_mode(network, layers_to_pin(network, [(holder, holder.held_) for holder in self.holders]))
        self.host.flags_changed()

    def _change(self, when: str) -> bool:
        """Apply the plans, and log and record whether that has changed something."""
        before = [holder.held_ for holder in self.holders]
        self._apply()
        has_changed = False
        for holder, held in zip(self.holders, before, strict=True):
            for doing, names in (("unfreezing", held - holder.held_), ("freezing", holder.held_ - held)):
                has_changed = has_changed or bool(names)
                if names and logger.isEnabledFor(logging.INFO):
                    logger.info("%s at %s: %s", doing, when, listed(in_order(holder.plans_, names)))
        self.host.record("event_unfreeze", has_changed or bool(self.host.recorded("event_unfreeze")))
        return has_changed

    def _scale_rates(self) -> None:
        """Let the optimizers move single parameters by other rates."""
        factors = [item for holder in self.holders for plan in holder.plans_ for item in plan.lr_factors().items()]
        tensors = named_parameters(self.host.network) if factors else {}
        # Of several factors for a tensor the first counts.
        factor_of = {id(tensors[name]): factor for name, factor in reversed(factors)}
        if any(factor != 1 for factor in factor_of.values()):
            for name, optimizer in self.host.optimizers():
                self._rates.append(RateFactors(optimizer, factor_of, self.host.record_rate, name))

    def _clear_directions(self) -> None:
        """Reset LBFGS: its gradient memory would keep moving frozen weights."""
        for _, optimizer in self.host.optimizers():
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.state.clear()

    def _check_something_trains(self) -> None:
        groups = [group["params"] for _, optimizer in self.host.optimizers() for group in optimizer.param_groups]
        if not groups:
            groups = [list(self.host.learnable())]
        if any(tensor.requires_grad for group in groups for tensor in reversed(group)):  # mostly the head trains
            return
        if self._flags_before is not None:
            self._flags_before.restore(self.host.network)
        if self.batch == self.moment.first_batch(self.moment.epoch):
            self.host.drop_epoch()
        why = "; ".join(f"{type(holder).__name__}: {holder.describe(self.moment)}" for holder in self.holders)
        raise ValueError(
            f"nothing trains at batch {self.batch} (epoch {self.moment.epoch}), so no step can be taken. {why}. "
            "At every step at least one weight that the optimizer holds must be trainable"
        )


def layers_to_pin(module: nn.Module, held_by: Iterable[tuple[Holder, Held]]) -> Iterator[nn.Module]:
    """Yield the layers to be pinned in eval mode, given what each holder holds frozen."""
    kinds_of_option = {"frozen_norm": NORMALISATION, "frozen_dropout": DROPOUT}
    for holder, held in held_by:
        for option, kinds in kinds_of_option.items():
            if getattr(holder, option) == "eval":
                yield from frozen_layers(module, held, kinds).values()


def in_order(plans: Iterable[Plan], names: Held) -> Iterator[str]:
    """Yield names in the order of the network."""
    order = dict.fromkeys(name for plan in plans for name in plan.names)
    return (name for name in order if name in names)
