"""CallbackSetUnfreeze: train some weights from the start and unfreeze others by a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mlr3torch_py.arguments import check_flag, check_names
from mlr3torch_py.freezing.advice import advise_on_epochs, doubts_about
from mlr3torch_py.freezing.conditions import Waiting, conditions_of, met_by_now
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.freezing.loaded import LoadedState
from mlr3torch_py.freezing.memory import forget_directions
from mlr3torch_py.freezing.phases import has_best_weights, restore_best_weights
from mlr3torch_py.freezing.roles import Mode
from mlr3torch_py.names import listed
from mlr3torch_py.network.unwrap import named_parameters
from mlr3torch_py.patterns import summarized
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plan import Held, Plan, in_order
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.steps import Moment, Step
from mlr3torch_py.schedule.table import Table, Unit, read_table
from mlr3torch_py.schedule.value import Schedule, check_schedule
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.check import check_select
from mlr3torch_py.training.callback_set import REQUIRED
from mlr3torch_py.training.clock import moment_of
from mlr3torch_py.training.kept_weights import KeptWeights
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.scoring import warn_of_unknown_direction
from mlr3torch_py.values import shown

__all__ = ["CallbackSetUnfreeze"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


class CallbackSetUnfreeze(FreezingCallback):
    """Train some weights from the start and unfreeze others after some epochs or batches.

    When training begins, the weights that `starting_weights` selects are trainable and all others are frozen. A row
    of `unfreeze` makes its weights trainable at the beginning of its epoch or before its batch.

    Parameters
    ----------
    starting_weights : Select
        The weights that are trainable from the start.
    unfreeze : pandas.DataFrame, optional
        The schedule: a column `weights` of selectors and exactly one column `epoch` or `batch` of whole numbers from 1.
        More columns are optional: `action` ("unfreeze" or "freeze"); `when` (a `Plateau` in rows without a time);
        `lr_mult` (a factor on the learning rate of the weights); `lr_mult_from` ("start", the default: the factor holds
        from the first step on, and for each weight the first row in the table counts; or "row": it holds from the time
        of the row on, in place of an earlier one); and `warmup` (the number of batches in which the learning rate of
        what the row has made trainable rises: with 4, its first batch has a quarter of the rate, the fourth the whole).
        A mapping of columns, a list of records, and a list of several tables are accepted as well. Without a table
        nothing is unfrozen.
    schedule : Schedule, optional
        A ready-made schedule in place of both, such as ``gradual_unfreezing(every=2)``. It is resolved for the network
        when training begins.
    frozen_mode : {"train", "eval"}
        With "eval", every module in a part of the network that is frozen as a whole, by this callback, is pinned in
        eval mode while it is: normalisation keeps its running statistics, as in Keras, dropout and stochastic depth do
        nothing. A module without parameters goes with what runs before it: in an ``nn.Sequential`` with the nearest
        earlier element that has parameters, and otherwise with the nearest module around it that has some. With
        "train", all of them stay in the mode of the network, as in R.
    frozen_norm, frozen_dropout : {"train", "eval"}, optional
        The mode of normalisation layers with running statistics, and of all other modules, in parts that are frozen
        as a whole; as `frozen_mode` if missing.
    module : str
        The module of the net that is governed, by the name of its attribute without the underscore: "discriminator" for
        ``discriminator_``. A criterion with weights may be named too. The other modules of the net stay as they are.
    restore_best_between : bool
        Whether to restore, before a row takes effect, the weights of the best epoch since the row before: those of all
        modules of the net, and of its criteria. The log says so.
    monitor : str
        The score in a row of ``net.history`` by which epochs are compared.
    lower_is_better : bool, optional
        Whether a smaller score is better; by default the callback of the net that records it is asked, see
        `CallbackSetEarlyStopping`.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong or a name is not in the network; before a step at which nothing
        that the optimizer holds would be trainable; and after an update in which `lr_mult` or `warmup` had no effect.

    Warns
    -----
    UserWarning
        When training begins, for a row at time 0, one that matches nothing, in whole or in part, one that changes
        nothing, and one that selects only some of the parameters that share weights. Also for parameters that will be
        trained although they required no gradient before, for those that no optimizer holds, and for frozen embeddings
        with `max_norm`, whose forward pass changes them. Before a row takes effect, if the best weights of the
        phase before were not kept, as after a history was loaded without the state of the callback. After a row has
        frozen something, if the optimizer still moves it, as Lookahead does.

    See Also
    --------
    select_name : Select parameters by their names.
    gradual_unfreezing : Make a schedule.
    t_clbk : Make this callback by its key, ``t_clbk("unfreeze")``.

    Notes
    -----
    Ported from ``CallbackSetUnfreeze`` of R's mlr3torch. Epochs and training batches are counted from 1 over the whole
    life of a net, so a schedule continues across ``partial_fit``, ``warm_start`` and a loaded history; validation
    batches do not count. Parameters that share weights are trainable as long as one of them is. What is replaced while
    a net trains, such as a parameter, a module or an optimizer, is governed from the next batch on.

    With factors, the history of every batch with an update has the rate of every param group, as ``lr_0`` for the first
    group, ``lr_0_x0.1`` for its part with the factor 0.1, and ``lr_0_warmup50_from13`` for what is in a warm-up of 50
    batches since batch 13; the param groups themselves stay as they are. Factors are worked out from the history
    alone, so a training that is resumed in the middle of a warm-up continues it. Every row of the history gets
    `n_trainable`, the number of trainable weights of ``module_`` at the end of the epoch, and `event_unfrozen`, the
    names of what was unfrozen (+) and frozen (-) in it; `trained_when` makes a table of a history. For another module
    the keys end in its name: `n_trainable_discriminator`, `event_unfrozen_discriminator`.

    Callbacks that govern the same module share one decision, and those of several modules work side by side, also
    where one optimizer holds the weights of both.

    With `restore_best_between`, a phase lasts from one row that takes effect to the next. Its epochs are those that end
    in it; a phase without an evaluated epoch restores nothing. What the optimizer remembers stays, but for LBFGS.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, select_invert, select_name, trainable_names
    >>> X, y = load_iris(return_X_y=True)
    >>> unfreeze = CallbackSetUnfreeze(
    ...     starting_weights=select_invert(select_name(["0.weight", "3.weight", "6.weight", "6.bias"])),
    ...     unfreeze=pd.DataFrame({
    ...         "epoch": [2, 5],
    ...         "weights": [select_name("0.weight"), select_name(["3.weight", "6.weight"])],
    ...     }),
    ... )
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     module__neurons=(1, 1, 1),
    ...     max_epochs=6, batch_size=150, train_split=None, callbacks=[unfreeze], verbose=0,
    ... )
    >>> net = net.fit(X.astype("float32"), y)
    >>> trainable_names(net.module_)
    ['0.weight', '0.bias', '3.weight', '3.bias', '6.weight', '9.weight', '9.bias']
    >>> print(unfreeze)
    <CallbackSetUnfreeze>
    * Stages: begin, epoch_begin, batch_begin, epoch_end, end, exit
    """

    label = "Unfreeze"
    own_state = (*FreezingCallback.own_state, "loaded_", "best_")
    best_: KeptWeights | None = None

    def __init__(
        self,
        starting_weights: Select = REQUIRED,
        unfreeze: Table | None = None,
        *,
        schedule: Schedule | None = None,
        frozen_mode: Mode = "train",
        frozen_norm: Mode | None = None,
        frozen_dropout: Mode | None = None,
        module: str = "module",
        restore_best_between: bool = False,
        monitor: str = "valid_loss",
        lower_is_better: bool | None = None,
    ) -> None:
        self.starting_weights = starting_weights
        self.unfreeze = unfreeze
        self.schedule = schedule
        self.frozen_mode: Mode = frozen_mode
        self.frozen_norm: Mode | None = frozen_norm
        self.frozen_dropout: Mode | None = frozen_dropout
        self.module = module
        self.restore_best_between = restore_best_between
        self.monitor = monitor
        self.lower_is_better = lower_is_better

    def check_params(self) -> None:
        self.check_common()
        check_flag("restore_best_between", self.restore_best_between)
        self._rule()
        beside = {"starting_weights": REQUIRED, "unfreeze": None}
        given = [name for name, unset in beside.items() if getattr(self, name) is not unset]
        check_schedule(self.schedule, self.starting_weights, given)
        if isinstance(self.unfreeze, Schedule):
            raise TypeError(
                f"`unfreeze` is {self.unfreeze!r}; give a schedule as `schedule`, without `starting_weights`"
            )
        if self.starting_weights is not REQUIRED:
            check_select("starting_weights", self.starting_weights)
        read_table(self.unfreeze)

    def is_replaced(self, parameter: str) -> bool:
        return parameter == "starting_weights" and self.schedule is not None

    def resolve(self, network: nn.Module, known: Held = frozenset(), renamed: Mapping[str, str] | None = None) -> None:
        if renamed and self.loaded_ is not None:
            self.loaded_ = self.loaded_.renamed(renamed)
        super().resolve(network, known, renamed)

    def make_plans(self, module: nn.Module) -> tuple[Plan]:
        names = named_parameters(module)
        if self.loaded_ is not None:
            self.loaded_.check(names)
        starting_weights, unfreeze = self.starting_weights, self.unfreeze
        if self.schedule is not None:
            starting_weights, unfreeze = self.schedule.resolve(module).values()
        return (Plan.resolve(starting_weights, read_table(unfreeze), names, module),)

    def opening(self) -> str:
        (plan,) = self.plans_
        trainable = summarized(self.governed - self.held_, plan.names, most=10)
        return f"training the following weights at the start: {trainable or 'none'}"

    def describe(self, moment: Moment) -> str:
        (plan,) = self.plans_
        rows = [step.row for step in plan.pending(moment)]
        froze = [act.step.row for act in plan.acts(moment) if act.frozen]
        name = "starting_weights" if self.schedule is None else "schedule"
        return (
            f"`{name}` is {getattr(self, name)!r} and selects "
            f"{summarized(plan.starting, plan.names, most=10) or 'nothing'}; "
            f"rows of `unfreeze` that froze something: {listed(froze, most=3) or 'none'}; "
            f"rows of `unfreeze` still pending: {listed(rows, most=3) or 'none'}; "
            f"parameters of the network: {listed(plan.names)}"
        )

    def open_ends(self, plans: Sequence[Plan], is_late: Callable[[Step], bool], end: str) -> Iterator[str]:
        for step in (step for plan in plans for step in plan.steps):
            row = step.row
            if isinstance(row.time, Plateau):
                yield f"`unfreeze`: {row} depends on the training; here it acts at its `no_later_than`, or never"
            elif is_late(step):
                what = "has no effect, since epoch"
                if row.lr_mult is not None and row.lr_mult_from == "start":
                    what = "has no effect but its `lr_mult`, which holds from the start, since epoch"
                yield f"`unfreeze`: {row} {what} {end}"

    def recall(self, net: Net) -> None:
        if self.loaded_ is not None and self.loaded_.is_adopted_by(net) and len(net.history) == 0:
            self.loaded_ = None
        if len(net.history) == 0:
            self.best_ = None
        self.plans_ = self.plans_by(net)

    def decide(self, net: Net) -> None:
        epoch = len(net.history)
        if self.loaded_ is not None and self.loaded_.epoch is None:
            self.loaded_.check(named_parameters(self.network_of(net)))
            self.loaded_ = self.loaded_.adopted_by(net)
        met = before = self._met_before(net)
        if conditions := self._conditions():
            for monitor in self.monitors if epoch > 1 else ():
                self.read_score(net, monitor, epoch - 1)
            met = from_main_process(net, met_by_now(net, conditions, met))
            waiting, name = self._waiting(net)
            waiting.record(net, name, met, met.keys() - before.keys())
        self.plans_ = self._plans_with(net, met)
        self._restore_best(net, moment_of(net.history), "epoch")

    def before_batch(self, net: Net, moment: Moment) -> None:
        self._restore_best(net, moment, "batch")

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        super().on_epoch_end(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        self._keep_best(net)

    def finish_epoch(self, net: Net) -> None:
        if self.best_ is None or not self.best_.is_of_last_epoch(net):
            self._keep_best(net)

    def find_late_score(self, net: Net) -> None:
        if self.awaits_score_:
            self._keep_best(net)

    @property
    def monitors(self) -> tuple[str, ...]:
        times = (row.time for row in read_table(self.unfreeze))
        monitors = [time.monitor for time in times if isinstance(time, Plateau)]
        return tuple(dict.fromkeys([*monitors, self.monitor] if self.restore_best_between else monitors))

    def plans_by(self, net: Net) -> tuple[Plan, ...]:
        return self._plans_with(net, self._met_before(net))

    def doubts(self, network: nn.Module, plans: Sequence[Plan]) -> Iterator[str]:
        (plan,) = plans
        return doubts_about(plan, network, self.starting_weights if self.schedule is None else self.schedule)

    def advise(self, net: Net) -> None:
        super().advise(net)
        (plan,), ctx = self.declared_, self.ctx
        last_epoch = len(net.history) + net.max_epochs if ctx is None else ctx.total_epochs
        asked_by = "max_epochs" if ctx is None else ctx.asked_by
        advise_on_epochs(plan, len(net.history), last_epoch, asked_by, trains_alone=self._trains_alone(net))

    def _trains_alone(self, net: Net) -> bool:
        """Check whether all that the net learns is in the module that the callback governs."""
        own = set(map(id, self.network_of(net).parameters()))
        return all(id(tensor) in own for _, tensor in net.get_all_learnable_params())

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        undirected = [one for one in self._conditions().values() if one.lower_is_better is None]
        for monitor in dict.fromkeys(condition.monitor for condition in undirected):
            warn_of_unknown_direction(net, monitor, f"Plateau({monitor!r}, lower_is_better=...)")
        if self.restore_best_between and self.lower_is_better is None:
            warn_of_unknown_direction(net, self.monitor, "`lower_is_better`")

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self.engine_ is not None:
            now = replace(self.engine_.moment, batch=self.engine_.batch)
            for step in (step for plan in self.plans_ for step in plan.pending(now)):
                if step.row.unit == "batch" or isinstance(step.row.time, Plateau):
                    logger.info("`unfreeze`: %s is still pending; call partial_fit to reach it", step.row)
        super().on_train_end(net, X=X, y=y, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.loaded_ is not None:
            state["loaded_"] = self.loaded_._replace(net=None)
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the trainable parameters.

        Returns
        -------
        dict
            ``{"trainable": names}``, in the order of the network. Before any training, the state that was loaded. With
            `restore_best_between` also ``"best"``, the best weights of the phase, None without any.
        """
        names = in_order(self.plans_, self.governed - self.held_)
        if self.loaded_ is not None and self.loaded_.epoch is None:
            names = iter(self.loaded_.names)
        state: dict[str, Any] = {"trainable": list(names)}
        if self.restore_best_between:
            state["best"] = None if self.best_ is None else self.best_.to_plain(self.monitor)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Unfreeze the parameters of a state from the next epoch on.

        They are trainable in addition to `starting_weights`, until a later row freezes them. The next ``fit`` from
        scratch uses the state up. A net that continues with its own history needs no state, except for the best weights
        of its phase.

        Parameters
        ----------
        state : mapping
            As `state_dict` returns it.

        Raises
        ------
        TypeError, ValueError
            If it has another form; the state that was loaded before stays. When training begins, if the network lacks
            a name.
        """
        if not isinstance(state, Mapping) or set(state) - {"best"} != {"trainable"}:
            raise ValueError(
                f"`state` is {shown(state)}; it must be what state_dict() returns: {{'trainable': [names]}}"
            )
        self.loaded_ = LoadedState(check_names("trainable", state["trainable"]))
        self.best_ = KeptWeights.from_plain(state.get("best"))

    def run_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the state, and what was loaded, with the epoch since which it acts."""
        return self.state_dict() | {"loaded": None if self.loaded_ is None else self.loaded_.to_plain()}

    def resume_run(self, state: Mapping[str, Any]) -> None:
        """Continue a run from what a checkpoint has kept; what trains then follows from the history."""
        self.loaded_ = LoadedState.from_plain(state.get("loaded"))
        self.best_ = KeptWeights.from_plain(state.get("best"))

    def _rule(self) -> Plateau:
        return Plateau(self.monitor, lower_is_better=self.lower_is_better)

    def _keep_best(self, net: Net) -> None:
        """Keep the weights of an epoch that is the best one of its phase."""
        if not self.restore_best_between or self.read_score(net, self.monitor) is None:
            return
        (plan,) = self.plans_
        if has_best_weights(net, self._rule(), plan):
            self.best_ = KeptWeights.of(net)

    def _restore_best(self, net: Net, moment: Moment, unit: Unit) -> None:
        """Restore the best weights of a phase, if a row of epochs or of batches ends it at a moment."""
        (plan,) = self.plans_
        if not self.restore_best_between or not plan.changed_at(moment, unit):
            return
        kept, self.best_ = self.best_, None
        is_restored = restore_best_weights(net, self._rule(), plan, moment, unit, kept)
        if is_restored and self.engine_ is not None:
            forget_directions(one for _, one in self.engine_.host.optimizers())

    def _plans_with(self, net: Net, met: Mapping[int, int]) -> tuple[Plan, ...]:
        """Turn the conditions that have been met, and a loaded state, into rows of epochs."""
        loaded = None
        if self.loaded_ is not None and self.loaded_.is_adopted_by(net) and self.loaded_.epoch is not None:
            loaded = self.loaded_.epoch, frozenset(self.loaded_.names)
        return tuple(plan.resolved(met, loaded) if met or loaded else plan for plan in self.declared_)

    def _waiting(self, net: Net) -> tuple[Waiting, str]:
        """Return the callbacks of the module that have conditions, and the name of this one."""
        beside = [
            (name, one)
            for name, one in net.callbacks_
            if isinstance(one, CallbackSetUnfreeze) and one.module == self.module and one._conditions()
        ]
        name = next(name for name, one in beside if one is self)
        return Waiting(self.module, {name: one.declared_ for name, one in beside}), name

    def _conditions(self) -> dict[int, Plateau]:
        """Map the positions of rows to their conditions."""
        return conditions_of(self.declared_)

    def _met_before(self, net: Net) -> dict[int, int]:
        if not self._conditions():
            return {}
        waiting, name = self._waiting(net)
        return waiting.met_before(net.history, name)
