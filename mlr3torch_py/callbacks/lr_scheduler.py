"""Learning-rate schedulers of torch as callbacks; they step as in mlr3torch and continue after a stop."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final
from warnings import catch_warnings

import numpy as np
from torch.optim import lr_scheduler

from mlr3torch_py.arguments import check_number, check_whole
from mlr3torch_py.callbacks.lr_arguments import (
    ThrowAway,
    Trial,
    check_arguments,
    check_scores,
    first_state_of,
    is_of_torch,
    name_of,
    with_attributes,
)
from mlr3torch_py.callbacks.lr_groups import copied, kept_rates, move_to, rates_of, reset_rates, set_rates
from mlr3torch_py.callbacks.lr_state import (
    RATE,
    Progress,
    error_of_step,
    failure_of,
    merged,
    n_updates,
    simulated_rates,
    take_step,
    was_step_left_out,
)
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet, check_state
from mlr3torch_py.training.clock import has_ended, row_of, rows_of, take_back_epoch
from mlr3torch_py.warn import warn

__all__ = ["CallbackSetLRScheduler"]

_OWN: Final = "callback"


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
        When training begins, if a parameter is wrong: the scheduler is tried out on a copy of the optimizer's groups.
        Later, if it has no possible rate for an epoch or a batch that is to be trained.

    Warns
    -----
    UserWarning
        At the first epoch, if the net has trained before and the history does not tell how far the schedule is.

    See Also
    --------
    as_lr_scheduler : For a scheduler that has no key.

    Notes
    -----
    Ported from ``CallbackSetLRScheduler`` of R's mlr3torch. When training continues, by ``partial_fit`` or from a
    pickle, so do the scheduler and the rates, also if another callback has ended training, or copied the net, at the
    end of an epoch before the scheduler's turn. If the history was taken back or loaded, or another net has used the
    callback in between, the scheduler is stepped over the epochs of the history. Arguments that are changed between
    calls, also in the script of a resumed run, count from then on; the rates continue from where they are. When the
    optimizer is replaced during training, the scheduler continues with the new one; if that has another rate, in
    proportion to it. A scheduler that steps after each batch does not step when accelerate has left out the step of the
    optimizer, as it does when gradients overflow in mixed precision, and between the updates of gradient accumulation.

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
    gone_params: ClassVar[Mapping[str, str]] = MappingProxyType({"verbose": "torch's schedulers no longer have it"})
    _trial_scores: ClassVar[tuple[float, ...]] = ()
    scheduler_: Any = None
    state_: dict[str, Any] | None = None
    first_state_: Any = None
    rates_: tuple[float, ...] | None = None
    rate_: Any = None  # of the last update
    n_ended_: int = 0  # the epochs at whose end it has acted
    left_: tuple[float, ...] | None = None
    has_rates_: bool = True
    is_stale_: bool = False
    is_in_history_: bool = False
    is_alone_: bool = True
    owed_: Sequence[float] | None = None  # the scores of a step that has failed

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
        if is_of_torch(self.scheduler_class):
            arguments = {name: with_attributes(value) for name, value in arguments.items()}
        return self.scheduler_class(optimizer, **arguments)

    def _arguments_in(self, net: Net, dataset_train: Any) -> dict[str, Any]:
        """Complete the arguments for a net."""
        return self.arguments

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
        steps = check_whole("steps", steps, "steps", most=10**7)
        rate = check_number("initial_lr", initial_lr, "a learning rate, at least 0", least=0)
        self.require_params()
        group = {"lr": rate, "momentum": 0.9, "betas": (0.9, 0.999)}
        optimizer = ThrowAway([group], group)
        arguments = self._arguments_for(steps)
        self._try(optimizer, arguments)
        scores = list(self._trial_scores) if step_args is None else check_scores(step_args)
        return simulated_rates(self.build(optimizer, arguments), steps, scores, self.scheduler_class, arguments)

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
        if not hasattr(net, "optimizer_"):
            raise TypeError(
                f"{type(self).__name__} schedules `optimizer_`, which {type(net).__name__} lacks; call the main "
                "optimizer so, or step schedulers of torch in a callback of your own"
            )
        self._try(net.optimizer_, self._arguments_for(100))
        self.scheduler_ = None
        if len(net.history) == 0:
            self.state_ = None

    def after_begin(self, net: Net, X: Any, y: Any) -> None:
        """Drop the state of another net, or of another history."""
        self.is_stale_ = not self.belongs_to(net)
        if not self._can_use_state(net):
            self.state_ = None

    def _can_use_state(self, net: Net) -> bool:
        return self.belongs_to(net)

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        """Find out, before any scheduler acts, what the optimizer and the history have of this schedule."""
        others = [one for _, one in net.callbacks_ if isinstance(one, CallbackSetLRScheduler) and one is not self]
        is_added = self.owner_ is None and any(other.state_ is not None for other in others)
        self.is_in_history_ = not is_added and any(RATE in row for row in rows_of(net.history))
        self.is_alone_ = not others
        owner = self.owner_  # of whose history epochs may have been taken back, but not their rates
        is_left = owner is not None and not owner.fits(net) and owner.may_be(net) and self.left_ == rates_of(net)
        self.has_rates_ = all("initial_lr" in group for group in net.optimizer_.param_groups) and not is_left
        if self.state_ is None and not self.has_rates_:
            reset_rates(net.optimizer_)

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._follow(net, dataset_train)
        self._make_up(net)
        self.rate_, self.n_ended_ = None, len(net.history) - 1

    def _set_up(self, net: Net, dataset_train: Any) -> None:
        """Make the scheduler, at the point that the training has reached."""
        if self.state_ is None:
            self.rates_ = rates_of(net, "initial_lr" if self.is_in_history_ and self.has_rates_ else "lr")
        try:
            arguments = self._arguments_in(net, dataset_train)
        except ValueError:
            take_back_epoch(net)
            raise
        self.first_state_, self.owed_ = first_state_of(self.build, net.optimizer_, arguments), None
        if self.state_ is not None:
            self._continue(self.state_, net.optimizer_, arguments)
            self._end_last_epoch(net, self.state_.get(_OWN, {}).get("n_ended"))
        elif self.is_in_history_:
            self._work_out(net, arguments)
        else:
            self._start(net, arguments)

    def _start(self, net: Net, arguments: dict[str, Any], why: str = "") -> None:
        """Start the schedule."""
        if len(net.history) > 1:
            warn(
                f"{type(self).__name__} starts from its first step at epoch {len(net.history)}, since it has no state "
                f"of the earlier epochs{why}; to continue, use load_state_dict() or a pickle of the net"
            )
        self.scheduler_ = self.build(net.optimizer_, arguments)

    def _continue(self, state: dict[str, Any], optimizer: Any, arguments: dict[str, Any]) -> None:
        """Continue from a state, with the arguments and the rates of now."""
        kept = {key: value for key, value in state.items() if key != _OWN}
        self.owed_ = state.get(_OWN, {}).get("owed")
        loaded = merged(kept, state.get(_OWN, {}).get("first_state"), self.first_state_, arguments)
        current = kept_rates(optimizer)
        if loaded is not kept:  # other arguments may say where the rates begin
            current = kept_rates(optimizer, "lr", "momentum", "betas")
            reset_rates(optimizer)
        self.scheduler_ = self.build(optimizer, arguments)
        self.scheduler_.load_state_dict(loaded)
        set_rates(optimizer, current)

    def _end_last_epoch(self, net: Net, n_ended: int | None) -> None:
        """Act at the end of the last epoch, if the state was kept, in a copy of the net, before the scheduler could."""
        if n_ended == (last := len(net.history) - 1) - 1 and has_ended(row_of(net.history, last - 1)):
            with catch_warnings(action="ignore"):  # of torch, which has not seen the optimizer's steps
                self._end_epoch(net, last)

    def _work_out(self, net: Net, arguments: dict[str, Any]) -> None:
        """Step over the epochs of the history; keep the rates of now, if they are of that history."""
        optimizer = net.optimizer_
        current, keys = kept_rates(optimizer), [list(group) for group in optimizer.param_groups]
        if self.has_rates_:
            set_rates(optimizer, [{"lr": group["initial_lr"]} for group in optimizer.param_groups])
        self.scheduler_ = self.build(net.optimizer_, arguments)
        progress, rows = Progress(self.scheduler_, net), rows_of(net.history)[:-1]
        unmarked = progress.repeat(rows, lambda row: self._steps_in(net, row), is_by_epoch=self.step_on_epoch)
        differs = self.is_alone_ and progress.differs
        found = f"{progress.rate:g} for epoch {progress.epoch}, where the history has {progress.recorded:g}"
        if differs and self.owner_ is None:
            set_rates(optimizer, current)
            for group, before in zip(optimizer.param_groups, keys, strict=True):
                for key in group.keys() - set(before):
                    del group[key]
            self._start(net, arguments, f", whose rates are not those of this schedule: it gives {found}")
            return
        if self.has_rates_ and unmarked is None:  # otherwise the optimizer too was kept before the last step
            set_rates(optimizer, current)
        if differs and self.is_stale_:
            warn(
                f"{type(self).__name__} was stepped over the epochs of the history, since its state is of another net "
                f"or of other epochs; but it gives the rate {found}; give it the arguments with which they were trained"
            )

    def _steps_in(self, net: Net, row: Mapping[str, Any]) -> list[tuple[float, ...]]:
        """Return the arguments of each step in an epoch of the history."""
        return [()] * (int(RATE in row) if self.step_on_epoch else n_updates(net, row))

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            self._follow(net)
        if training and not self.step_on_epoch:
            self._make_up(net)

    def after_update(self, net: Net) -> None:
        self.rate_ = copied(net.optimizer_.param_groups[0]["lr"])

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and not self.step_on_epoch:
            net.history.record_batch(RATE, rates_of(net)[0])
            if not was_step_left_out(net):
                self._step(net)
            self.after_update(net)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self._end_epoch(net, len(net.history))

    def finish_epoch(self, net: Net) -> None:
        if self.scheduler_ is not None and self.n_ended_ < len(net.history):
            self._end_epoch(net, len(net.history))

    def _end_epoch(self, net: Net, epoch: int) -> None:
        """Record the rate of an epoch, unless another scheduler has done so before it stepped; step."""
        if RATE not in (row := row_of(net.history, epoch - 1)):
            record = net.history.record if epoch == len(net.history) else row.__setitem__
            record(RATE, rates_of(net)[0] if self.rate_ is None else float(self.rate_))
        self.n_ended_ = epoch
        self._step_by_epoch(net, epoch)

    def _step_by_epoch(self, net: Net, epoch: int) -> None:
        if self.step_on_epoch:
            self._step(net)

    def _step(self, net: Net, *scores: float) -> None:
        """Step; a step that fails matters only if training continues."""
        self._follow(net)
        self.owed_ = scores if take_step(self.scheduler_, scores) is not None else None

    def _make_up(self, net: Net) -> None:
        """Take the step that has failed, and check the rates, which are needed now."""
        if (error := failure_of(self.scheduler_, self.owed_)) is not None:
            raise error_of_step(error, self.scheduler_class, f"in epoch {len(net.history)}", self.arguments) from error
        self.owed_ = None

    def epochs_have_ended(self, net: Net) -> None:
        if self.scheduler_ is not None:  # otherwise no epoch has begun
            super().epochs_have_ended(net)
            self.left_ = rates_of(net)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self.state_, self.scheduler_ = self.state_dict(), None

    @property
    def numbers(self) -> tuple[str, ...]:
        return (RATE,)

    def _follow(self, net: Net, dataset_train: Any = None) -> None:
        """Make the scheduler; if the net has replaced its optimizer, schedule the new one from the current step on."""
        if self.scheduler_ is None:
            self._set_up(net, dataset_train)
        if self.scheduler_.optimizer is not net.optimizer_:
            move_to(self.scheduler_, net.optimizer_, self.rates_ or (), type(self).__name__)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the scheduler; None before any training.

        Returns
        -------
        dict or None
            That of torch's scheduler, and as `callback` the state in which it started, by which other arguments are
            noticed when it is loaded.
        """
        if self.scheduler_ is None:
            return self.state_
        own = {"first_state": self.first_state_, "owed": self.owed_, "n_ended": self.n_ended_, **self._more_state()}
        return {**self.scheduler_.state_dict(), _OWN: own}

    def _more_state(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore a state; it takes effect when a net with a history begins its next epoch.

        The arguments that the scheduler has by then count, not those with which the state was made.

        Parameters
        ----------
        state : dict or None
            As `state_dict` returns it.

        Raises
        ------
        TypeError
            If it has another form.
        """
        if state is not None:
            check_state(state, *(["last_epoch"] if is_of_torch(self.scheduler_class) else []))
        self.state_, self.owner_ = state, None

    def __getstate__(self) -> dict[str, Any]:
        left = self.left_ if self.ctx is None else rates_of(self.ctx.net)
        return super().__getstate__() | {"scheduler_": None, "state_": self.state_dict(), "left_": left}
