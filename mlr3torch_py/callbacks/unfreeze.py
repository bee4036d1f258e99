"""CallbackSetUnfreeze: train some weights from the start and unfreeze others by a table."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any

import pandas as pd
from torch import nn

from mlr3torch_py.callbacks.callback_set import REQUIRED
from mlr3torch_py.callbacks.freezing import FreezingCallback
from mlr3torch_py.names import as_names, listed, nearest
from mlr3torch_py.parameters import bare, named_parameters
from mlr3torch_py.plan import Plan, Unit, as_select, read_table
from mlr3torch_py.select import Select

__all__ = ["CallbackSetUnfreeze"]

logger = logging.getLogger(__name__)


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
        numbers. A mapping of columns and a list of records are taken as well. Without it nothing is unfrozen.

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
    Ported from ``CallbackSetUnfreeze`` of R's mlr3torch. Epochs and training batches are counted from 1 over the
    whole life of a net, so a schedule goes on across ``partial_fit``, ``warm_start`` and a history that is loaded;
    validation batches do not count. Only ``module_`` of the net is governed: further modules, and a criterion with
    weights, train as they are. Every row of the history gets `n_trainable`, the number of trainable weights of
    ``module_`` at the end of the epoch.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
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
    ...     MLP, module__d_in=4, module__d_out=3, module__neurons=(1, 1, 1),
    ...     max_epochs=6, batch_size=150, train_split=None, callbacks=[unfreeze], verbose=0,
    ... )
    >>> net = net.fit(X.astype("float32"), y)
    >>> trainable_names(net.module_)
    ['0.weight', '0.bias', '3.weight', '3.bias', '6.weight', '9.weight', '9.bias']
    >>> print(unfreeze)
    <CallbackSetUnfreeze>
    * Stages: begin, epoch_begin, batch_begin, epoch_end, end
    """

    plan_: Plan | None = None
    loaded_: tuple[str, ...] | None = None
    loaded_in_use_ = False

    def __init__(self, starting_weights: Select, unfreeze: pd.DataFrame | None = None) -> None:
        self.starting_weights = starting_weights
        self.unfreeze = unfreeze

    def check_params(self) -> None:
        if self.starting_weights is not REQUIRED:
            as_select("`starting_weights`", self.starting_weights)
        if self.unfreeze is not REQUIRED:
            read_table(self.unfreeze)

    def resolve(self, module: nn.Module) -> None:
        names = named_parameters(module)
        plan = Plan.resolve(self.starting_weights, read_table(self.unfreeze), names, module)
        unknown = [name for name in self.loaded_ or () if name not in names]
        if unknown:
            raise ValueError(
                f"the state that was loaded names {listed(map(repr, unknown))}, which the network lacks; "
                f"{nearest(unknown, names)}. Load a state that was saved from this network"
            )
        self.plan_ = plan

    @property
    def governed(self) -> Set[str]:
        return frozenset(self._plan.names)

    def held(self, epoch: int, batch: int) -> Set[str]:
        return self.governed - self._trainable(epoch, batch)

    def next_batch(self, batch: int) -> float:
        return self._plan.next_batch(batch)

    def why_held(self) -> str:
        coming = self._plan.to_come(self.epoch_, self.batch_)
        return (
            f"`starting_weights` is {self.starting_weights!r} and selects {self._listed(self._plan.starting)}, "
            f"the next row of `unfreeze` that comes is {coming[0].row if coming else 'none'}, "
            f"and the network has {listed(self._plan.names)}"
        )

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        super().on_train_begin(net, X=X, y=y, **kwargs)
        last_epoch = self.epoch_ + net.max_epochs
        for event in self._plan.events:
            if event.row.at == 0:
                _warn(f"{event.row} never comes; time counts from 1")
            elif not event.names:
                _warn(f"{event.row} selects no weight of the network")
            elif not event.new:
                _warn(f"{event.row} selects only weights that train already")
            if event.row.unit == "epoch" and event.row.at > last_epoch:
                logger.info("`unfreeze`: %s lies beyond epoch %d, the last one of this call", event.row, last_epoch)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.loaded_in_use_ and len(net.history) == 1:
            self.loaded_ = None
        if self.loaded_ is not None and not self.loaded_in_use_:
            self.resolve(bare(net.module_))
        self.loaded_in_use_ = self.loaded_ is not None
        first_epoch_of_call = self.due_ is None
        super().on_epoch_begin(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        if first_epoch_of_call:
            logger.info("training the following weights at the start: %s", listed(self.state_dict()["trainable"]))

    def report(self, unit: Unit, moment: int) -> None:
        event = self._plan.at(unit, moment)
        if event is not None and event.new:
            logger.info("unfreezing at %s %d: %s", unit, moment, self._listed(event.new))

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        for event in self._plan.to_come(self.epoch_, self.batch_):
            logger.info("`unfreeze`: %s has not come yet; partial_fit goes on towards it", event.row)
        super().on_train_end(net, X=X, y=y, **kwargs)

    def state_dict(self) -> dict[str, list[str]]:
        """Return what trains.

        Returns
        -------
        dict
            ``{"trainable": names}``, in the order of the network. Before any training, what was loaded.
        """
        if self.plan_ is None or (self.loaded_ is not None and not self.loaded_in_use_):
            return {"trainable": list(self.loaded_ or ())}
        trainable = self._trainable(self.epoch_, self.batch_)
        return {"trainable": [name for name in self.plan_.names if name in trainable]}

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
        self.loaded_, self.loaded_in_use_ = as_names("trainable", state["trainable"]), False

    @property
    def _plan(self) -> Plan:
        assert self.plan_ is not None
        return self.plan_

    def _trainable(self, epoch: int, batch: int) -> Set[str]:
        return self._plan.trainable(epoch, batch) | frozenset(self.loaded_ or ())

    def _listed(self, names: Set[str]) -> str:
        return listed(name for name in self._plan.names if name in names) or "nothing"


def _warn(message: str) -> None:
    warnings.warn(f"`unfreeze`: {message}", UserWarning, stacklevel=3)
