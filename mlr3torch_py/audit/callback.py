"""CallbackSetFreezeAudit: proves while a net trains that what is frozen does not change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

import pandas as pd
from torch import nn

from mlr3torch_py.arguments import check_choice, check_whole
from mlr3torch_py.audit.causes import describe_changes, describe_moving_buffers
from mlr3torch_py.audit.forward import ForwardWatch
from mlr3torch_py.audit.frozen import FrozenTensors
from mlr3torch_py.audit.report import AuditReport
from mlr3torch_py.audit.trainable import TrainableTensors
from mlr3torch_py.freezing.holder import freezing_callbacks
from mlr3torch_py.protocols import Net, last_event
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.processes import check_unsharded, is_main_process
from mlr3torch_py.warn import warn

__all__ = ["CallbackSetFreezeAudit"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

# Events are numbered from 1, and there are none without freezing callbacks.
_NO_EVENT: Final = 0


class CallbackSetFreezeAudit(CallbackSet):
    """Prove that what is frozen does not change by a bit, and that what is trainable moves.

    Whenever something is frozen or unfrozen, and after the training batches of every epoch, two kinds of tensors are
    compared with what they were: all parameters that did not require a gradient since the last time, and all buffers
    of parts of the network that were frozen as a whole, by callbacks or by hand, with the running statistics that norms
    in them keep in plain attributes. The network is ``module_``, and with it every other module of the net that a
    freezing callback governs by `module`; names in these begin with that of the module, as ``discriminator_.0.weight``.

    Parameters
    ----------
    on_change : "raise" or "warn"
        What to do when a frozen parameter, or a buffer of a module that is pinned in eval mode, has changed. Choose
        "warn" if that is meant, as for a teacher in the network that follows what is trained. A buffer that the forward
        pass of the network writes in eval mode too is only warned of, since freezing does not stop that.
    sample : int, optional
        How many values of each frozen tensor are compared, evenly spaced; all if missing.

    Raises
    ------
    RuntimeError
        If a frozen parameter or a pinned buffer has changed; the message names it and the likely cause.
    TypeError, ValueError
        When training begins, if an argument is wrong.

    Warns
    -----
    UserWarning
        If such a tensor has changed and `on_change` is "warn". Once in a training for each buffer of a frozen part that
        moves because its module is not pinned, with the option that stops it: the running statistics of normalisation,
        the power iteration of spectral_norm, codebooks, observers. A buffer that takes another shape is a table that is
        made for what comes in, and is not warned of. For trainable parameters that never moved, with the
        reason: no optimizer holds it, it never got a gradient, its gradient was zero, its learning rate is 0, or its
        updates have no effect. Where nothing moves at all, as with a learning rate of 0 for all, only the first two
        are said.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("freeze_audit")``.

    Notes
    -----
    It costs a copy of what is frozen, or of `sample` values of each tensor. These are read once more in each epoch and
    at each event, that is each time that something is frozen or unfrozen; what is trainable is hashed at each event.
    Batches 1, 2, 4, 8 and so on after an event, and the first of each epoch, are looked at closely: what is frozen is
    read before and after the forward pass, to tell whether that has written it, and what has not moved yet is hashed.
    On all other batches it costs next to nothing. Sparse tensors are left out, others whose values cannot be
    read, and in a distributed training the buffers of all processes but the main one, which sends them its own.

    What no freezing callback holds and something else unfreezes, such as skorch's Unfreezer or your own code, is
    compared until then.

    When training ends, one line in the log at the level INFO says how much was compared.

    Examples
    --------
    >>> import torch
    >>> from mlr3torch_py import select_last, t_clbk, torch_callback
    >>> net = iris_net(
    ...     max_epochs=2, callbacks=[t_clbk("unfreeze", starting_weights=select_last(1)), t_clbk("freeze_audit")],
    ...     module__neurons=2,
    ... ).fit(X, y)
    >>> dict(net.callbacks_)["freeze_audit"].report()
           name  frozen_from  frozen_to  comparisons  moved
    0  0.weight            1          2            2  False
    1    0.bias            1          2            2  False
    >>> def write(self):
    ...     with torch.no_grad():
    ...         self.ctx.network[0].bias += 1
    >>> net.set_params(callbacks=[*net.callbacks, torch_callback("write", on_epoch_end=write)]).fit(X, y)
    Traceback (most recent call last):
        ...
    RuntimeError: 0.bias changed while frozen, in batches 2 to 2: something wrote into it, such as a callback, an
    average of weights, or the loading of a file; if it is meant to change, set on_change="warn" of freeze_audit
    """

    label = "Freeze Audit"
    default_weight: ClassVar[float] = 500
    modules_: tuple[str, ...] = ()
    event_: Mapping[str, int | None] = MappingProxyType({})
    frozen_: dict[str, FrozenTensors] | None = None
    trainable_: dict[str, TrainableTensors] | None = None
    forward_: ForwardWatch | None = None
    report_: AuditReport | None = None
    warned_of_: frozenset[str] = frozenset()
    n_batches_: int = 0
    next_look_: int = 1
    is_looking_: bool = False
    is_checked_: bool = True

    def __init__(self, on_change: Literal["raise", "warn"] = "raise", sample: int | None = None) -> None:
        self.on_change = on_change
        self.sample = sample

    def report(self) -> pd.DataFrame:
        """Return what was compared in the last training.

        Returns
        -------
        pandas.DataFrame
            One row for each name and each stretch of epochs in which it was frozen: `name`, `frozen_from` and
            `frozen_to`, its first and last epoch, `comparisons`, how many times it was compared, and `moved`, whether
            a comparison found a difference. A tied tensor is compared once and has a row for each of its names.
        """
        return (self.report_ or AuditReport()).as_frame()

    def check_params(self) -> None:
        check_choice("on_change", self.on_change, ("raise", "warn"))
        if self.sample is not None:
            check_whole("sample", self.sample, "values")

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if not _audited(net):
            self.require_module(net)
        check_unsharded(net, "freeze_audit")
        self._forget()
        self.report_, self.warned_of_ = AuditReport(), frozenset()

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if not training:
            return
        if self.is_checked_:
            self.modules_ = _audited(net)
        events = {name: last_event(net, name) for name in self.modules_}
        changed = {name for name in events if events[name] != self.event_.get(name, _NO_EVENT)}
        if self.is_checked_:
            frozen = self.frozen_ or {}
            changed |= {name for name in self.modules_ if name in frozen and frozen[name].released(_network(net, name))}
        if changed or events.keys() != self.event_.keys():
            # The freezing callbacks have acted just now, and no step was taken since.
            self._check(net, self._batch() - 1)
            for name in self.modules_:
                if name in changed:
                    self._begin_stretch(net, name)
            self.event_, self.n_batches_, self.next_look_ = events, 0, 1
        self.n_batches_ += 1
        is_first_in_epoch, self.is_checked_ = self.is_checked_, False
        self.is_looking_ = is_first_in_epoch or self.n_batches_ == self.next_look_
        if self.n_batches_ == self.next_look_:
            self.next_look_ *= 2
        if self.is_looking_:
            self._look(net)

    def on_grad_computed(self, net: Net, named_parameters: Any = None, **kwargs: Any) -> None:
        for trainable in (self.trainable_ or {}).values():
            trainable.gradients_computed(look=self.is_looking_)

    def on_before_valid(self, net: Net, **kwargs: Any) -> None:
        # Not later, since callbacks may put better weights back when training ends.
        self._check(net, self._batch())
        for trainable in (self.trainable_ or {}).values():
            trainable.look_at_values()

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._check(net, self._batch())
        for name in self.trainable_ or ():
            self._check_trainable(net, name, self._batch())
        if self.report_ is not None:
            logger.info("freeze_audit %s", self.report_.summary())

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"event_": {}, "frozen_": None, "trainable_": None, "forward_": None}

    def _forget(self) -> None:
        if self.forward_ is not None:
            self.forward_.remove()
        self.event_, self.frozen_, self.trainable_, self.forward_ = {}, None, None, None
        self.is_checked_ = True

    def _begin_stretch(self, net: Net, name: str) -> None:
        """Keep what a module is at an event."""
        batch = self._batch()
        self._check_trainable(net, name, batch - 1)
        self._keep_frozen(net, name, batch)
        self.trainable_ = self.trainable_ or {}
        self.trainable_[name] = TrainableTensors(_network(net, name), self.trainable_.get(name), batch=batch)

    def _keep_frozen(self, net: Net, name: str, batch: int) -> None:
        self.report_, self.frozen_ = self.report_ or AuditReport(), self.frozen_ or {}
        self.frozen_[name] = FrozenTensors(
            _network(net, name),
            freezing_callbacks(net, name),
            self.report_,
            self.frozen_.get(name),
            place=_place(name),
            epoch=len(net.history),
            batch=batch,
            sample=None if self.sample is None else int(self.sample),
            # DistributedDataParallel writes the buffers of the main process into those of all others.
            with_buffers=is_main_process(net),
        )

    def _look(self, net: Net) -> None:
        """Look closely at this batch: at what has moved by now, and at its forward pass."""
        if self.forward_ is not None:
            self.forward_.remove()
        if (frozen := self.frozen_) is None or (trainable := self.trainable_) is None:
            return
        for one in trainable.values():
            one.look_at_values()

        def before() -> None:
            for name, tensors in frozen.items():
                tensors.before_forward(_network(net, name))

        def after(outputs: Any) -> None:
            for name, tensors in frozen.items():
                tensors.after_forward(_network(net, name))
            for one in trainable.values():
                one.forward_done(outputs)

        self.forward_ = ForwardWatch(net, before, after)

    def _check(self, net: Net, batch: int) -> None:
        if self.is_checked_ or self.frozen_ is None:
            return
        self.is_checked_ = True
        for name, tensors in self.frozen_.items():
            moved = tensors.moved(_network(net, name), len(net.history), batch)
            free = [one for one in moved if not one.must_stay and one.label not in self.warned_of_]
            if free:
                self.warned_of_ |= {one.label for one in free}
                warn(describe_moving_buffers(free, batch))
            if changed := [one for one in moved if one.must_stay]:
                message = describe_changes(changed, _network(net, name), batch)
                if self.on_change == "raise":
                    raise RuntimeError(f'{message}; if it is meant to change, set on_change="warn" of freeze_audit')
                warn(message)
                self._keep_frozen(net, name, batch + 1)

    def _check_trainable(self, net: Net, name: str, batch: int) -> None:
        if self.trainable_ is not None and name in self.trainable_:
            optimizers = [getattr(net, f"{optimizer}_", None) for optimizer in net._optimizers]
            if complaints := self.trainable_[name].complaints(_network(net, name), optimizers, batch, _place(name)):
                warn("; ".join(complaints))

    def _batch(self) -> int:
        return 0 if self.ctx is None else self.ctx.global_step


def _audited(net: Net) -> tuple[str, ...]:
    """List the modules of a net to be looked at: ``module_``, and those that freezing callbacks govern."""
    governed = (callback.module for callback in freezing_callbacks(net))
    return tuple(dict.fromkeys([*["module"] * hasattr(net, "module_"), *governed]))


def _network(net: Net, name: str) -> nn.Module:
    network: nn.Module = getattr(net, f"{name}_")
    return network


def _place(name: str) -> str:
    return "" if name == "module" else f"{name}_."
