"""FreezingCallback: the base of the callbacks that declare what is frozen when; the engine of the net acts on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from mlr3torch_py.freezing.compilation import warn_of_recompilation
from mlr3torch_py.freezing.engine import FreezingEngine
from mlr3torch_py.freezing.host import SkorchHost
from mlr3torch_py.network.evaluation import pin_in_eval_mode
from mlr3torch_py.network.parameters import n_trainable
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Held, Moment, Plan
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of, take_back_epoch

__all__ = ["FreezingCallback", "freezing_callbacks"]


class FreezingCallback(CallbackSet, ABC):
    """A callback that holds some parameters of ``net.module_`` frozen for some time.

    A subclass makes plans from its arguments. All freezing callbacks of a net share one `FreezingEngine`, which the
    first of them starts and drives. Only ``module_`` is governed: further modules of a net, and a criterion with
    weights, are left as they are.
    """

    frozen_norm: str
    frozen_dropout: str
    engine_: FreezingEngine[SkorchHost] | None = None
    plans_: tuple[Plan, ...] = ()
    held_: Held = frozenset()

    @abstractmethod
    def make_plans(self, module: nn.Module) -> tuple[Plan, ...]:
        """Resolve the arguments, which have been checked, against a bare network; raise if they do not fit."""

    @abstractmethod
    def describe(self, moment: Moment) -> str:
        """Describe what is held and until when, for a user whose network does not train at all."""

    @abstractmethod
    def opening(self, moment: Moment) -> str:
        """Describe, for the log, the state at a moment."""

    @property
    def governed(self) -> Held:
        """The parameters whose flags are set when training begins, whatever they were."""
        return frozenset().union(*(plan.names for plan in self.plans_))

    def held(self, moment: Moment) -> Held:
        """Return the parameters that the callback holds frozen at a moment."""
        return frozenset().union(*(plan.held(moment) for plan in self.plans_))

    def check_modes(self) -> None:
        """Check the parameters that all freezing callbacks have."""
        for argument in ("frozen_norm", "frozen_dropout"):
            value = getattr(self, argument)
            if value not in ("train", "eval"):
                raise ValueError(
                    f"`{argument}` is {value!r}; give 'train', or 'eval' to pin these layers in eval mode while they "
                    "are frozen"
                )

    def recall(self, net: Net) -> None:
        """Complete the plans by what the history says of earlier epochs."""

    def decide(self, net: Net) -> None:
        """Complete the plans, when an epoch begins, by what depends on the training so far."""

    def advise(self, net: Net) -> None:
        """Warn about plans that are probably mistakes, before anything is frozen."""

    def initialize(self) -> FreezingCallback:
        """Forget the engine; the next step starts one with the current parameters."""
        self._drop_engine()
        return self

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        self._drop_engine()
        return False

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if not self._has_engine_of(net):
            self._start(net)

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        missed_train_begin = not self._has_engine_of(net)
        engine = self._start_late(net) if missed_train_begin else self.engine_
        if engine is None or not (missed_train_begin or engine.holders[0] is self):
            return
        callbacks = freezing_callbacks(net)
        try:
            for callback in callbacks:
                callback.decide(net)
        except ValueError:
            take_back_epoch(net)
            raise
        if engine.is_provisional:
            plans = [plan for callback in callbacks for plan in callback.plans_]
            warn_of_recompilation(net, plans, dataset_train, dataset_valid)
        engine.begin_epoch(moment_of(net.history))

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            engine = self.engine_
            if engine is None or engine.host.net is not net:
                engine = self._start_late(net)
                engine.batch, engine.due = engine.batch + 1, 0
            elif engine.holders[0] is self:
                engine.batch += 1
            if engine.batch >= engine.due:
                has_begun = engine.moment.epoch == len(net.history)
                engine.begin_batch(engine.moment if has_begun else moment_of(net.history))

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.engine_ is None or self.engine_.holders[0] is self:
            net.history.record("n_trainable", n_trainable(net.module_))

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Stage ``end``."""

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._drop_engine()
        if hasattr(net, "module_"):
            pin_in_eval_mode(net.module_, [])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"engine_": None}

    def _has_engine_of(self, net: Net) -> bool:
        return self.engine_ is not None and self.engine_.host.net is net

    def _drop_engine(self) -> None:
        if self.engine_ is not None:
            self.engine_.end()
            self.engine_ = None

    def _start(self, net: Net) -> FreezingEngine[SkorchHost]:
        """Resolve the plans of all freezing callbacks of a net, and start the engine that they share."""
        if not hasattr(net, "module_"):
            raise TypeError(
                f"{type(self).__name__} governs the parameters of `module_`, which {type(net).__name__} lacks"
            )
        host, callbacks = SkorchHost(net, self.ctx), freezing_callbacks(net)
        for callback in callbacks:
            callback.plans_ = callback.make_plans(bare(net.module_))
            callback.recall(net)
        for callback in callbacks:
            callback.advise(net)
        engine = FreezingEngine(host, callbacks, moment_of(net.history))
        for callback in callbacks:
            callback._drop_engine()
            callback.engine_ = engine
        engine.begin()
        return engine

    def _start_late(self, net: Net) -> FreezingEngine[SkorchHost]:
        """Start the engine for a callback that missed ``on_train_begin``."""
        for callback in freezing_callbacks(net):
            callback.require_params()
        return self._start(net)


def freezing_callbacks(net: Net) -> list[FreezingCallback]:
    """List the freezing callbacks of an initialized net."""
    return [callback for _, callback in net.callbacks_ if isinstance(callback, FreezingCallback)]
