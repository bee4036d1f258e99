"""Learning-rate schedulers of torch as callbacks; they step as in mlr3torch and continue after a stop."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, ClassVar, Final

from torch.optim import lr_scheduler

from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of, score_of, take_back_epoch
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.training.recipe import recipe_class
from mlr3torch_py.training.scoring import lower_is_better, warn_of_unknown_direction

__all__ = [
    "CallbackSetLRScheduler",
    "CallbackSetLRSchedulerOneCycle",
    "CallbackSetLRSchedulerReduceOnPlateau",
    "lr_scheduler_class",
]

_RATES: Final[tuple[str, ...]] = ("lr", "initial_lr", "momentum", "betas")


class CallbackSetLRScheduler(CallbackSet):
    """Base of the learning-rate schedulers: a scheduler of ``torch.optim.lr_scheduler`` as a callback.

    It makes the scheduler at the first epoch, and steps it at the end of each epoch or after each training batch.

    Parameters
    ----------
    **params
        Those of the scheduler, without the optimizer.

    See Also
    --------
    as_lr_scheduler : For a scheduler that has no key.

    Notes
    -----
    Ported from ``CallbackSetLRScheduler`` of R's mlr3torch. When training continues, by ``partial_fit`` or from a
    pickle, so do the scheduler and the rates. When the optimizer is replaced during training, the scheduler continues
    with the new one; if that has another rate, in proportion to it. A scheduler that steps after each batch does not
    step when accelerate has skipped the step of the optimizer, as it does when gradients overflow in mixed precision.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> net = iris_net(lr=0.1, max_epochs=4, callbacks=[t_clbk("lr_step", step_size=2)]).fit(X, y)
    >>> round(net.optimizer_.param_groups[0]["lr"], 6)
    0.001
    """

    scheduler_class: ClassVar[type] = lr_scheduler.LRScheduler
    step_on_epoch: ClassVar[bool] = True
    gone_params = MappingProxyType({"verbose": "torch's schedulers no longer have it"})
    scheduler_: Any = None
    state_: dict[str, Any] | None = None
    rates_: tuple[float, ...] | None = None

    def __init__(self, **params: Any) -> None:
        bound = inspect.signature(type(self)).bind(**params)
        bound.apply_defaults()
        self.__dict__.update(bound.arguments)

    def make(self, net: Net, dataset_train: Any) -> Any:
        """Make the scheduler for the optimizer of a net."""
        return self.scheduler_class(net.optimizer_, **self.get_params(deep=False))

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.scheduler_ = None
        if len(net.history) == 0:
            self.state_ = None

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.scheduler_ is not None:
            self._follow(net)
            return
        groups = net.optimizer_.param_groups
        current = [{key: group[key] for key in _RATES if key in group} for group in groups]
        if self.state_ is None and len(net.history) > 1:
            warnings.warn(
                f"{type(self).__name__} starts from its first step at epoch {len(net.history)}, since it has no state "
                "of the earlier epochs; to continue, use load_state_dict() or a pickle of the net",
                stacklevel=2,
            )
        if self.state_ is None:
            self.rates_ = tuple(group["lr"] for group in groups)
        try:
            self.scheduler_ = self.make(net, dataset_train)
        except ValueError:
            take_back_epoch(net)
            raise
        if self.state_ is not None:
            self.scheduler_.load_state_dict(self.state_)
            for group, values in zip(groups, current, strict=True):
                group.update(values)

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.scheduler_.optimizer is not net.optimizer_:
            self._follow(net)

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and not self.step_on_epoch and not _was_step_skipped(net):
            self._follow(net)
            self.scheduler_.step()

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.step_on_epoch:
            self._follow(net)
            self.scheduler_.step()

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self.state_, self.scheduler_ = self.state_dict(), None

    def _follow(self, net: Net) -> None:
        """Schedule the optimizer that the net has now, from the current step on, if it has replaced its optimizer."""
        before, now = self.scheduler_.optimizer, net.optimizer_
        if before is now:
            return
        if len(before.param_groups) != len(now.param_groups):
            raise ValueError(
                f"the net has replaced its optimizer, which had {len(before.param_groups)} param groups, by one with "
                f"{len(now.param_groups)}, so {type(self).__name__} does not fit it; give it as many groups"
            )
        if getattr(now, "optimizer", now) is not getattr(before, "optimizer", before):  # accelerate wraps it again
            for old, new, rate in zip_longest(before.param_groups, now.param_groups, self.rates_ or ()):
                _continue(old, new, rate)
        _point_at(self.scheduler_, now)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the scheduler; None before any training.

        Returns
        -------
        dict or None
        """
        state: dict[str, Any] | None = self.state_ if self.scheduler_ is None else self.scheduler_.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore a state; it takes effect when a net with a history begins its next epoch.

        Parameters
        ----------
        state : dict or None
            As `state_dict` returns it.
        """
        self.state_ = state

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"scheduler_": None, "state_": self.state_dict()}


class CallbackSetLRSchedulerOneCycle(CallbackSetLRScheduler):
    """The one-cycle schedule, with a computed number of steps.

    Parameters
    ----------
    **params
        Those of ``torch.optim.lr_scheduler.OneCycleLR``. Without `total_steps`, `epochs` defaults to the number of
        epochs that the net trains, and `steps_per_epoch` to the number of training batches.

    Raises
    ------
    ValueError
        If training would continue beyond the end of the cycle, or a run is resumed with another length.

    See Also
    --------
    CallbackSetLRScheduler
    """

    scheduler_class = lr_scheduler.OneCycleLR
    step_on_epoch = False

    def make(self, net: Net, dataset_train: Any) -> Any:
        params = self.get_params(deep=False)
        epochs, steps_per_epoch = params.pop("epochs"), params.pop("steps_per_epoch")
        steps_per_epoch = steps_per_epoch or len(net.get_iterator(dataset_train, training=True))
        epochs_left = net.max_epochs if self.ctx is None else self.ctx.total_epochs - self.ctx.epoch + 1
        needed = moment_of(net.history).batch + epochs_left * steps_per_epoch
        is_resumed = self.ctx is not None and self.ctx.is_resumed
        has_own_length = params["total_steps"] is not None or epochs is not None
        if params["total_steps"] is None:
            params["total_steps"] = needed if epochs is None else epochs * steps_per_epoch
        planned = params["total_steps"] if self.state_ is None else self.state_["total_steps"]
        if needed > planned or (is_resumed and not has_own_length and needed != planned):
            raise ValueError(
                f"the cycle was made for {planned} steps, but with `max_epochs` of {net.max_epochs} the training "
                f"comes to {needed}; give `total_steps` or `epochs` for all calls together"
            )
        return self.scheduler_class(net.optimizer_, **params)


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
    ValueError
        After the first epoch, if the history lacks the score.

    Warns
    -----
    UserWarning
        When training begins, for a score whose direction nobody knows.

    See Also
    --------
    CallbackSetLRScheduler
    """

    scheduler_class = lr_scheduler.ReduceLROnPlateau

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        super().on_train_begin(net, X=X, y=y, **kwargs)
        if vars(self)["mode"] is None:
            warn_of_unknown_direction(net, vars(self)["monitor"], "`mode`, 'min' or 'max'")

    def make(self, net: Net, dataset_train: Any) -> Any:
        params = self.get_params(deep=False)
        monitor = params.pop("monitor")
        if params["mode"] is None:
            params["mode"] = "min" if lower_is_better(net, monitor) else "max"
        return self.scheduler_class(net.optimizer_, **params)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        score = score_of(net.history.to_list()[-1], vars(self)["monitor"])
        self._follow(net)
        self.scheduler_.step(from_main_process(score))


