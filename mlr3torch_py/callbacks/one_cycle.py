"""The one-cycle schedule as a callback, with a number of steps that it finds by itself."""

from __future__ import annotations

from typing import Any, Final

from torch.optim import lr_scheduler

from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.callbacks.lr_state import accumulation, n_updates
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.asked import epochs_asked_for
from mlr3torch_py.training.clock import moment_of, rows_of
from mlr3torch_py.values import length_of

__all__ = ["CallbackSetLRSchedulerOneCycle"]

_LENGTHS: Final = ("total_steps", "epochs", "steps_per_epoch")
_MOST_TRIED: Final = 10_000


class CallbackSetLRSchedulerOneCycle(CallbackSetLRScheduler):
    """The one-cycle schedule, with a computed number of steps.

    Parameters
    ----------
    **params
        Those of ``torch.optim.lr_scheduler.OneCycleLR``. Without `total_steps`, `epochs` defaults to the number of
        epochs that the net trains, and `steps_per_epoch` to the number of training batches.

    Raises
    ------
    TypeError, ValueError
        When training begins, if a parameter is wrong or missing, if training would continue beyond the end of the
        cycle, as in a later ``partial_fit``, or if a run is resumed with another length.

    See Also
    --------
    CallbackSetLRScheduler

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> one_cycle = t_clbk("lr_one_cycle", max_lr=0.1, total_steps=6)
    >>> one_cycle.callback.simulate(6, initial_lr=0.1).round(3)
    array([0.004, 0.099, 0.081, 0.046, 0.013, 0.   ])
    """

    scheduler_class = lr_scheduler.OneCycleLR
    step_on_epoch = False

    def build(self, optimizer: Any, arguments: dict[str, Any]) -> Any:
        length = {name: arguments[name] for name in _LENGTHS}
        if length["total_steps"] is not None:
            length = {"total_steps": length["total_steps"]}
        return self.scheduler_class(optimizer, **{k: v for k, v in arguments.items() if k not in _LENGTHS}, **length)

    def _arguments_for(self, n_steps: int) -> dict[str, Any]:
        arguments = self.arguments
        if arguments["total_steps"] is None and None in (arguments["epochs"], arguments["steps_per_epoch"]):
            arguments["total_steps"] = n_steps
        return arguments

    def _arguments_in(self, net: Net, dataset_train: Any) -> dict[str, Any]:
        arguments, per_epoch = self.arguments, _updates_per_epoch(net, dataset_train)
        has_own_length = arguments["total_steps"] is not None or arguments["epochs"] is not None
        if arguments["total_steps"] is None:
            arguments["total_steps"] = self._length(net, arguments["epochs"], arguments["steps_per_epoch"] or per_epoch)
        if self.state_ is not None and not has_own_length:
            arguments["total_steps"] = self.state_["total_steps"]
        planned = arguments["total_steps"]
        needed = None if per_epoch is None else self._done(net) + self._epochs_left(net) * per_epoch
        is_resumed = self.ctx is not None and self.ctx.is_resumed
        asked = f"`max_epochs` of {net.max_epochs}"
        if self.ctx is not None:
            asked = f"`{self.ctx.asked_by}` of {self.ctx.asked_epochs}"
        if needed is not None and (needed > planned or (is_resumed and not has_own_length and needed != planned)):
            raise ValueError(
                f"the cycle was made for {planned} steps, but with {asked} the training "
                f"comes to {needed}; give `total_steps`, or `epochs` and `steps_per_epoch`, for all calls together"
            )
        self._try(net.optimizer_, arguments, n_steps=min(planned, _MOST_TRIED))
        return arguments

    def _length(self, net: Net, epochs: int | None, per_epoch: int | None) -> int:
        """Return the number of steps of a cycle without `total_steps`."""
        if per_epoch is None:
            raise ValueError(
                "the training data has no length, so the cycle has none either; give `total_steps`, or `epochs` and "
                "`steps_per_epoch`"
            )
        return epochs * per_epoch if epochs is not None else self._done(net) + self._epochs_left(net) * per_epoch

    def _done(self, net: Net) -> int:
        """Return the number of steps before."""
        if accumulation(net) > 1:
            if self.state_ is not None:
                return int(self.state_["last_epoch"])
            return sum(n_updates(net, row) for row in rows_of(net.history))
        return moment_of(net.history).batch

    def _epochs_left(self, net: Net) -> int:
        return epochs_asked_for(net) if self.ctx is None else self.ctx.total_epochs - self.ctx.epoch + 1


def _updates_per_epoch(net: Net, dataset_train: Any) -> int | None:
    """Count the updates of an epoch; None if the data has no length."""
    n_batches = None if dataset_train is None else length_of(net.get_iterator(dataset_train, training=True))
    return None if n_batches is None else -(-n_batches // accumulation(net))
