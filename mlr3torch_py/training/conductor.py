"""The order of callbacks, the stages that skorch lacks, and the stage ``exit`` on every way out of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from skorch.callbacks import Callback, PrintLog

from mlr3torch_py.training.clock import moment_of
from mlr3torch_py.training.context import ContextTorch

__all__ = ["conduct"]


def conduct(net: Any, first: Any, X: Any, y: Any, **kwargs: Any) -> bool:
    """Begin all callbacks of a net in the order of their weights, once in a call of ``fit``.

    The first CallbackSet whose begin is reached does that for all: callbacks of skorch that stand before it have begun,
    the others follow here, and the list that skorch is going through ends.

    Parameters
    ----------
    net : skorch.NeuralNet
    first : CallbackSet
        Who asks.

    Returns
    -------
    bool
        Whether all have begun. Otherwise `first` is on its own.
    """
    if first.ctx_ is not None and any(getattr(one, "ctx_of_net_", None) is first.ctx_ for _, one in net.callbacks_):
        return False
    going_through = net.callbacks_
    position = next((i for i, (_, callback) in enumerate(going_through) if callback is first), None)
    if position is None:
        return False
    return _begin(net, going_through, position, X, y, **kwargs)


def _begin(net: Any, going_through: list[Any], position: int, X: Any, y: Any, **kwargs: Any) -> bool:
    has_begun = [callback for _, callback in going_through[:position]]
    in_order = sorted((item for item in going_through if not isinstance(item[1], (_First, _Last))), key=_rank)
    del going_through[position + 1 :]
    ctx = ContextTorch(net)
    first, last = _First(ctx), _Last(ctx)
    net.callbacks_ = [("context_begin", first), *in_order, ("context_end", last)]
    try:
        for callback in _sets(net):
            callback.require_params()
        for callback in _sets(net):
            callback.ctx_ = ctx
            ctx.keeps_outputs |= callback.keeps_outputs
        for callback in _sets(net):
            if callback.before_begin(net, X, y):
                has_begun = []
        first.begin(net)
        for _, callback in in_order:
            if not any(callback is other for other in has_begun):
                callback.on_train_begin(net, X=X, y=y, **kwargs)
    except BaseException as error:
        _exit(net, ctx, during=error)
        raise
    # Where skorch calls it, the guard takes itself out again, so that clones and pickles never see it.
    net.__dict__["fit_loop"] = _Guard(net, ctx)
    return True


def _rank(item: tuple[str, Any]) -> tuple[float, int]:
    """Callbacks of skorch weigh nothing, and its PrintLog shows what all finite weights have done."""
    callback = item[1]
    if isinstance(callback, PrintLog):
        return math.inf, 0
    return getattr(callback, "weight", 0) if _is_set(callback) else 0, 1


def _is_set(callback: Any) -> bool:
    return hasattr(callback, "ctx_")


def _sets(net: Any) -> list[Any]:
    return [callback for _, callback in net.callbacks_ if _is_set(callback)]


def _exit(net: Any, ctx: ContextTorch, during: BaseException | None = None) -> None:
    """Run the stage ``exit``; an error in it is noted on the one that training ends by, if there is one."""
    net.__dict__.pop("fit_loop", None)
    mine = [callback for callback in _sets(net) if callback.ctx_ is ctx]
    net.callbacks_ = [item for item in net.callbacks_ if not isinstance(item[1], (_First, _Last))]
    raised: list[BaseException] = []
    for callback in mine:
        try:
            callback.on_exit(net)
        except BaseException as error:
            raised.append(error)
    for callback in mine:
        callback.ctx_ = None
    if during is not None:
        for other in raised:
            during.add_note(f"the stage exit raised too: {other!r}")
    elif raised:
        raise raised[0]


class _Guard:
    """Stands in for ``net.fit_loop`` for one call, and runs the stage ``exit`` when it raises."""

    def __init__(self, net: Any, ctx: ContextTorch) -> None:
        self.net = net
        self.ctx = ctx

    def __call__(self, *args: Any, epochs: int | None = None, **kwargs: Any) -> Any:
        del self.net.__dict__["fit_loop"]
        try:
            return self.net.fit_loop(*args, epochs=self.ctx.epochs_left(epochs), **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _exit(self.net, self.ctx, during=error)
            raise


class _Internal(Callback):  # type: ignore[misc]
    """A callback that is there while a net trains only; a copy of it is inert."""

    def __init__(self, ctx: ContextTorch | None) -> None:
        self.ctx_of_net_ = ctx

    def __getstate__(self) -> dict[str, Any]:
        return {"ctx_of_net_": None}

    @property
    def ctx(self) -> ContextTorch:
        return cast(ContextTorch, self.ctx_of_net_)


class _First(_Internal):
    """Runs before all callbacks: keeps the context, and calls the stages that skorch lacks."""

    def begin(self, net: Any) -> None:
        self.ctx.global_step = moment_of(net.history).batch

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        _begin(net, net.callbacks_, 0, X, y, **kwargs)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.in_validation_, self.is_new_epoch_ = False, True
        if self.ctx_of_net_ is not None:
            if self.ctx.dataset_train is None:  # a history may have been loaded since training began
                self.ctx.global_step = moment_of(net.history).batch
                for callback in _sets(net):
                    callback.before_first_epoch(net, dataset_train)
            self.ctx.dataset_train, self.ctx.dataset_valid, self.ctx.y_hats = dataset_train, dataset_valid, []

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        ctx = self.ctx_of_net_
        if ctx is None:
            return
        ctx.batch = batch
        if training:
            ctx.step = 1 if ctx.step is None or self.is_new_epoch_ else ctx.step + 1
            ctx.global_step += 1
            self.is_new_epoch_ = False
            return
        if not self.in_validation_:
            self.in_validation_ = True
            ctx.y_hats = []
            _call(net, "on_before_valid")
        _call(net, "on_batch_valid_begin", batch=batch)

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool | None = None, y_pred: Any = None, **kwargs: Any
    ) -> None:
        ctx = self.ctx_of_net_
        if ctx is None:
            return
        ctx.y_hat = y_pred.detach() if hasattr(y_pred, "detach") else y_pred
        if ctx.keeps_outputs:
            ctx.y_hats.append(ctx.y_hat)
        if not training:
            _call(net, "on_batch_valid_end", batch=batch)

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.ctx_of_net_ is not None:
            _call(net, "on_valid_end" if self.in_validation_ else "on_before_valid")

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        going_through, net.callbacks_ = net.callbacks_, list(net.callbacks_)
        del going_through[1:]
        try:
            for _, callback in net.callbacks_[1:]:
                callback.on_train_end(net, X=X, y=y, **kwargs)
        except BaseException as error:
            _exit(net, self.ctx, during=error)
            raise
        _exit(net, self.ctx)


class _Last(_Internal):
    """Runs after all callbacks: lets go of a batch, and ends a training that is to be terminated."""

    def on_batch_end(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if self.ctx_of_net_ is not None:
            self.ctx_of_net_.batch = None

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.ctx_of_net_ is not None and self.ctx.terminate:
            raise KeyboardInterrupt


def _call(net: Any, hook: str, **kwargs: Any) -> None:
    stage: Callable[..., None]
    for callback in _sets(net):
        stage = getattr(callback, hook)
        stage(net, **kwargs)