def lr_scheduler_class(
    scheduler_class: type,
    *,
    step_on_epoch: bool = True,
    base: type[CallbackSetLRScheduler] = CallbackSetLRScheduler,
    label: str = "",
    **more: Any,
) -> type[CallbackSetLRScheduler]:
    """Make the callback class of a scheduler class.

    `more` are further parameters, and other defaults of those of the scheduler.
    """
    of_scheduler = inspect.signature(scheduler_class).parameters
    defaults = {name: p.default for name, p in of_scheduler.items() if name not in ("optimizer", "verbose")} | more
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()
    ]
    namespace = {
        "__doc__": f"``{scheduler_class.__name__}`` of torch as a callback, see `CallbackSetLRScheduler`.",
        "__signature__": inspect.Signature(parameters),
        "scheduler_class": scheduler_class,
        "step_on_epoch": step_on_epoch,
        "label": label,
    }
    given = {"step_on_epoch": step_on_epoch, "base": base, "label": label, **more}
    recipe = partial(lr_scheduler_class, scheduler_class, **given)
    return recipe_class(f"CallbackSetLRScheduler_{scheduler_class.__name__}", base, namespace, recipe)


def _was_step_skipped(net: Net) -> bool:
    """Check whether accelerate has left out the optimizer's last step."""
    return bool(getattr(getattr(net, "accelerator", None), "optimizer_step_was_skipped", False))


def _continue(old: dict[str, Any], new: dict[str, Any], rate: float | None) -> None:
    """Bring a group of a new optimizer to the same point of a schedule.

    Parameters
    ----------
    old, new : dict
        The groups of the two optimizers.
    rate : float, optional
        The rate of the old one before the schedule.
    """
    rate = old.get("initial_lr", old["lr"]) if rate is None else rate
    is_absolute = old.get("initial_lr", rate) != rate  # the schedule itself says where the rate begins
    factor = 1 if is_absolute or not rate else new["lr"] / rate
    new.update({key: value for key, value in old.items() if key not in new})
    new.update({key: old[key] * factor for key in ("lr", "initial_lr") if key in old})


def _point_at(scheduler: Any, optimizer: Any) -> None:
    """Let a scheduler, and those that it consists of, set the rates of another optimizer."""
    scheduler.optimizer = optimizer
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if getattr(scheduler, "_step_count", None) == 1:
        scheduler._step_count = 2  # at its first step torch would warn of an optimizer that it did not see before
    for part in getattr(scheduler, "_schedulers", ()):
        _point_at(part, optimizer)
