"""CallbackSetEarlyStopping: end training when a score has stopped improving."""

from __future__ import annotations

import logging
import warnings
from copy import deepcopy
from typing import Any

from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.processes import from_main_process

__all__ = ["CallbackSetEarlyStopping"]

logger = logging.getLogger("mlr3torch_py")


class CallbackSetEarlyStopping(CallbackSet):
    """End training when a score has not improved for some epochs.

    Parameters
    ----------
    patience : int
        How many epochs without a better score end the training, from 1.
    min_delta : float
        By how much a score must be better to count.
    restore_best_weights : bool
        Whether the weights of the best epoch are put back at the end.
    monitor : str
        The key of the score in a row of ``net.history``.
    lower_is_better : bool
        Whether a smaller score is the better one, as for a loss.

    Attributes
    ----------
    best_epoch, best_score, stagnation : int or float
        The best epoch so far, its score, and the number of epochs since.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong; after the first epoch, if the history lacks the score.

    Warns
    -----
    UserWarning
        If a training that this callback had ended is taken up again: nothing is trained then.

    See Also
    --------
    Plateau : The same rule as a condition for unfreezing.

    Notes
    -----
    Ported from the early stopping of R's mlr3torch. All but the best weights is read off the history of the net, so
    that it goes on across ``partial_fit`` and a history that is loaded. Its weight is 1000, so it comes late; give it
    the weight -1 where a callback of skorch, such as ``TrainEndCheckpoint``, shall see the weights that were put back.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, t_clbk
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     max_epochs=500, verbose=0,
    ...     callbacks=[t_clbk("early_stopping", patience=3, min_delta=100.0)],
    ... ).fit(X.astype("float32"), y)
    >>> len(net.history)
    4
    """

    label = "Early Stopping"
    default_weight = 1000
    found_: Stagnation = Stagnation()
    best_weights_: dict[str, Any] | None = None
    state_: dict[str, Any] | None = None

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

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if len(net.history) == 0:
            self.best_weights_ = None
        self._look(net)
        if len(net.history) and self.stagnation >= self.patience:
            warnings.warn(
                f"`{self.monitor}` had stopped improving in an earlier call, so nothing is trained; "
                "raise `patience` to go on",
                stacklevel=2,
            )
            if self.ctx is not None:
                self.ctx.terminate = True

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._look(net)
        if self.restore_best_weights and self.best_epoch == len(net.history):
            self.best_weights_ = deepcopy(bare(net.module_).state_dict())
        if self.stagnation >= self.patience:
            logger.info("`%s` has not improved for %d epochs: training ends", self.monitor, self.stagnation)
            if self.ctx is None:
                raise KeyboardInterrupt
            self.ctx.terminate = True

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self.restore_best_weights and self.best_weights_ is not None:
            bare(net.module_).load_state_dict(self.best_weights_)

    def state_dict(self) -> dict[str, Any]:
        """Return what was found.

        Returns
        -------
        dict
            The `monitor`, the best epoch and score, the stagnation, and the best weights if they are kept.
        """
        return {"monitor": self.monitor, **self.found_._asdict(), "best_weights": self.best_weights_}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was found.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        ValueError
            If it is the state of another score.
        """
        if state.get("monitor") != self.monitor:
            raise ValueError(
                f"`state` is of the score {state.get('monitor')!r}, but `monitor` is {self.monitor!r}; "
                "give the state of the same score"
            )
        self.best_weights_ = state["best_weights"]
        self.found_ = Stagnation(**{name: state[name] for name in Stagnation._fields})

    def _rule(self) -> Plateau:
        return Plateau(self.monitor, self.patience, self.min_delta, self.lower_is_better)

    def _look(self, net: Any) -> None:
        self.found_ = from_main_process(self._rule().stagnation(scores_by_epoch(net.history, self.monitor)))
