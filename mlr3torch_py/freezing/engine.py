"""The engine that decides what is frozen in one network: it combines what all freezing callbacks of a net hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final, Generic, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from mlr3torch_py.freezing.advice import frozen_again, in_no_optimizer, missing_from, shared_by
from mlr3torch_py.freezing.inventory import Inventory
from mlr3torch_py.freezing.memory import complete_momentum, forget_directions
from mlr3torch_py.freezing.pinning import check_pins, modules_to_pin
from mlr3torch_py.freezing.rates import Rates
from mlr3torch_py.freezing.record import Record
from mlr3torch_py.freezing.released import Released
from mlr3torch_py.freezing.residues import Residues
from mlr3torch_py.freezing.roles import Holder, Host
from mlr3torch_py.network.evaluation import Pins
from mlr3torch_py.network.normalisation import is_normalisation
from mlr3torch_py.network.parameters import (
    Flags,
    changed_by_hand,
    freeze,
    frozen_by_us,
    keep_frozen_before_us,
    n_trainable,
    remember_moved,
)
from mlr3torch_py.network.unwrap import all_modules, own_parameters
from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.rates import Factor, factors_at, scaling_column
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.warn import warn

__all__ = ["FreezingEngine"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

# Events are numbered over all engines, so that no two of them have the same number.
_EVENTS: Final = count(1)

_Host = TypeVar("_Host", bound=Host)


class FreezingEngine(Generic[_Host]):
    """The one place where the flags of a net are decided: a parameter is trainable when no holder holds it.

    The host calls `begin` when training begins, `begin_epoch` and `end_epoch` around an epoch, `begin_batch` before a
    training batch that is `due`, `begin_update` and `end_update` around each update, and `end`. When something begins,
    the engine looks at the parameters, modules and optimizers that the host has then. Calling it twice changes nothing.

    Parameters
    ----------
    host : Host
    holders : sequence of Holder
        Their plans are made, and may be replaced before `begin_epoch`.
    moment : Moment
        The time when training begins.
    peers : list of FreezingEngine, optional
        The engines of other networks of the host, such as two that train in turns. This one is added, until it ends.
    place : str
        What messages call the network.

    Attributes
    ----------
    network, optimizer : torch.nn.Module and object
        What the host had at the last look. When it has another one, `begin_batch` must be called next.
    moment : Moment
        The time of the last event.
    batch : int
        The current training batch; the host counts it.
    due : float
        The batch before which `begin_batch` must be called next.
    held : set of str
        The names that are frozen: those of the weights all of whose names are held by at least one holder.
    event : int
        The number of the last event at which `held`, tensors or pins changed; no two engines have the same.
    """

    def __init__(
        self,
        host: _Host,
        holders: Sequence[Holder],
        moment: Moment,
        *,
        peers: list[FreezingEngine[_Host]] | None = None,
        place: str = "module_",
    ) -> None:
        self.host = host
        self.holders = holders
        self.driver: Holder = holders[0]
        self.moment: Moment = moment
        self.batch: int = moment.batch
        self.due: float = 0.0
        self.held: Held = frozenset()
        self.event: int = next(_EVENTS)
        self.peers: list[FreezingEngine[_Host]] = [] if peers is None else peers
        self._inventory = self._look(before=None)
        self._flags_before: Flags | None = None
        self._pins, self._to_pin = Pins(), list[nn.Module]()
        self._pins_for: object = None  # what these follow from
        # One optimizer may hold the parameters of several networks.
        self._rates: Rates = self.peers[0]._rates if self.peers else Rates(host.record_rate, batch=lambda: self.batch)
        self._residues = Residues()
        self.place = place
        self.prefix: str = "" if place == "module_" else f"{place}: "
        self._record = Record(host, self.prefix)
        self._released = Released()
        self.peers.append(self)

    @property
    def seems_current(self) -> bool:
        """Whether nothing that it governs seems to be replaced since it looked last."""
        return self._inventory.seems_current

    @property
    def rates_in_use(self) -> set[str]:
        """The names under which the history has the rates of trainable parameters; empty if none is scaled."""
        return self._rates.in_use

    @property
    def is_provisional(self) -> bool:
        """Whether no step has been taken since training began."""
        return self._flags_before is not None

    def begin(self) -> None:
        """Set the flags of all governed parameters when training begins."""
        keep_frozen_before_us(self.network)
        self._check_shared()
        self._scale_rates()
        self._flags_before = Flags.of(self.network)
        self._apply(written=self._whole(self._governed()) | frozen_by_us(self.network))

    def begin_epoch(self, moment: Moment) -> None:
        """Apply the plans when an epoch begins."""
        self.moment = moment
        fresh = self._follow()
        if self.is_provisional:  # a history may have been loaded since training began
            self._hold(replace(moment, epoch=moment.epoch - 1))
            trained = self._record.trained_last(self._inventory.tensors)
            if trained is not None:  # by another schedule, perhaps
                by_hand = changed_by_hand(self.network)
                self.held = self._governed() - trained - by_hand | self.held & by_hand
            if logger.isEnabledFor(logging.INFO):
                for holder in self.holders:
                    logger.info("%s%s", self.prefix, holder.opening())
        self._change(f"epoch {moment.epoch}", fresh)
        self.host.record("n_trainable", n_trainable(self.network, self._inventory.tensors))
        self.batch = moment.batch
        self.due = self.batch + 1  # in case that others replace something when the epoch begins

    def begin_batch(self, moment: Moment) -> None:
        """Apply the plans before a training batch, and check that something trains."""
        fresh = self._follow()
        self.moment = replace(moment, batch=self.batch)
        self._change(f"batch {self.batch}", fresh)
        has_checked = self._check_something_trains()
        complete_momentum(self._optimizers())
        n_finished = self.batch - self.moment.first_batch(self.moment.epoch)
        self._record.batch(n_finished, self._inventory.tensors)
        if has_checked:
            self._flags_before = None
        self._rates.watch(tensor for engine in self.peers for tensor in _movable(engine.network))
        governed = self._governed()
        tensors = {name: tensor for name, tensor in self._inventory.tensors.items() if name in governed}
        self._released.watch(self.event, tensors, self.held)
        is_settled = has_checked and not self._rates.are_watched
        self.due = self._next_row(self.batch) if is_settled else self.batch + 1

    def begin_update(self) -> None:
        """Look at what is frozen before the update of a training batch."""
        self._residues.begin_update()

    def end_update(self) -> None:
        """Check that an update has left what is frozen, and has used the factors on learning rates."""
        self._residues.end_update(self.host.optimizer, self.prefix)
        self._rates.check(self.host.optimizer)
        self._released.see_gradients()

    def end_epoch(self) -> None:
        """Warn about what was released, got no gradient, and is frozen again, though no callback holds it."""
        if names := self._released.frozen_again():
            self._record.correct(self._inventory.tensors)
            warn(f"{self.prefix}{frozen_again(self.network, names)}")

    def end(self) -> None:
        """Give the modules and optimizers back as they were; if no step was taken, the flags as well."""
        if self in self.peers:
            self.peers.remove(self)
            self._scale_rates()
        self._residues.end()
        self._pins.set([])
        self._remember_moved(self._inventory)
        self._restore_flags()

    def _restore_flags(self) -> None:
        if self._flags_before is not None:
            self._flags_before.restore(self.network)
            self._flags_before = None

    def _next_row(self, batch: int) -> float:
        return min((plan.next_batch(batch) for plan in self.plans), default=math.inf)

    @property
    def plans(self) -> Iterator[Plan]:
        """The plans of all holders."""
        return (plan for holder in self.holders for plan in holder.plans_)

    def _governed(self) -> Held:
        return frozenset().union(*(holder.governed for holder in self.holders))

    def _whole(self, held: Held) -> Held:
        """Leave out the names of parameters that share weights with others which are not held."""
        for names in self._inventory.sharing:
            if not held >= names:
                held -= names
        return held

    def _look(self, before: Inventory | None) -> Inventory:
        self.network: nn.Module = self.host.network
        self.optimizer: object = self.host.optimizer
        return Inventory(self.network, self._optimizers(), before)

    def _optimizers(self) -> list[Optimizer]:
        return [optimizer for _, optimizer in self.host.optimizers()]

    def _follow(self) -> Held:
        """Look at what the host holds now, and return the names whose flags must be set, since they were replaced."""
        network, before = self.network, self._inventory
        self._inventory = now = self._look(before)
        if now.is_same_as(before):
            return frozenset()
        self._remember_moved(before)
        has_other_names = not now.has_names_of(before)
        if network is not self.network:
            self._resolve(known=frozenset())
        elif has_other_names:
            renamed = now.renamed_since(before)
            self._resolve(before.tensors.keys() & now.tensors.keys(), renamed)
            self.held = frozenset(name for name in now.tensors if renamed.get(name, name) in self.held)
        replaced = now.replaced_since(before)
        if replaced or has_other_names or not now.has_modules_of(before):
            self.event = next(_EVENTS)
        if replaced or not now.has_optimizers_of(before):
            self._check_shared()
            self.warn_of_missing()
        return self._whole(replaced & self._governed())

    def _remember_moved(self, before: Inventory) -> None:
        """Let the network know the tensors that are frozen by the names that they have now."""
        remember_moved(self.network, [before.tensors[name] for name in self.held if name in before.tensors])

    def _resolve(self, known: Held, renamed: Mapping[str, str] | None = None) -> None:
        """Let the holders make their plans for a network with other parameters, of which some are known or renamed."""
        keep_frozen_before_us(self.network)
        if self._flags_before is not None:
            self._flags_before = self._flags_before.with_new(self.network, known) if known else Flags.of(self.network)
        for holder in self.holders:
            holder.resolve(self.network, known, renamed)

    def warn_of_missing(self) -> None:
        """Warn about parameters of the plans that no optimizer holds, apart from those that were missing before."""
        will_train = frozenset[str]().union(*(plan.ever_trainable for plan in self.plans))
        optimizers = self._optimizers()
        missing = frozenset(missing_from(self.network, will_train, optimizers))
        if message := in_no_optimizer(self.network, missing - self.driver.missing_, optimizers):
            warn(f"{self.prefix}{message}")
        self.driver.missing_ = missing

    def _hold(self, moment: Moment) -> None:
        """Ask all holders what they hold."""
        held = frozenset[str]()
        for holder in self.holders:
            names = holder.held(moment)
            held |= names
            holder.held_ = self._whole(names)
        self.held = self._whole(held)

    def _apply(self, written: Held) -> None:
        """Set flags, pins and rates for this moment; the flags of what is `written` whatever they were."""
        before = self.held
        self._hold(self.moment)
        if freeze(self.network, self.held, governed=written, tensors=self._inventory.tensors):
            forget_directions(self._optimizers())
        held_by = [(holder, holder.held_) for holder in self.holders]
        places = self._inventory.places
        declared = [(holder, tuple(holder.modes), held) for holder, held in held_by]
        reason = places, places.trainable, declared, self._norms()
        if reason != self._pins_for:
            self._pins_for, self._to_pin = reason, list(modules_to_pin(self.network, held_by))
        has_other_pins = self._pins.set(self._to_pin)
        if has_other_pins:
            check_pins(self.network)
        if has_other_pins or self.held != before:
            self.event = next(_EVENTS)
        self._scale_rates()
        self.host.flags_changed()

    def _norms(self) -> list[bool]:
        """Tell which modules are norms now, where that matters: a first forward pass may make the statistics."""
        if all(len(set(holder.modes)) == 1 for holder in self.holders):
            return []
        return [one is not None and is_normalisation(one) for one in self._inventory.places.modules]

    def _change(self, when: str, fresh: Held) -> None:
        """Apply the plans, and log and record whether that has changed something."""
        before = self.held
        self._apply(written=fresh)
        tensors = self._inventory.tensors
        if self.batch > self.is_provisional:  # there have been updates
            self._residues.watch({name: tensors[name] for name in self.held - before - fresh}, self._optimizers())
        self._record.changed(when, before, self.held, fresh, tensors)

    def _scale_rates(self) -> None:
        """Scale the learning rates as the plans of all peers say; the first of several factors for a tensor counts."""
        scaling = [engine for engine in self.peers if any(plan.scaling for plan in engine.plans)]
        steps = (step for engine in scaling for plan in engine.plans for step in plan.scaling)
        column = scaling_column(steps)
        factors: dict[int, Factor] = {}
        for engine in scaling:
            tensor_of = {name: id(tensor) for name, tensor in engine._inventory.tensors.items()}
            factors = factors_at(engine.plans, engine.moment, tensor_of) | factors
        self._rates.scale(factors, self.host.optimizers(), column)

    def _check_shared(self) -> None:
        """Check that no tensor is governed by two engines, which might not agree on it."""
        tensors = self._inventory.tensors
        for peer in self.peers:
            if peer is not self and (why := shared_by(tensors, self.place, peer._inventory.tensors, peer.place)):
                raise ValueError(why)

    def _check_something_trains(self) -> bool:
        """Raise if no step can be taken; return False if only a peer, whose turn is later, can tell."""
        groups = [group["params"] for optimizer in self._optimizers() for group in optimizer.param_groups]
        if not groups:
            groups = [list(self.host.learnable())]
        if any(tensor.requires_grad for group in groups for tensor in reversed(group)):  # mostly the head trains
            return True
        if later := [peer for peer in self.peers if peer.batch < self.batch]:
            for peer in later:
                peer.due = 0
            return False
        for engine in self.peers:
            engine._restore_flags()
        if self.batch == self.moment.first_batch(self.moment.epoch):
            self.host.drop_epoch()
        holders = ((engine.prefix + type(one).__name__, one) for engine in self.peers for one in engine.holders)
        why = "; ".join(f"{who}: {holder.describe(self.moment)}" for who, holder in holders)
        raise ValueError(
            f"nothing trains at batch {self.batch} (epoch {self.moment.epoch}), so no step can be taken. {why}. "
            "At every step at least one weight that the optimizer holds must be trainable"
        )


def _movable(network: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the trainable tensors that nothing but an update moves."""
    for module in all_modules(network):
        if getattr(module, "max_norm", None) is None:  # by which an embedding writes its weight in each forward pass
            for tensor in own_parameters(module).values():
                if tensor is not None and tensor.requires_grad and not is_lazy(tensor):
                    yield tensor
