"""The one engine that decides what is frozen: it asks every freezing callback of a net what it holds."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mlr3torch_py.freezing.compilation import warn_of_recompilation
from mlr3torch_py.freezing.data_parallel import check_wrappers, reduce_what_trains
from mlr3torch_py.freezing.rates import RateFactors
from mlr3torch_py.names import listed
from mlr3torch_py.network.evaluation import DROPOUT, NORMALISATION, frozen_layers, hold_in_evaluation
from mlr3torch_py.network.parameters import Flags, freeze, n_trainable
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.schedule.plan import Moment, Plan
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of, take_back_epoch

__all__ = ["FreezingCallback", "freezing_callbacks", "layers_to_hold"]

logger = logging.getLogger("mlr3torch_py")


class FreezingCallback(CallbackSet, ABC):
    """A callback that holds some parameters of ``net.module_`` frozen for some time.

    A subclass makes plans from its arguments for the network. This class keeps the clock, which it reads off the
    history of the net, and applies the plans of all freezing callbacks of the net together: a parameter trains when
    none of them holds it. Applying twice changes nothing, so it is done when training begins, at every epoch, and
    before a batch only if something is due.

    Only ``module_`` is governed. Further modules of a net, and a criterion with weights, are left as they are.
    """

    frozen_norm: str
    frozen_dropout: str
    net_: Any = None
    plans_: tuple[Plan, ...] = ()
    moment_ = Moment()
    held_: Set[str] = frozenset()
    batch_ = 0
    due_: float = 0
    flags_before_: Flags | None = None
    rates_: tuple[RateFactors, ...] = ()

    @abstractmethod
    def make_plans(self, module: nn.Module) -> tuple[Plan, ...]:
        """Work out what the arguments, which have been checked, mean for a bare network; raise if they do not fit."""

    @abstractmethod
    def describe(self) -> str:
        """Say what is held and until when, for a user whose network does not train at all."""

    @property
    def governed(self) -> Set[str]:
        """The parameters whose flags the callback sets when training begins, whatever they were."""
        return frozenset().union(*(plan.names for plan in self.plans_))

    def held(self, moment: Moment) -> Set[str]:
        """Return the parameters that the callback holds frozen at a moment."""
        return frozenset().union(*(plan.held(moment) for plan in self.plans_))

    @abstractmethod
    def opening(self, moment: Moment) -> str:
        """Say, for the log, what the callback starts with at a moment."""

    def check_modes(self) -> None:
        """Check the two parameters that all freezing callbacks have."""
        for argument in ("frozen_norm", "frozen_dropout"):
            value = getattr(self, argument)
            if value not in ("train", "eval"):
                raise ValueError(
                    f"`{argument}` is {value!r}; give 'train', or 'eval' to hold these layers in evaluation while they "
                    "are frozen"
                )

    def recall(self, net: Any) -> None:
        """Read from the history what was decided in earlier epochs."""

    def decide(self, net: Any) -> None:
        """Decide, when an epoch begins, on what depends on the training so far."""

    def advise(self, net: Any) -> None:
        """Warn of what in the plans is hardly meant; called before anything is frozen."""

    def initialize(self) -> FreezingCallback:
        """Attach to the net anew before the next step, with the parameters as they are then."""
        self.net_ = None
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.attach(net)

    def attach(self, net: Any) -> None:
        """Work out the plans of all freezing callbacks of a net, and set the flags."""
        if not hasattr(net, "module_"):
            raise TypeError(
                f"{type(self).__name__} governs the parameters of `module_`, which {type(net).__name__} lacks"
            )
        check_wrappers(net)
        callbacks = freezing_callbacks(net)
        for callback in callbacks:
            callback.plans_ = callback.make_plans(bare(net.module_))
            callback.recall(net)
        self.advise(net)
        self.net_, self.flags_before_ = net, Flags.of(net.module_)
        self._apply(net, moment_of(net.history), governed=frozenset().union(*(cb.governed for cb in callbacks)))
        if callbacks[0] is self:
            self._scale_rates(net)
        self.batch_, self.due_ = self.moment_.batch, 0

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._attend(net)
        try:
            self.decide(net)
        except ValueError:
            take_back_epoch(net)
            raise
        moment = moment_of(net.history)
        first_of_call = self.flags_before_ is not None
        if first_of_call:  # a history may have been loaded since training began
            since = replace(moment, epoch=moment.epoch - 1)
            self.held_ = self.held(since)
            if logger.isEnabledFor(logging.INFO):
                logger.info(self.opening(since))
            callbacks = freezing_callbacks(net)
            if callbacks[0] is self:
                plans = [plan for callback in callbacks for plan in callback.plans_]
                warn_of_recompilation(net, plans, dataset_train, dataset_valid)
        is_new = self._change(net, moment, when=f"epoch {moment.epoch}") or first_of_call
        net.history.record("n_trainable", n_trainable(net.module_))
        self.batch_ = moment.batch
        self.due_ = self.batch_ + 1 if is_new else self._next_batch(self.batch_)

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            self.batch_ = number = self.batch_ + 1
            if number >= self.due_ or net is not self.net_:
                self._event(net)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        net.history.record("n_trainable", n_trainable(net.module_))

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.net_ = None

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        self._forget_rates()
        if hasattr(net, "module_"):
            hold_in_evaluation(net.module_, [])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"net_": None, "rates_": ()}

    def _scale_rates(self, net: Any) -> None:
        """Let the optimizers of a net move single parameters by other rates."""
        self._forget_rates()
        plans = (plan for callback in freezing_callbacks(net) for plan in callback.plans_)
        factors = [item for plan in plans for item in plan.lr_factors().items()]
        if not factors:
            return
        tensors = named_parameters(net.module_)
        # Of several factors for a tensor the first counts.
        factor_of = {id(tensors[name]): factor for name, factor in reversed(factors)}

        def record(name: str, rate: float) -> None:
            if self.ctx is not None and self.ctx.batch is not None:  # somebody may take a step between batches
                net.history.record_batch(name, rate)

        if any(factor != 1 for factor in factor_of.values()):
            self.rates_ = tuple(
                RateFactors(optimizer, factor_of, record, "lr" if name == "optimizer" else f"lr_{name}")
                for name, optimizer in _optimizers(net)
            )

    def _forget_rates(self) -> None:
        for factors in self.rates_:
            factors.remove()
        self.rates_ = ()

    def _attend(self, net: Any) -> None:
        """Begin with this net if there was no begin, and refuse to serve two at once."""
        if self.net_ is None:
            for callback in freezing_callbacks(net):
                callback.require_params()
            self.attach(net)
        if net is not self.net_:
            raise RuntimeError(
                f"one {type(self).__name__} is used by two nets at once; give each net its own, "
                "for instance sklearn.base.clone(callback)"
            )

    def _event(self, net: Any) -> None:
        begins_late = self.net_ is None
        self._attend(net)
        self.batch_ += begins_late
        first_of_call = self.flags_before_ is not None  # what was set when it began is that of the batch before
        if first_of_call or self._next_batch(self.batch_ - 1) == self.batch_:
            has_begun = self.moment_.epoch == len(net.history)
            moment = replace(self.moment_ if has_begun else moment_of(net.history), batch=self.batch_)
            self._change(net, moment, when=f"batch {self.batch_}")
        self._check_something_trains(net)
        self.due_, self.flags_before_ = self._next_batch(self.batch_), None

    def _next_batch(self, batch: int) -> float:
        return min((plan.next_batch(batch) for plan in self.plans_), default=math.inf)

    def _apply(self, net: Any, moment: Moment, governed: Set[str] = frozenset()) -> None:
        self.moment_ = moment
        held_by = [(callback, callback.held(moment)) for callback in freezing_callbacks(net)]
        self.held_ = next(names for callback, names in held_by if callback is self)
        if freeze(net.module_, frozenset().union(*(names for _, names in held_by)), governed=governed):
            _forget_directions(net)
        holds_layers = any("eval" in (callback.frozen_norm, callback.frozen_dropout) for callback, _ in held_by)
        if holds_layers or governed:  # when training begins, what a copied network still holds is let go of
            hold_in_evaluation(net.module_, layers_to_hold(net.module_, held_by))
        reduce_what_trains(net)

    def _change(self, net: Any, moment: Moment, *, when: str) -> bool:
        before = self.held_
        self._apply(net, moment)
        changed = before != self.held_
        if changed and logger.isEnabledFor(logging.INFO):
            for doing, names in (("unfreezing", before - self.held_), ("freezing", self.held_ - before)):
                if names:
                    logger.info("%s at %s: %s", doing, when, listed(self._in_order(names)))
        net.history.record("event_unfreeze", changed or net.history[-1].get("event_unfreeze", False))
        return changed

    def _in_order(self, names: Set[str]) -> Iterator[str]:
        order = dict.fromkeys(name for plan in self.plans_ for name in plan.names)
        return (name for name in order if name in names)

    def _check_something_trains(self, net: Any) -> None:
        groups = [group["params"] for _, optimizer in _optimizers(net) for group in optimizer.param_groups]
        if not groups:  # skorch knows optimizers of torch only
            groups = [[tensor for _, tensor in net.get_all_learnable_params()]]
        if any(tensor.requires_grad for group in groups for tensor in reversed(group)):  # mostly the head trains
            return
        if self.flags_before_ is not None:
            self.flags_before_.restore(net.module_)
        if self.batch_ == self.moment_.first_batch(self.moment_.epoch):
            take_back_epoch(net)
        why = "; ".join(f"{type(callback).__name__}: {callback.describe()}" for callback in freezing_callbacks(net))
        raise ValueError(
            f"nothing trains at batch {self.batch_} (epoch {self.moment_.epoch}), so the step cannot be taken. {why}. "
            "At every step at least one weight that the optimizer holds must be trainable"
        )


def layers_to_hold(module: nn.Module, callbacks: Iterable[tuple[FreezingCallback, Set[str]]]) -> Iterator[nn.Module]:
    """Yield the layers that callbacks want in evaluation, given what each of them holds frozen."""
    kinds_of_option = {"frozen_norm": NORMALISATION, "frozen_dropout": DROPOUT}
    for callback, held in callbacks:
        for option, kinds in kinds_of_option.items():
            if getattr(callback, option) == "eval":
                yield from frozen_layers(module, held, kinds).values()


def _forget_directions(net: Any) -> None:
    """Make LBFGS begin anew: from the gradients that it remembers it would go on moving what is frozen."""
    for _, optimizer in _optimizers(net):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()


def _optimizers(net: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optimizers of a net, without the wrapper of accelerate."""
    for name in net._optimizers:
        optimizer = getattr(net, f"{name}_")
        yield name, getattr(optimizer, "optimizer", optimizer)


def freezing_callbacks(net: Any) -> list[FreezingCallback]:
    """List the freezing callbacks of an initialized net."""
    return [callback for _, callback in net.callbacks_ if isinstance(callback, FreezingCallback)]
