"""The scheduler that follows a score, as a callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import lr_scheduler

from mlr3torch_py.arguments import check_text
from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.callbacks.lr_state import RATE
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.clock import score_of
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.scoring import lower_is_better, warn_of_unknown_direction

__all__ = ["CallbackSetLRSchedulerReduceOnPlateau"]


class CallbackSetLRSchedulerReduceOnPlateau(CallbackSetLRScheduler):
    """Lower the rates when a score has stopped improving.

    Parameters
    ----------
    **params
        Those of ``torch.optim.lr_scheduler.ReduceLROnPlateau``, and `monitor`, the key of the score in a row of
        ``net.history``, by default ``"valid_loss"``. Without a `mode`, the callback of the net that records the score
        is asked whether lower or higher is better; a score that no callback knows is minimised.

    Raises
    ------
    TypeError, ValueError
        When training begins, if a parameter is wrong, or nothing records the score.

    Warns
    -----
    UserWarning
        When training begins, for a score whose direction nobody knows.

    See Also
    --------
    CallbackSetLRScheduler

    Notes
    -----
    The scheduler does not step in epochs whose score is missing, None or NaN.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> lower = t_clbk("lr_reduce_on_plateau", monitor="train_loss", patience=0, threshold=1e9, threshold_mode="abs")
    >>> net = iris_net(lr=0.1, max_epochs=3, callbacks=[lower]).fit(X, y)
    >>> [round(rate, 4) for rate in net.history[:, "event_lr"]]
    [0.1, 0.1, 0.01]
    """

    scheduler_class = lr_scheduler.ReduceLROnPlateau
    monitor: str  # set by the constructor, as all parameters
    mode: str | None
    _trial_scores = (1.0,)

    def check_params(self) -> None:
        super().check_params()
        check_text("monitor", self.monitor, "the name of a score in the history")

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        super().before_first_epoch(net, dataset_train, dataset_valid)
        if self.mode is None:
            warn_of_unknown_direction(net, self.monitor, "`mode`, 'min' or 'max'")

    def build(self, optimizer: Any, arguments: dict[str, Any]) -> Any:
        own = {name: value for name, value in arguments.items() if name != "monitor"}
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # as all other schedulers of torch do
        return super().build(optimizer, own | {"mode": own["mode"] or "min"})

    def _arguments_in(self, net: Net, dataset_train: Any) -> dict[str, Any]:
        asked = "min" if lower_is_better(net, self.monitor) else "max"
        return self.arguments | {"mode": self.mode or asked}

    def _can_use_state(self, net: Net) -> bool:
        monitor = self.monitor
        own = (self.state_ or {}).get("callback", {})
        return super()._can_use_state(net) and own.get("monitor", monitor) == monitor

    def _steps_in(self, net: Net, row: Mapping[str, Any]) -> list[tuple[float, ...]]:
        score = from_main_process(net, score_of(row, self.monitor) if RATE in row else None)
        return [] if score is None else [(score,)]

    def _more_state(self) -> dict[str, Any]:
        return {"monitor": self.monitor}

    def find_late_score(self, net: Net) -> None:
        if self.awaits_score_:
            self._step_by_epoch(net, len(net.history))
            self.n_ended_ = len(net.history)

    @property
    def monitors(self) -> tuple[str, ...]:
        return (self.monitor,)

    def _step_by_epoch(self, net: Net, epoch: int) -> None:
        score = self.read_score(net, self.monitor, epoch)
        if score is not None:
            self._step(net, score)
        elif self.awaits_score_:
            self.n_ended_ = epoch - 1  # until it is found
