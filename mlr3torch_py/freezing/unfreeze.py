"""CallbackSetUnfreeze: train some weights from the start and unfreeze others by a table."""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.names import as_names, listed, nearest
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.schedule.plan import Moment, Plan, Step
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import Row, as_select, read_table
from mlr3torch_py.select.functions import Select
from mlr3torch_py.training.callback_set import REQUIRED
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.processes import from_main_process

__all__ = ["CallbackSetUnfreeze"]

logger = logging.getLogger("mlr3torch_py")


class _Loaded(NamedTuple):
    """A state that was loaded, and from when on it is in use in which net."""

    names: tuple[str, ...]
    epoch: int | None = None
    net: weakref.ref[Any] | None = None

    def belongs_to(self, net: Any) -> bool:
        return self.net is None or self.net() is net


class CallbackSetUnfreeze(FreezingCallback):
    """Train some weights from the start and unfreeze others after some epochs or batches.

    When training begins, the weights that `starting_weights` selects are trainable and all others are frozen. A row
    of `unfreeze` makes its weights trainable at the beginning of its epoch or before its batch.

    Parameters
    ----------
    starting_weights : Select
        What trains from the start.
    unfreeze : pandas.DataFrame, optional
        What is unfrozen when: a column `weights` of selectors and exactly one column `epoch` or `batch` of whole
        numbers. A column `action` may say "freeze" instead of "unfreeze", and a column `when` hold a `Plateau` instead
        of a time, and a column `lr_mult` factors on the learning rate of the weights, from the first step on; the first
        row that selects a weight and has a factor counts. A mapping of columns, a list of records and a list of several
        tables are taken as well. Without a table nothing is unfrozen.
    frozen_norm, frozen_dropout : "train" or "eval"
        With "eval", normalisation layers that are frozen, as a whole and by this callback, use and keep their running
        statistics, as in Keras; and dropout in frozen parts does nothing. A layer without parameters counts as frozen
        when the module around it is. With "train" they go on as in training, as in R.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong or a name is not in the network. Before a step at which nothing
        that the optimizer holds would be trainable.

    Warns
    -----
    UserWarning
        When training begins, for a row at time 0, which never comes, one that selects nothing, and one that selects
        only weights that train already.

    See Also
    --------
    select_name : Select parameters by their names.
    t_clbk : Make this callback by its key, ``t_clbk("unfreeze")``.

    Notes
    -----
    Ported from ``CallbackSetUnfreeze`` of R's mlr3torch. Epochs and training batches are counted from 1 over the whole
    life of a net, so a schedule goes on across ``partial_fit``, ``warm_start`` and a history that is loaded; validation
    batches do not count. With factors, the history of every batch that takes a step has the rate of every group of the
    optimizer, as ``lr_0`` for the first group and ``lr_0_x0.1`` for its part with the factor 0.1; the groups themselves
    stay as they are for all others. Only ``module_`` of the net is governed: further modules, and a criterion with
    weights, train as they are. Every row of the history gets `n_trainable`, the number of trainable weights of
    ``module_`` at the end of the epoch.

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
    loaded_: _Loaded | None = None
    fired_: Mapping[int, int] = MappingProxyType({})

    def __init__(
        self,
        starting_weights: Select,
        unfreeze: Any = None,
        *,
        frozen_norm: str = "train",
        frozen_dropout: str = "train",
    ) -> None:
        self.starting_weights = starting_weights
        self.unfreeze = unfreeze
        self.frozen_norm = frozen_norm
        self.frozen_dropout = frozen_dropout

    def check_params(self) -> None:
        self.check_modes()
        if self.starting_weights is not REQUIRED:
            as_select("`starting_weights`", self.starting_weights)
        read_table(self.unfreeze)

    def make_plans(self, module: nn.Module) -> tuple[Plan]:
        names = named_parameters(module)
        plan = Plan.resolve(self.starting_weights, read_table(self.unfreeze), names, module)
        is_new = self.loaded_ is not None and self.loaded_.epoch is None
        unknown = [name for name in self.loaded_.names if name not in names] if self.loaded_ and is_new else []
        if unknown:
            raise ValueError(
                f"the state that was loaded names {listed(map(repr, unknown))}, which the network lacks; "
                f"{nearest(unknown, names)} Load a state that was saved from this network"
            )
        return (plan,)

    def opening(self, moment: Moment) -> str:
        trainable = self.governed - self.held(moment)
        return f"training the following weights at the start: {listed(self._in_order(trainable)) or 'none'}"

    def describe(self) -> str:
        (plan,) = self.plans_
        rows = [step.row for step in plan.to_come(self.moment_)]
        return (
            f"`starting_weights` is {self.starting_weights!r} and selects "
            f"{listed(self._in_order(plan.starting)) or 'nothing'}; "
            f"of `unfreeze` is still to come: {listed(rows, most=3) or 'nothing'}; "
            f"the network has {listed(plan.names)}"
        )

    def held(self, moment: Moment) -> Set[str]:
        if self.fired_:
            moment = replace(moment, fired=self.fired_)
        if self.loaded_ is not None and self.loaded_.epoch is not None and self.loaded_.belongs_to(self.net_):
            moment = replace(moment, loaded=(self.loaded_.epoch, frozenset(self.loaded_.names)))
        return super().held(moment)

    def recall(self, net: Any) -> None:
        self.fired_ = {
            position: epoch
            for position, key in self._condition_keys(net).items()
            for epoch, row in enumerate(net.history.to_list(), start=1)
            if row.get(key)
        }

    def decide(self, net: Any) -> None:
        epoch = len(net.history)
        if self.loaded_ is not None and self.loaded_.epoch is None:
            self.plans_ = self.make_plans(bare(net.module_))
            self.loaded_ = _Loaded(self.loaded_.names, epoch, weakref.ref(net))
        if self._conditions():
            self.recall(net)
            self.fired_ = from_main_process(self._fired_by_now(net.history))
            for position, key in self._condition_keys(net).items():
                net.history.record(key, self.fired_.get(position) == epoch)

    def advise(self, net: Any) -> None:
        (plan,) = self.plans_
        _warn("time counts from 1, so there never comes ", [step for step in plan.steps if step.time == 0])
        _warn("no weight of the network is selected by ", [step for step in plan.steps if not step.names])
        _warn("nothing is changed, since all selected weights train, or are frozen, already, by ", plan.idle())
        names = dict.fromkeys(plan.names).keys()
        for select in self.starting_weights.unmatched(names, bare(net.module_)):
            warnings.warn(f"`starting_weights`: {select!r} matches no weight of the network", stacklevel=2)
        last_epoch = len(net.history) + net.max_epochs
        for step in plan.steps:
            if step.row.unit == "epoch" and last_epoch < step.time < math.inf:
                logger.info("`unfreeze`: %s lies beyond epoch %d, where `max_epochs` ends", step.row, last_epoch)

    def attach(self, net: Any) -> None:
        is_spent = self.loaded_ is not None and self.loaded_.epoch is not None and self.loaded_.belongs_to(net)
        if is_spent and len(net.history) == 0:
            self.loaded_ = None
        super().attach(net)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        now = replace(self.moment_, batch=self.batch_, fired=self.fired_)
        for step in (step for plan in self.plans_ for step in plan.to_come(now)):
            if step.row.unit == "batch" or isinstance(step.row.time, Plateau):
                logger.info("`unfreeze`: %s has not come yet; partial_fit goes on towards it", step.row)
        super().on_train_end(net, X=X, y=y, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.loaded_ is not None:
            state["loaded_"] = self.loaded_._replace(net=None)
        return state

    def state_dict(self) -> dict[str, list[str]]:
        """Return what trains.

        Returns
        -------
        dict
            ``{"trainable": names}``, in the order of the network. Before any training, what was loaded.
        """
        if self.loaded_ is not None and self.loaded_.epoch is None:
            return {"trainable": list(self.loaded_.names)}
        trainable = self.governed - self.held(replace(self.moment_, batch=self.batch_))
        return {"trainable": list(self._in_order(trainable))}

    def load_state_dict(self, state: Mapping[str, Iterable[str]]) -> None:
        """Take up a state, as if a row had unfrozen what it names.

        What the state names trains on top of `starting_weights`, from the next epoch of the net on; it is used up by
        the next ``fit`` from scratch. A net that goes on with its own history needs no state.

        Parameters
        ----------
        state : mapping
            As `state_dict` returns it.

        Raises
        ------
        TypeError, ValueError
            If it has another form; what was loaded before stays. When training begins, if the network lacks a name.
        """
        if not isinstance(state, Mapping) or set(state) != {"trainable"}:
            raise ValueError(f"`state` is {state!r}; it must be what state_dict() returns: {{'trainable': [names]}}")
        self.loaded_ = _Loaded(as_names("trainable", state["trainable"]))

    def _condition_keys(self, net: Any) -> dict[int, str]:
        """Return, for the position of each row with a condition, the key that says in the history whether it came."""
        conditions = self._conditions()
        if not conditions:
            return {}
        waiting = [one for _, one in net.callbacks_ if isinstance(one, CallbackSetUnfreeze) and one._conditions()]
        number = "" if waiting[0] is self else 1 + waiting.index(self)
        return {row.position: f"event_unfreeze{number}_row{row.position}" for row in conditions}

    def _conditions(self) -> list[Row]:
        return [step.row for plan in self.plans_ for step in plan.conditions]

    def _fired_by_now(self, history: Any) -> dict[int, int]:
        """Decide which conditions have come; the last row is that of the epoch that begins."""
        fired, epoch, since = dict(self.fired_), len(history), 1
        for step in self.plans_[0].conditions:
            position, condition = step.row.position, step.row.time
            assert isinstance(condition, Plateau)
            if position not in fired:
                scores = [score for at, score in scores_by_epoch(history, condition.monitor) if since <= at < epoch]
                too_late = condition.no_later_than is not None and epoch >= condition.no_later_than
                if too_late or condition.holds(scores):
                    fired[position] = epoch
            since = fired.get(position, epoch)
        return fired


def _warn(what: str, steps: list[Step]) -> None:
    if steps:
        rows = listed((step.row for step in steps), most=3)
        warnings.warn(f"`unfreeze`: {what}{rows}", stacklevel=3)
