"""CallbackSetEarlyStopping: stop training when a score has stopped improving."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from mlr3torch_py.arguments import check_flag, check_whole
from mlr3torch_py.names import listed
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.training.belonging import HistoryMark
from mlr3torch_py.training.callback_set import CallbackSet, check_state
from mlr3torch_py.training.kept_weights import KeptWeights
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.scoring import stagnation_of, warn_of_unknown_direction
from mlr3torch_py.training.sink import Sink, check_sink, say
from mlr3torch_py.training.stages import is_staged
from mlr3torch_py.warn import warn

__all__ = ["CallbackSetEarlyStopping"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


class CallbackSetEarlyStopping(CallbackSet):
    """Stop training when a score has not improved for some epochs.

    Parameters
    ----------
    patience : int
        The number of evaluations in a row that are no better than the best one, after which training stops. With 0 it
        never stops.
    min_delta : float
        A score counts as better if it beats the best one by more than this.
    restore_best_weights : bool
        Whether to restore the weights of the best epoch at the end, also when training ends by an error: those of all
        modules of the net, and of its criteria.
    monitor : str
        The key of the score in a row of ``net.history``.
    lower_is_better : bool, optional
        Whether a smaller score is better, as for a loss. By default the callback of the net that records the score is
        asked, such as skorch's ``EpochScoring``; a score that no callback knows is minimised.
    after_schedule : bool
        Whether to count only epochs since the last row of the freezing callbacks has taken effect. Give True if the
        whole schedule is to be trained: by default, as in R, training may stop before the last rows. A row that would
        change nothing is not waited for; one that waits for a condition is, for as long as that takes.
    sink : callable
        What is given the line that says why training stops. `print` is used only if the net is verbose, and no
        ``t_clbk("progress")`` of the net says it.

    Attributes
    ----------
    best_epoch, best_score, stagnation : int or float
        The best epoch so far, its score, and the number of scores since; with `after_schedule`, the number of scores
        since the best one after the last row.
    best_epochs : int
        The best epoch so far, by R's name.
    best_weights_ : dict or None
        The state dict of ``module_`` in the best epoch, if it is to be restored.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is invalid, or nothing records the score.

    Warns
    -----
    UserWarning
        When training begins, for a score whose direction nobody knows, and for `after_schedule` in a net without any
        schedule. Once for a score that is NaN. When training ends, if no epoch had the score. If `fit` is to continue a
        training that this callback has stopped; nothing is trained then. If the weights of the best epoch are to be
        restored, but are not at hand: the history was loaded or taken back, or `monitor` or another argument was
        changed.

    See Also
    --------
    Plateau : The same rule as a condition for unfreezing.

    Notes
    -----
    Ported from the early stopping of R's mlr3torch. An epoch without the score, or with the score None or NaN, is no
    evaluation, and counts neither for nor against `patience`. Everything but the best weights is computed from the
    history of the net, so counting continues across ``partial_fit`` and a loaded history. An epoch counts also if
    another callback ends training at its end. The best weights belong to their epoch: they are not restored once the
    history lacks that epoch, as after ``load_params``. Its weight is 1000, so it runs late; give it the weight -1 if a
    callback of skorch, such as ``TrainEndCheckpoint``, should see the restored weights.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> stopping = t_clbk("early_stopping", patience=3, min_delta=100.0)
    >>> net = iris_net(max_epochs=500, callbacks=[stopping]).fit(X, y)
    >>> len(net.history)
    4
    """

    label = "Early Stopping"
    default_weight: ClassVar[float] = 1000
    found_: Stagnation = Stagnation()
    best_: KeptWeights | None = None
    missed_: int | None = None
    is_restored_: bool = True

    def __init__(
        self,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best_weights: bool = False,
        monitor: str = "valid_loss",
        lower_is_better: bool | None = None,
        after_schedule: bool = False,
        sink: Sink = print,
    ) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.restore_best_weights = restore_best_weights
        self.monitor = monitor
        self.lower_is_better = lower_is_better
        self.after_schedule = after_schedule
        self.sink = sink

    @property
    def best_weights_(self) -> Mapping[str, Any] | None:
        return None if self.best_ is None else self.best_.parts.get("module")

    @property
    def best_epoch(self) -> int | None:
        return self.found_.best_epoch

    @property
    def best_epochs(self) -> int | None:
        return self.found_.best_epoch

    @property
    def best_score(self) -> float | None:
        return self.found_.best_score

    @property
    def stagnation(self) -> int:
        return self.found_.epochs_since

    def check_params(self) -> None:
        check_whole("patience", self.patience, "evaluations", least=0)
        self._rule()
        check_flag("restore_best_weights", self.restore_best_weights)
        check_flag("after_schedule", self.after_schedule)
        check_sink(self.sink)

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.is_restored_ = False
        if len(net.history) == 0:
            self.best_ = None
        self._update(net)

    def after_begin(self, net: Net, X: Any, y: Any) -> None:
        """Decide whether to train, and whether the best weights are at hand; the history may have been loaded."""
        self._update(net)
        if self.restore_best_weights and self.best_epoch is not None:
            self._drop_stale_weights(net)
        if self._has_stagnated():
            warn(
                f"`{self.monitor}` had stopped improving in an earlier call, so nothing is trained; "
                "raise `patience` to continue"
            )
            if self.ctx is not None:
                self.ctx.terminate = True

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        if self.lower_is_better is None:
            warn_of_unknown_direction(net, self.monitor, "`lower_is_better`")
        if self.after_schedule and not _settled_since(net):
            warn(
                "`after_schedule` is True, but no callback of the net has a schedule, so all epochs count; add "
                "t_clbk('unfreeze', ...) or another freezing callback, or leave `after_schedule` out"
            )

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._decide(net)

    def find_late_score(self, net: Net) -> None:
        if self.awaits_score_:
            self._decide(net)

    @property
    def monitors(self) -> tuple[str, ...]:
        return (self.monitor,)

    def finish_epoch(self, net: Net) -> None:
        if self.best_ is None or not self.best_.is_of_last_epoch(net):
            self._count(net)

    def _count(self, net: Net) -> bool:
        """Count the score of an epoch, and keep its weights if it is the best; return whether there is one."""
        if self.read_score(net, self.monitor) is None:
            return False
        self._update(net)
        if self.restore_best_weights and self.best_epoch == len(net.history):
            self.best_ = KeptWeights.of(net)
        return True

    def _decide(self, net: Net) -> None:
        if self._count(net) and self._has_stagnated():
            logger.info("`%s` has not improved for %d epochs: training stops", self.monitor, self.stagnation)
            say(
                net,
                self.sink,
                f"Stopping at epoch {len(net.history)}, since {self.monitor} has not improved in the last "
                f"{self.stagnation} epochs; the best epoch is {self.best_epoch}.",
            )
            if self.ctx is None:
                raise KeyboardInterrupt
            self.ctx.terminate = True

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self.restore_best_weights:
            self._update(net)  # another callback may have taken the history back at the end
        self._restore(net)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._restore(net)  # unless the stage end has, after an error; other processes may still be training

    def state_dict(self) -> dict[str, Any]:
        """Return the state.

        Returns
        -------
        dict
            The `monitor`, the best epoch and score, and the stagnation; the best weights of ``module_``, None without
            any, those of other modules and criteria, and the epoch to which they belong, with its score.
        """
        state = {"monitor": self.monitor, **self.found_._asdict(), "best_weights": self.best_weights_}
        if self.best_ is not None:
            others = {name: part for name, part in self.best_.parts.items() if name != "module"}
            of = {"epoch": self.best_.mark.n_rows, "rows": self.best_.rows_with(self.monitor)}
            state |= {"best_others": others, "weights_of": of}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it, or as earlier versions did, with the best weights of ``module_`` alone.

        Raises
        ------
        TypeError
            If it has another form.

        Warns
        -----
        UserWarning
            If it is of another score; then it is not used, and the counts come from the history.
        """
        check_state(state)
        if state.get("monitor") != self.monitor:
            warn(
                f"`state` is of the score {state.get('monitor')!r}, but `monitor` is {self.monitor!r}, so it is "
                "not used, and the best epoch comes from the history; give a state of the same score"
            )
            self.found_, self.best_ = Stagnation(), None
            return
        check_state(state, *Stagnation._fields, "best_weights")
        self.found_ = Stagnation(**{name: state[name] for name in Stagnation._fields})
        module, others = state["best_weights"], state.get("best_others", {})
        parts = others if module is None else {"module": module, **others}
        of = state.get("weights_of", {"epoch": self.found_.best_epoch, "rows": []})
        self.best_ = KeptWeights(parts, HistoryMark(of["epoch"], tuple(of["rows"]))) if parts else None

    def _rule(self) -> Plateau:
        return Plateau(self.monitor, self.patience or 1, self.min_delta, self.lower_is_better)

    def _has_stagnated(self) -> bool:
        return 0 < self.patience <= self.stagnation

    def _restore(self, net: Net) -> None:
        if self.restore_best_weights and self.best_ is not None and not self.is_restored_:
            self._drop_stale_weights(net)
            if self.best_ is not None:
                self.best_.restore(net)
        self.is_restored_ = True

    def _drop_stale_weights(self, net: Net) -> None:
        """Drop weights that are not of the best epoch of a net's history; warn if there are none of it."""
        kept, epoch = self.best_, self.best_epoch
        cause = None
        if kept is None:
            cause = "were not kept"
        elif not kept.mark.is_in(net.history):
            cause = "were not kept: those kept are of another net, or of epochs that were taken back"
        elif kept.mark.n_rows != epoch:
            cause = f"were not kept: those kept are of epoch {kept.mark.n_rows}, which was the best when they were kept"
        elif different := kept.differences(net):
            cause = f"do not fit the net, which has another {listed(different, most=3)}"
        if cause is None:
            return
        self.best_ = None
        if self.missed_ != epoch:
            self.missed_ = epoch
            warn(
                f"`restore_best_weights`: the best epoch is {epoch}, whose weights {cause}; so none are restored "
                "unless a later epoch is better. To restore them, load the callback's state too, or a pickle of the net"
            )

    def _update(self, net: Net) -> None:
        found = stagnation_of(net, self._rule())
        if self.after_schedule:
            counted = stagnation_of(net, self._rule(), since=max(_settled_since(net), default=0))
            found = found._replace(epochs_since=counted.epochs_since)
        self.found_ = from_main_process(net, found)


def _settled_since(net: Net) -> list[float]:
    """List, for each callback with a schedule, since which epoch it has nothing more to do."""
    epochs = (callback.settled_since(net) for _, callback in net.callbacks_ if is_staged(callback))
    return [epoch for epoch in epochs if epoch is not None]
