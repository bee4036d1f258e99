"""Learning-rate schedulers of torch as callbacks; they step as in mlr3torch and continue after a stop."""

from __future__ import annotations

import inspect
import re
import warnings
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np
from torch.optim import lr_scheduler

from mlr3torch_py.arguments import check_number, check_whole
from mlr3torch_py.callbacks.lr_arguments import ThrowAway, Trial, check_arguments, is_of_torch
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.training.clock import take_back_epoch
from mlr3torch_py.training.recipe import recipe_class

__all__ = [
    "CallbackSetLRScheduler",
    "lr_scheduler_class",
    "name_of",
]

_RATES: Final[tuple[str, ...]] = ("lr", "initial_lr", "momentum", "betas")
_EVENT: Final = "event_lr"


class CallbackSetLRScheduler(CallbackSet):
    """Base of the learning-rate schedulers: a scheduler of ``torch.optim.lr_scheduler`` as a callback.

    It makes the scheduler at the first epoch, and steps it at the end of each epoch or after each training batch.

    Parameters
    ----------
    **params
        Those of the scheduler, without the optimizer.

    Raises
    ------
    TypeError, ValueError
        When training begins, if a parameter is wrong. The scheduler is tried out on a copy of the optimizer's groups.

    See Also
    --------
    as_lr_scheduler : For a scheduler that has no key.

    Notes
    -----
    Ported from ``CallbackSetLRScheduler`` of R's mlr3torch. When training continues, by ``partial_fit`` or from a
    pickle, so do the scheduler and the rates. When the optimizer is replaced during training, the scheduler continues
    with the new one; if that has another rate, in proportion to it. A scheduler that steps after each batch does not
    step when accelerate has left out the step of the optimizer, as it does when gradients overflow in mixed precision,
    and between the updates of gradient accumulation.

    The history has the learning rate of the first param group as `event_lr`, as with skorch's ``LRScheduler``: in the
    row of each epoch, and for a scheduler that steps after each batch also by batch.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> net = iris_net(lr=0.1, max_epochs=4, callbacks=[t_clbk("lr_step", step_size=2)]).fit(X, y)
    >>> round(net.optimizer_.param_groups[0]["lr"], 6)
    0.001
    """

    scheduler_class: ClassVar[Any] = lr_scheduler.LRScheduler
    step_on_epoch: ClassVar[bool] = True
    gone_params = MappingProxyType({"verbose": "torch's schedulers no longer have it"})
    scheduler_: Any = None
    state_: dict[str, Any] | None = None
    rates_: tuple[float, ...] | None = None

    def __init__(self, **params: Any) -> None:
        bound = inspect.signature(type(self)).bind(**params)
        bound.apply_defaults()
        self.__dict__.update(bound.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The parameters that are set, checked, as plain Python values."""
        given = {name: value for name, value in self.get_params(deep=False).items() if value is not REQUIRED}
        return check_arguments(self.scheduler_class, inspect.signature(type(self)).parameters, given)

    def check_params(self) -> None:
        self.arguments  # noqa: B018

    def build(self, optimizer: Any, arguments: dict[str, Any]) -> Any:
        """Make the scheduler for an optimizer."""
        return self.scheduler_class(optimizer, **arguments)

    def make(self, net: Net, dataset_train: Any) -> Any:
        """Make the scheduler for the optimizer of a net."""
        return self.build(net.optimizer_, self.arguments)

    def simulate(self, steps: int, initial_lr: float = 0.01, step_args: Any = None) -> np.ndarray[Any, Any]:
        """Return the learning rates of the next steps, without training.

        Parameters
        ----------
        steps : int
            The number of steps: of epochs, or of training batches if the scheduler steps after each batch.
        initial_lr : float
            The learning rate of the optimizer.
        step_args : float or sequence of float, optional
            The score of every step, or of each, for a scheduler that monitors one.

        Returns
        -------
        numpy.ndarray
            Shape ``(steps,)``: the rate in each step, before it is changed at its end.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter of the scheduler is wrong.

        Examples
        --------
        >>> from mlr3torch_py import t_clbk
        >>> t_clbk("lr_step", step_size=2).callback.simulate(5, initial_lr=1.0).round(3)
        array([1.  , 1.  , 0.1 , 0.1 , 0.01])
        """
        check_whole("steps", steps, "steps", most=10**7)
        rate = check_number("initial_lr", initial_lr, "a learning rate, at least 0", least=0)
        self.require_params()
        group = {"lr": rate, "momentum": 0.9, "betas": (0.9, 0.999)}
        optimizer = ThrowAway([group], group)
        arguments = self._arguments_for(int(steps))
        self._try(optimizer, arguments)
        scheduler, rates = self.build(optimizer, arguments), []
        for step in range(int(steps)):
            rates.append(optimizer.rates[0])
            optimizer.step()
            scores = np.ravel(step_args) if step_args is not None else ()
            scheduler.step(*([float(scores[step % len(scores)])] if len(scores) else self._trial_scores))
        return np.array(rates)

    _trial_scores: ClassVar[tuple[float, ...]] = ()

    def _arguments_for(self, n_steps: int) -> dict[str, Any]:
        """Complete the arguments for a number of steps."""
        return self.arguments

    def _try(self, optimizer: Any, arguments: dict[str, Any], n_steps: int = 1) -> None:
        """Try the scheduler out on a copy of an optimizer's groups."""
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        trial = Trial(self.build, optimizer, [self._trial_scores] * n_steps, is_whole=n_steps > 1)
        trial.check(name_of(self.scheduler_class), arguments, defaults)

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._try(net.optimizer_, self._arguments_for(100))
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
        if training and not self.step_on_epoch:
            net.history.record_batch(_EVENT, _rate(net))
            if not _was_step_left_out(net):
                self._follow(net)
                self.scheduler_.step()

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._record(net)
        if self.step_on_epoch:
            self._follow(net)
            self.scheduler_.step()

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self.state_, self.scheduler_ = self.state_dict(), None

    def _record(self, net: Net) -> None:
        """Record the rate of the epoch, unless another scheduler has done so before it stepped."""
        if _EVENT not in net.history.to_list()[-1]:
            net.history.record(_EVENT, _rate(net))

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


def lr_scheduler_class(
    scheduler_class: Any,
    *,
    step_on_epoch: bool = True,
    base: type[CallbackSetLRScheduler] = CallbackSetLRScheduler,
    label: str = "",
    **more: Any,
) -> type[CallbackSetLRScheduler]:
    """Make the callback class of a scheduler class, or of a function that makes a scheduler for an optimizer.

    `more` are further parameters, and other defaults of those of the scheduler.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {
        p.name: p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty)
        for p in list(inspect.signature(scheduler_class).parameters.values())[1:]
        if p.kind in named and (p.name != "verbose" or not is_of_torch(scheduler_class))
    }
    for name, value in more.items():
        parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
    name = name_of(scheduler_class)
    namespace = {
        "__doc__": f"``{name}`` as a callback, see `CallbackSetLRScheduler`.",
        "__signature__": inspect.Signature(list(parameters.values())),
        "scheduler_class": scheduler_class if isinstance(scheduler_class, type) else staticmethod(scheduler_class),
        "step_on_epoch": step_on_epoch,
        "label": label,
    }
    given = {"step_on_epoch": step_on_epoch, "base": base, "label": label, **more}
    recipe = partial(lr_scheduler_class, scheduler_class, **given)
    return recipe_class(f"CallbackSetLRScheduler_{name}", base, namespace, recipe)


def name_of(scheduler: Any) -> str:
    """Return the name of a scheduler class, or of a function that makes a scheduler, as part of an identifier.

    Examples
    --------
    >>> name_of(partial(lr_scheduler_class, base=None))
    'lr_scheduler_class'
    """
    while isinstance(scheduler, partial):
        scheduler = scheduler.func
    name = getattr(scheduler, "__name__", type(scheduler).__name__)
    return re.sub(r"_+", "_", re.sub(r"\W", "", name)).strip("_") or "function"


def _rate(net: Net) -> float:
    return float(net.optimizer_.param_groups[0]["lr"])


def _was_step_left_out(net: Net) -> bool:
    """Check whether accelerate has left out the optimizer's last step."""
    accelerator = getattr(net, "accelerator", None)
    return accelerator is not None and (
        bool(accelerator.optimizer_step_was_skipped) or getattr(accelerator, "sync_gradients", True) is False
    )


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
