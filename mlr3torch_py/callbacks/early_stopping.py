"""CallbackSetEarlyStopping: stop training when a score has stopped improving."""

from __future__ import annotations

import logging
import warnings
from copy import deepcopy
from typing import Any

from mlr3torch_py.arguments import check_flag
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.processes import from_main_process

__all__ = ["CallbackSetEarlyStopping"]

logger = logging.getLogger("mlr3torch_py")


class CallbackSetEarlyStopping(CallbackSet):
    """Stop training when a score has not improved for some epochs.

    Parameters
    ----------
    patience : int
        The number of evaluations without a better score after which training stops, at least 1.
    min_delta : float
        A score counts as better if it beats the best one by more than this.
    restore_best_weights : bool
        Whether to restore the weights of the best epoch at the end.
    monitor : str
        The key of the score in a row of ``net.history``.
    lower_is_better : bool
        Whether a smaller score is better, as for a loss.

    Attributes
    ----------
    best_epoch, best_score, stagnation : int or float
        The best epoch so far, its score, and the number of epochs since.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is invalid, or nothing records the score.

    Warns
    -----
    UserWarning
        Once for a score that is NaN. When training ends, if no epoch had the score. If `fit` is to continue a training
        that this callback has stopped; nothing is trained then.

    See Also
    --------
    Plateau : The same rule as a condition for unfreezing.

    Notes
    -----
    Ported from the early stopping of R's mlr3torch. An epoch without the score, or with the score None or NaN, is no
    evaluation, and counts neither for nor against `patience`. Everything but the best weights is computed from the
    history of the net, so counting continues across ``partial_fit`` and a loaded history. Its weight is 1000, so it
    runs late; give it the weight -1 if a callback of skorch, such as ``TrainEndCheckpoint``, should see the restored
    weights.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> stopping = t_clbk("early_stopping", patience=3, min_delta=100.0)
    >>> net = iris_net(max_epochs=500, callbacks=[stopping]).fit(X, y)
    >>> len(net.history)
    4
    """

    label = "Early Stopping"
    default_weight = 1000
    found_ = Stagnation()
    best_weights_: dict[str, Any] | None = None

    def __init__(
        self,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best_weights: bool = False,
        monitor: str = "valid_loss",
        lower_is_better: bool = True,
    ) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.restore_best_weights = restore_best_weights
        self.monitor = monitor
        self.lower_is_better = lower_is_better

    @property
    def best_epoch(self) -> int | None:
        return self.found_.best_epoch

    @property
    def best_score(self) -> float | None:
        return self.found_.best_score

    @property
    def stagnation(self) -> int:
        return self.found_.epochs_since

    def check_params(self) -> None:
        self._rule()
        check_flag("restore_best_weights", self.restore_best_weights)

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if len(net.history) == 0:
            self.best_weights_ = None
        self._update(net)
        if len(net.history) and self.stagnation >= self.patience:
            warnings.warn(
                f"`{self.monitor}` had stopped improving in an earlier call, so nothing is trained; "
                "raise `patience` to continue",
                stacklevel=2,
            )
            if self.ctx is not None:
                self.ctx.terminate = True

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._decide(net)

    def find_late_score(self, net: Net) -> None:
        if self.awaits_score_:
            self._decide(net)

    @property
    def monitors(self) -> tuple[str, ...]:
        return (self.monitor,)

    def _decide(self, net: Net) -> None:
        if from_main_process(self.read_score(net, self.monitor)) is None:
            return
        self._update(net)
        if self.restore_best_weights and self.best_epoch == len(net.history):
            self.best_weights_ = deepcopy(bare(net.module_).state_dict())
        if self.stagnation >= self.patience:
            logger.info("`%s` has not improved for %d epochs: training stops", self.monitor, self.stagnation)
            if self.ctx is None:
                raise KeyboardInterrupt
            self.ctx.terminate = True

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self.restore_best_weights and self.best_weights_ is not None:
            bare(net.module_).load_state_dict(self.best_weights_)

    def state_dict(self) -> dict[str, Any]:
        """Return the state.

        Returns
        -------
        dict
            The `monitor`, the best epoch and score, the stagnation, and the best weights, None without any.
        """
        return {"monitor": self.monitor, **self.found_._asdict(), "best_weights": self.best_weights_}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        ValueError
            If it is of another score.
        """
        if state.get("monitor") != self.monitor:
            raise ValueError(
                f"`state` is of the score {state.get('monitor')!r}, but `monitor` is {self.monitor!r}; "
                "give a state of the same score"
            )
        self.best_weights_ = state["best_weights"]
        self.found_ = Stagnation(**{name: state[name] for name in Stagnation._fields})

    def _rule(self) -> Plateau:
        return Plateau(self.monitor, self.patience, self.min_delta, self.lower_is_better)

    def _update(self, net: Net) -> None:
        self.found_ = from_main_process(self._rule().stagnation(scores_by_epoch(net.history, self.monitor)))
