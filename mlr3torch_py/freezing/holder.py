"""FreezingCallback: the base of the callbacks that declare what is frozen when; the engine of the net acts on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Self, get_args

from sklearn.base import clone
from torch import nn

from mlr3torch_py.arguments import check_choice, check_text
from mlr3torch_py.freezing.advice import doubts_about_frozen, doubts_about_network
from mlr3torch_py.freezing.compilation import warn_of_recompilation
from mlr3torch_py.freezing.conditions import met_at_latest
from mlr3torch_py.freezing.engine import FreezingEngine
from mlr3torch_py.freezing.host import SkorchHost, check_module
from mlr3torch_py.freezing.loaded import LoadedState
from mlr3torch_py.freezing.roles import Mode
from mlr3torch_py.network.parameters import can_train, frozen_before_us, n_trainable
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.steps import Moment, Step
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of, take_back_epoch
from mlr3torch_py.training.trained import key_of
from mlr3torch_py.warn import warn

__all__ = ["FreezingCallback", "freezing_callbacks"]

_WHICH_MODULE: Final = "the name of a module of the net, such as 'discriminator' for its attribute `discriminator_`"


class FreezingCallback(CallbackSet, ABC):
    """A callback that holds some parameters of a module of the net frozen for some time.

    A subclass makes plans from its arguments. All freezing callbacks that govern the same module of a net share one
    `FreezingEngine`, which the first of them starts and drives. The other modules of the net are left as they are.
    """

    _is_machinery: ClassVar[bool] = True
    own_state: ClassVar[tuple[str, ...]] = ("engine_", "declared_", "plans_", "held_", "missing_", "frozen_before_")
    module: str = "module"  # also of callbacks that earlier versions have pickled

    frozen_mode: Mode
    frozen_norm: Mode | None
    frozen_dropout: Mode | None
    engine_: FreezingEngine[SkorchHost] | None = None
    declared_: tuple[Plan, ...] = ()
    plans_: tuple[Plan, ...] = ()
    loaded_: LoadedState | None = None
    held_: Held = frozenset()
    missing_: Held = frozenset()
    frozen_before_: Held | None = None  # by others, when the last call ended

    @abstractmethod
    def make_plans(self, module: nn.Module) -> tuple[Plan, ...]:
        """Resolve the arguments, which have been checked, against a bare network; raise if they do not fit."""

    @abstractmethod
    def describe(self, moment: Moment) -> str:
        """Describe what is held and until when, for a user whose network does not train at all."""

    @abstractmethod
    def opening(self) -> str:
        """Describe, for the log, what training begins with."""

    @abstractmethod
    def open_ends(self, plans: Sequence[Plan], is_late: Callable[[Step], bool], end: str) -> Iterator[str]:
        """Yield what a forecast says of rows that depend on the training, or come after its last epoch.

        `end` names that epoch, and says why it is the last one.
        """

    @property
    def unprinted(self) -> tuple[str, ...]:
        return (key_of("event_unfreeze", self.module),)  # which the names of what was unfrozen tell, too

    @property
    def numbers(self) -> tuple[str, ...]:
        return (key_of("n_trainable", self.module),)

    @property
    def governed(self) -> Held:
        """The parameters whose flags are set when training begins, whatever they were."""
        return frozenset().union(*(plan.names for plan in self.plans_))

    def held(self, moment: Moment) -> Held:
        """Return the parameters that the callback holds frozen at a moment."""
        return frozenset().union(*(plan.held(moment) for plan in self.plans_))

    @property
    def modes(self) -> tuple[Mode, Mode]:
        """The modes of frozen normalisation layers, and of all other modules in frozen parts."""
        norm, other = self.frozen_norm, self.frozen_dropout
        return norm or self.frozen_mode, other or self.frozen_mode

    def check_common(self) -> None:
        """Check the parameters that all freezing callbacks have."""
        check_text("module", self.module, _WHICH_MODULE)
        for argument, known in (
            ("frozen_mode", get_args(Mode)),
            ("frozen_norm", (None, *get_args(Mode))),
            ("frozen_dropout", (None, *get_args(Mode))),
        ):
            remedy = "give 'train', or 'eval' to pin these modules in eval mode while they are frozen" + (
                ", or None to follow `frozen_mode`" if None in known else ""
            )
            check_choice(argument, getattr(self, argument), known, remedy)

    def network_of(self, net: Net) -> nn.Module:
        """Return the module of a net that the callback governs, wrapped or not."""
        network: nn.Module = getattr(net, f"{self.module}_")
        return network

    def plans_for(self, network: nn.Module) -> tuple[Plan, ...]:
        """Make the plans, without what can never be trained, such as tensors of integers."""
        module = bare(network)
        fixed = frozenset(name for name, tensor in named_parameters(module).items() if not can_train(tensor))
        return tuple(plan.without(fixed) for plan in self.make_plans(module))

    def clone_to_plan(self) -> Self:
        """Return a clone, with a loaded state that the next fit will adopt."""
        cloned: Self = clone(self)
        if self.loaded_ is not None and self.loaded_.epoch is None:
            cloned.loaded_ = self.loaded_
        return cloned

    def plan_from_start(self, network: nn.Module) -> tuple[Plan, ...]:
        """Make the plans of a fit from scratch, with conditions met at their latest; return them as declared."""
        declared = self.plans_for(network)
        loaded = None if self.loaded_ is None else (1, frozenset(self.loaded_.names))
        self.plans_ = tuple(plan.resolved(met_at_latest(plan), loaded) for plan in declared)
        return declared

    def resolve(self, network: nn.Module, known: Held = frozenset(), renamed: Mapping[str, str] | None = None) -> None:
        """Make the plans for a network; for names that are `known` or `renamed`, those from before still hold.

        `renamed` has the name before, by the name now.
        """
        names, renamed = list(named_parameters(network)), renamed or {}
        before = tuple(plan.renamed(renamed, names) for plan in self.declared_) if known or renamed else ()
        known = known | renamed.keys()
        if before and known >= set(names):
            self.declared_ = before
        else:
            self.declared_ = self.plans_for(network)
            if len(before) == len(self.declared_):
                pairs = zip(self.declared_, before, strict=True)
                self.declared_ = tuple(plan.keeping(old, known) for plan, old in pairs)
        self.plans_ = self.declared_
        if self.engine_ is not None:
            self.recall(self.engine_.host.net)

    def recall(self, net: Net) -> None:
        """Complete the plans by what the history says of earlier epochs."""

    def decide(self, net: Net) -> None:
        """Complete the plans, when an epoch begins, by what depends on the training so far."""

    def before_batch(self, net: Net, moment: Moment) -> None:
        """Act before a batch at which the engine looks at the plans."""

    def plans_by(self, net: Net) -> tuple[Plan, ...]:
        """Return the plans, completed by what the history says."""
        return self.plans_

    def settled_since(self, net: Net) -> float:
        moment = moment_of(net.history)
        return max((plan.settled_since(moment) for plan in self.plans_by(net)), default=0)

    def doubts(self, network: nn.Module, plans: Sequence[Plan]) -> Iterator[str]:
        """Yield what is probably a mistake in the plans for a network, as a message says it."""
        return iter(())

    def advise(self, net: Net) -> None:
        """Warn about what is probably a mistake, before anything is frozen."""
        for doubt in self.doubts(bare(self.network_of(net)), self.declared_):
            warn(doubt)

    def initialize(self) -> FreezingCallback:
        """Forget the engine; the next step starts one with the current parameters."""
        super().initialize()
        self._drop_engine()
        return self

    def renew(self) -> None:
        """Undo what a subclass has set; `own_state` is set when training begins, or used up then."""
        kept = {name: value for name, value in vars(self).items() if name in self.own_state}
        super().renew()
        vars(self).update(kept)

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        self._drop_engine()
        return False

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if not self._has_engine_of(net):
            self._start(net)

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        missed_train_begin = not self._has_engine_of(net)
        engine = self._start_late(net) if missed_train_begin else self.engine_
        if engine is None or not (missed_train_begin or engine.driver is self):
            return
        callbacks = freezing_callbacks(net, self.module)
        try:
            for callback in callbacks:
                callback.decide(net)
            if engine.is_provisional:
                plans_of = {peer.host.module: [*peer.plans] for peer in engine.peers}
                warn_of_recompilation(net, plans_of, self.module, dataset_train, dataset_valid)
            engine.begin_epoch(moment_of(net.history))
        except Exception:
            take_back_epoch(net)
            raise

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            engine = self.engine_
            if (
                engine is None
                or engine.network is not getattr(net, engine.host.attribute, None)
                or engine.optimizer is not getattr(net, engine.host.optimizer_attribute, None)
            ):
                engine = self._engine_now(net)
            if engine.driver is self:
                engine.batch += 1
            if engine.batch >= engine.due or not engine.seems_current:
                has_begun = engine.moment.epoch == len(net.history)
                moment = replace(engine.moment if has_begun else moment_of(net.history), batch=engine.batch)
                for callback in freezing_callbacks(net, self.module):
                    callback.before_batch(net, moment)
                engine.begin_batch(moment)
                self._record_trainable(net)  # of an epoch that may be interrupted

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.engine_ is None or self.engine_.driver is self:
            if self.engine_ is not None:
                self.engine_.end_epoch()
            self._record_trainable(net)

    def _record_trainable(self, net: Net) -> None:
        net.history.record(key_of("n_trainable", self.module), n_trainable(self.network_of(net)))

    def before_update(self, net: Net) -> None:
        if self.engine_ is not None and self.engine_.driver is self:
            self.engine_.begin_update()

    def after_update(self, net: Net) -> None:
        if self.engine_ is not None and self.engine_.driver is self:
            self.engine_.end_update()

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._drop_engine()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"engine_": None}

    def _has_engine_of(self, net: Net) -> bool:
        """Whether the engine is that of a net, with all freezing callbacks that the net has now."""
        engine = self.engine_
        return engine is not None and engine.host.net is net and engine.holders == freezing_callbacks(net, self.module)

    def _drop_engine(self) -> None:
        if self.engine_ is not None:
            self.engine_.end()
            self.frozen_before_ = frozen_before_us(self.engine_.network)
            self.engine_ = None

    def _start(self, net: Net) -> FreezingEngine[SkorchHost]:
        """Resolve the plans of all freezing callbacks of a module, and start the engine that they share."""
        check_module(net, self.module, type(self).__name__)
        callbacks, moment = freezing_callbacks(net, self.module), moment_of(net.history)
        for callback in callbacks:
            callback._drop_engine()
        others = (callback.engine_ for callback in freezing_callbacks(net))
        peers = next((other.peers for other in others if other is not None and other.host.net is net), [])
        engine = FreezingEngine(
            SkorchHost(net, self.ctx, self.module), callbacks, moment, peers=peers, place=f"{self.module}_"
        )
        for callback in callbacks:
            callback.engine_ = engine
        try:
            for callback in callbacks:
                callback.resolve(engine.network)
            for callback in callbacks:
                callback.advise(net)
            doubts: Iterable[str] = ()
            if moment.epoch == 0:
                doubts = doubts_about_network(engine.network, [*engine.plans])
                engine.driver.missing_ = frozenset()
            elif (known := callbacks[0].frozen_before_) is not None:
                doubts = doubts_about_frozen(engine.network, engine.plans, known)
            for doubt in doubts:
                warn(f"{engine.prefix}{doubt}")
            engine.warn_of_missing()
            engine.begin()
        except Exception:
            for callback in callbacks:
                callback._drop_engine()
            raise
        return engine

    def _engine_now(self, net: Net) -> FreezingEngine[SkorchHost]:
        """Return the engine for a net that has none yet, or another module or optimizer than before."""
        if self.engine_ is not None and self.engine_.host.net is net:
            self.engine_.due = 0
            return self.engine_
        engine = self._start_late(net)
        engine.batch, engine.due = engine.batch + (engine.driver is not self), 0
        return engine

    def _start_late(self, net: Net) -> FreezingEngine[SkorchHost]:
        """Start the engine for a callback that missed ``on_train_begin``."""
        for callback in freezing_callbacks(net, self.module):
            callback.require_params()
        return self._start(net)


def freezing_callbacks(net: Net, module: str | None = None) -> list[FreezingCallback]:
    """List the freezing callbacks of an initialized net, or those that govern one of its modules."""
    callbacks = [callback for _, callback in net.callbacks_ if isinstance(callback, FreezingCallback)]
    return [callback for callback in callbacks if module in (None, callback.module)]
