"""CallbackSetProgress: show one table of a training that is updated in place, or a bar and lines."""

from __future__ import annotations

from typing import Any, ClassVar

from skorch.callbacks import PrintLog
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_flag, check_whole
from mlr3torch_py.callbacks.progress_display import Display, display_for
from mlr3torch_py.callbacks.progress_state import Epoch, ProgressState, seconds_text
from mlr3torch_py.names import counted
from mlr3torch_py.protocols import Net, rates_in_use
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import row_of, rows_of
from mlr3torch_py.training.processes import is_main_process
from mlr3torch_py.training.trained import governed_modules
from mlr3torch_py.values import length_of

__all__ = ["CallbackSetProgress"]


class CallbackSetProgress(CallbackSet):
    """Show the batches of an epoch as a bar, and for each epoch its scores and what was unfrozen.

    In a notebook it is one table that is updated in place: losses, scores, learning rate, share of trainable weights,
    and by block what was unfrozen and frozen. When training has ended, nothing but the table is left, and saved. In a
    terminal a bar goes over the batches, and every epoch is a line with the same content; if the output is a file,
    there are only the lines. All of them say how training was resumed, and how it ended.

    Parameters
    ----------
    digits : int, optional
        The number of significant digits of a score, at least 1. By default, four decimals, as skorch prints
        them, or four significant digits of what is below 0.001.
    plot : bool
        Whether to draw the losses beneath the table, in a notebook.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is invalid.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("progress")``.
    plot_history : A picture of a training that has ended.

    Notes
    -----
    Ported from ``CallbackSetProgress`` of R's mlr3torch, where `digits` is 2. The bar of a terminal is tqdm's. The time
    at the end is that of all epochs in the history of the net, across ``partial_fit`` and resumed runs. While this
    callback shows a training, skorch does not print its own table, whatever ``verbose`` of the net is, unless its
    ``PrintLog`` has a `sink` of your own.

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> progress = t_clbk("progress", digits=3)
    >>> net = iris_net(max_epochs=2, callbacks=[progress]).fit(X, y)  # doctest: +ELLIPSIS
    Epoch 1/2: train.loss ..., valid.acc ..., valid.loss ..., lr 0.01 (0... s)
    Epoch 2/2: train.loss ..., valid.acc ..., valid.loss ..., lr 0.01 (0... s)
    Trained for 2 epochs (0... s)
    """

    label = "Progress"
    shows_progress: ClassVar[bool] = True
    has_settings: ClassVar[bool] = False
    state_: ProgressState | None = None
    display_: Display | None = None
    muted_: Any = ()
    rates_: Any = ()
    is_open_: bool = False

    def __init__(self, digits: int | None = None, plot: bool = False) -> None:
        self.digits = digits
        self.plot = plot

    def check_params(self) -> None:
        if self.digits is not None:
            check_whole("digits", self.digits, "significant digits", most=100)
        check_flag("plot", self.plot)

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        if is_main_process(net):
            self.display_ = display_for(plot=bool(self.plot))
        self.state_, self.is_open_ = ProgressState(total_epochs=net.max_epochs), False
        usual = (print, getattr(getattr(net, "accelerator", None), "print", None))
        printers = [one for _, one in net.callbacks_ if isinstance(one, PrintLog) and one.sink in usual]
        self.muted_ = [(printer, printer.sink) for printer in printers]
        for printer in printers:
            printer.sink = _Muted(printer.sink)
        return False

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        state = self.state_
        if state is None:
            return
        if self.ctx is not None:
            state.total_epochs = self.ctx.total_epochs
        if not state.number and len(net.history) > 1:
            how = "resumed" if self.ctx is not None and self.ctx.is_resumed else "continued"
            self._say(f"Training: {how} after epoch {len(net.history) - 1}")
        state.number, self.is_open_ = len(net.history), True
        self._begin_part(net, dataset_train, "train")

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training:
            optimizers = (getattr(net, f"{name}_", None) for name in net._optimizers)
            groups = (group for one in optimizers for group in getattr(one, "param_groups", ()))
            trained = (group for group in groups if any(tensor.requires_grad for tensor in group["params"]))
            self.rates_ = [float(group["lr"]) for group in trained if "lr" in group]

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if self.state_ is not None and self.display_ is not None:
            self.state_.n_batches += 1
            self.display_.batch_ended(self.state_)

    def on_before_valid(self, net: Net, **kwargs: Any) -> None:
        if self.ctx is not None and self.ctx.dataset_valid is not None:
            self._begin_part(net, self.ctx.dataset_valid, "valid")

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Wait: callbacks that follow have scores to record, see `find_late_score`."""

    def find_late_score(self, net: Net) -> None:
        """Show the epoch, once all callbacks of finite weight have recorded what they know of it."""
        state, row = self.state_, row_of(net.history, -1)
        if state is None or not self.is_open_:
            return
        self.is_open_ = False
        governed = [getattr(net, f"{name}_") for name in governed_modules(row)]
        n_weights = sum(one.numel() for module in governed for one in module.parameters() if not is_lazy(one))
        state.epochs.append(Epoch.of(row, len(net.history), [*self.rates_], n_weights, self.digits, rates_in_use(net)))
        state.losses.append((len(net.history), row.get("train_loss"), row.get("valid_loss")))
        if self.display_ is not None:
            self.display_.epoch_ended(state)

    def finish_epoch(self, net: Net) -> None:
        self.find_late_score(net)

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        state, ctx = self.state_, self.ctx
        if state is None or ctx is None:
            return
        rows = [row for row in rows_of(net.history) if "train_batch_count" in row]
        if not state.number:
            self._say("Training: finished already, nothing to train" if rows else "Training: nothing to train")
            return
        how = _how_it_ended(net, state.total_epochs, is_open=self.is_open_, terminates=ctx.terminate)
        trained = f"Trained for {counted(len(rows), 'epoch')} ({seconds_text(rows)})"
        self._say(f"{trained}: {how}" if how else trained)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        for printer, sink in self.muted_:
            printer.sink = sink
        if self.display_ is not None and self.state_ is not None:
            self.display_.close(self.state_)
        self.display_, self.state_, self.muted_ = None, None, ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"display_": None, "state_": None, "muted_": ()}

    def _begin_part(self, net: Net, dataset: Any, part: str) -> None:
        state = self.state_
        if state is not None and self.display_ is not None:
            state.part, state.n_batches = part, 0
            state.of_batches = length_of(net.get_iterator(dataset, training=part == "train"))
            self.display_.part_begins(state)

    def _say(self, note: str) -> None:
        if self.state_ is not None and self.display_ is not None:
            self.state_.notes.append(note)
            self.display_.say(self.state_)


class _Muted:
    """A sink that says nothing while a table is shown; copies of it are the sink in whose place it stands."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def __call__(self, line: str) -> None:
        """Say nothing."""

    def __reduce__(self) -> Any:
        return _same, (self._sink,)


def _same(sink: Any) -> Any:
    return sink


def _how_it_ended(net: Net, total_epochs: int, *, is_open: bool, terminates: bool) -> str:
    """Describe in words how training has ended; an empty string if it ended as planned."""
    epoch = len(net.history)
    if is_open:
        return f"interrupted in epoch {epoch}"
    if epoch >= total_epochs and not terminates:
        return ""
    has_stopped, best = terminates, None
    for _, callback in net.callbacks_:
        found = _stopped_by(callback)
        if found is not None:
            has_stopped, best = True, found
    if not has_stopped:
        return f"interrupted after epoch {epoch}"
    return f"stopped early at epoch {epoch}" + (f", best {best}" if best else "")


def _stopped_by(callback: Any) -> int | None:
    """Return the best epoch if a callback, ours or skorch's, has stopped training since a score stagnates."""
    misses = getattr(callback, "stagnation", getattr(callback, "misses_", None))
    patience = getattr(callback, "patience", None)
    if not isinstance(misses, int) or not isinstance(patience, int) or not 0 < patience <= misses:
        return None
    best = getattr(callback, "best_epoch", getattr(callback, "best_epoch_", None))
    return int(best) if isinstance(best, int) else None
