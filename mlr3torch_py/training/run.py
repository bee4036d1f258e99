"""Runs: one call of ``fit`` with all stages, by weight, on any net of skorch.

skorch trains in three steps: it calls ``on_train_begin`` of each callback in ``net.callbacks_``; then ``net.fit_loop``,
which calls the other hooks in the same way; then ``on_train_end``. It knows no weights and no stages around validation,
and when training raises it tells no callback. A `Run` adds that, in four steps:

1. Start. The first CallbackSet whose ``on_train_begin`` skorch calls starts the run. The run empties the list that
   skorch is iterating over, which ends skorch's loop, and calls ``on_train_begin`` of the remaining callbacks itself.
   So it notices when one of them raises.
2. Training. ``net.callbacks_`` is sorted by weight, between two callbacks of the run. `First` updates ``ctx`` and
   calls the stages that skorch lacks. `Scored`, after all finite weights, lets callbacks read the scores that others
   have recorded after them. `Last` stops training if ``ctx.terminate`` is set, and sorts again if somebody
   has changed the list. For one call, `Run.fit_loop` stands in for ``net.fit_loop``, to notice when training raises;
   if it does so in ``on_epoch_end``, callbacks that have not had their turn finish the epoch, which is complete.
3. End. `First` lets the run end: it empties skorch's list once more, and calls every ``on_train_end`` itself.
4. Exit. After the end, or when anything above raises, the run puts ``net.callbacks_`` back in skorch's order, and calls
   the stage ``exit`` of each CallbackSet.

Copies of a net that are made during training are not part of the run: pickle and deepcopy turn these three into a mere
`Adaptor`, which starts a run of its own when the copy is trained.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any, Final

from skorch.callbacks import Callback, PrintLog

from mlr3torch_py.frames import hide_frames, short_traceback
from mlr3torch_py.network.internals import check_internals
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.adaptors import First, Last, LiveAdaptor, Scored
from mlr3torch_py.training.clock import moment_of, take_back_epoch
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.monitors import check_monitor, warn_of_missing_scores
from mlr3torch_py.training.order import NamedCallback, by_weight, check_names_of_callbacks, has, in_skorchs_order
from mlr3torch_py.training.outputs import OutputRecorder
from mlr3torch_py.training.printed import restore_table, shorten_table
from mlr3torch_py.training.processes import are_several, is_main_process, on_main_process
from mlr3torch_py.training.stages import StagedCallback, is_staged
from mlr3torch_py.training.stand_in import StandIn

__all__ = ["Run", "must_start_run"]

_JOINING: Final = threading.RLock()  # of two threads, one at a time takes callbacks into its run


class Run:
    """One call of ``fit`` of a net.

    Attributes
    ----------
    net : skorch.NeuralNet
    ctx : ContextTorch
        What the callbacks see of the run.
    in_order : list of tuple
        The callbacks of the net, with their names, in the order in which they run.
    staged : list of StagedCallback
        Those among them that have stages.
    joined : list of StagedCallback
        The same, and those that were removed from the net during the run; they exit too.
    """

    def __init__(self, net: Net) -> None:
        check_internals("skorch.NeuralNet", net)
        self.net = net
        self.ctx: ContextTorch = ContextTorch(net)
        self.in_order: list[NamedCallback] = []
        self.staged: list[StagedCallback] = []
        self.joined: list[StagedCallback] = []
        self._n_batches = 0
        self._in_validation = False
        self._beginning = 0
        self._is_ending = False  # an epoch, in the stage epoch_end
        self._acts_after_backward = False
        self._outputs = OutputRecorder(self.ctx)
        self._stand_ins: dict[str, StandIn] = {}
        self._hidden_scores: list[Callable[[], bool]] = []

    @short_traceback
    def start(self, caller: Callback, X: Any, y: Any, **kwargs: Any) -> None:
        """Call ``on_train_begin`` of `caller` and of all callbacks after it."""
        check_names_of_callbacks(self.net)
        for name, callback in self.net.callbacks_:
            if is_staged(callback):
                callback.require_params(name)
        called = [callback for _, callback in takewhile(lambda item: item[1] is not caller, self.net.callbacks_)]
        self._end_skorchs_loop()
        try:
            self.ctx.is_starting = True
            self.arrange()
            replaced_history = [callback.before_begin(self.net, X, y) for callback in self.staged]
            if any(replaced_history):
                called = []
            self.ctx.global_step = moment_of(self.net.history).batch
            for _, callback in self.in_order[1:-1]:
                if not has(called, callback):
                    callback.on_train_begin(self.net, X=X, y=y, **kwargs)
                    self.arrange()
            for callback in self.staged:
                callback.after_begin(self.net, X, y)
            self.ctx.global_step = moment_of(self.net.history).batch
        except BaseException as error:
            self.exit(error)
            raise
        self.ctx.is_starting = False
        self._stand_in("fit_loop", self.fit_loop)

    def arrange(self) -> None:
        """Sort the net's callbacks by weight, between `First` and `Last`.

        A no-op unless the list has changed: by ``set_params(callbacks__...)``, or since somebody has added or removed
        callbacks. An added CallbackSet takes part in the run from then on.
        """
        if self.net.callbacks_ != self.in_order:
            with _JOINING:
                self._join(in_skorchs_order(self.net.callbacks_))

    def _join(self, callbacks: list[NamedCallback]) -> None:
        for _, callback in callbacks:
            if is_staged(callback):
                callback.require_free()
        names = [name for name, _ in callbacks]
        first, scored, last = First(self, names), Scored(self, names), Last(self, names)
        finite, infinite = by_weight(callbacks)
        self.in_order = [
            ("context_begin", first),
            *finite,
            ("context_scores", scored),
            *infinite,
            ("context_end", last),
        ]
        self.net.callbacks_ = list(self.in_order)
        self.staged = [callback for _, callback in self.in_order if is_staged(callback)]
        self.joined = [*self.staged, *(callback for callback in self.joined if not has(self.staged, callback))]
        hooks = [type(callback).on_grad_computed for callback in self.staged]
        self._acts_after_backward = any(hook is not Callback.on_grad_computed for hook in hooks)
        for callback in self.staged:
            callback.join(self.ctx)
            self.ctx.keeps_outputs |= callback.keeps_outputs

    def fit_loop(self, *args: Any, epochs: int | None = None, **kwargs: Any) -> Any:
        """Stand in for ``net.fit_loop`` for one call; exit if it raises."""
        self._release("fit_loop")  # at once, so that copies made during training do not have it
        self._stand_in("get_iterator", partial(self._get_iterator, self.net.get_iterator))
        try:
            try:
                fitted = self.net.fit_loop(*args, epochs=self.ctx.epochs_left(epochs), **kwargs)
                for callback in self.staged:
                    callback.after_last_epoch(self.net)
            finally:
                self._end_epochs()
        except KeyboardInterrupt:  # skorch catches it, then calls on_train_end
            self.arrange()
            raise
        except BaseException as error:
            self.exit(error)
            hide_frames(error)
            raise
        finally:
            self._release("get_iterator")
        self.arrange()
        return fitted

    def _get_iterator(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for ``net.get_iterator`` until the first epoch, to see the loaders that skorch keeps to itself."""
        loader = own(*args, **kwargs)
        self.ctx.loaders.append(loader)
        return loader

    def _stand_in(self, name: str, call: Callable[..., Any]) -> None:
        """Put something in the place of a method of the net until it is released."""
        self._stand_ins[name] = StandIn(self.net, name, call)

    def _release(self, name: str) -> None:
        if name in self._stand_ins:
            self._stand_ins.pop(name).remove()

    def _end_epochs(self) -> None:
        """Remove the row of an epoch at whose beginning a callback has raised; finish one at whose end one has.

        Callbacks then note their history.
        They do so here, since callbacks such as skorch's Checkpoint take the history back at ``on_train_end``.
        """
        if self._beginning and len(self.net.history) == self._beginning:
            take_back_epoch(self.net)
        self._beginning = 0
        if self._is_ending:
            self._finish_epoch(sys.exception())
        for callback in self.joined:
            callback.epochs_have_ended(self.net)

    def _finish_epoch(self, cause: BaseException | None) -> None:
        """Let callbacks finish an epoch in whose last stage another one has ended training."""
        self._is_ending = False
        is_error = isinstance(cause, Exception)
        if is_error and are_several(self.net):
            return  # it may be in this process alone, so that no other would answer
        for callback in self.staged:
            try:
                callback.finish_epoch(self.net)
            except Exception as error:
                if cause is None or not is_error:
                    raise
                cause.add_note(f"at the end of the epoch {type(callback).__name__} raised too: {error!r}")

    def begin_epoch(self, dataset_train: Any, dataset_valid: Any) -> None:
        """Update ``ctx``; before the first epoch of the run, let the callbacks prepare."""
        self._beginning = len(self.net.history)
        self._release("get_iterator")
        if self.ctx.dataset_train is None:
            self.ctx.global_step = moment_of(self.net.history).batch  # LoadInitState may have loaded another history
            self._check_monitors(has_valid=dataset_valid is not None)
            for callback in self.staged:
                callback.before_first_epoch(self.net, dataset_train, dataset_valid)
            self._shorten_table()
        self.ctx._begin_epoch(dataset_train, dataset_valid)
        self._n_batches, self._in_validation = 0, False

    def _shorten_table(self) -> None:
        """Leave out of skorch's printed table what is for other readers, and fit the rest into a terminal."""
        for _, callback in self.net.callbacks_:
            if isinstance(callback, PrintLog):
                callback.keys_ignored_.update(*(one.unprinted for one in self.staged))
                shorten_table(callback, self.net)

    def epoch_has_begun(self) -> None:
        """Sort the callbacks, once all of them have begun an epoch."""
        self._beginning = 0
        self.arrange()

    def begin_batch(self, batch: Any, training: bool | None) -> None:
        """Update ``ctx``; call the stages before a validation batch."""
        self.ctx.batch = batch
        if training:
            self._n_batches += 1
            self.ctx.step = self._n_batches
            self.ctx.global_step += 1
            self._outputs.begin_step()
            return
        if not self._in_validation:
            self._in_validation = True
            self._end_training()
            self.ctx.epoch_outputs = []  # of validation from now on
        self._call("on_batch_valid_begin", batch=batch)

    def watch_step(self) -> None:
        """Prepare to see the output of the next training step before the stage after the backward pass."""
        if self._acts_after_backward:
            self._outputs.watch()

    def end_backward(self) -> None:
        """Update ``ctx``; call what precedes an update."""
        self._outputs.end_backward()
        self._call("before_update")

    def end_batch(self, batch: Any, training: bool | None, y_pred: Any) -> None:
        """Update ``ctx``; call what follows an update, or the stage after a validation batch."""
        self._outputs.end_batch(y_pred)
        if training:
            self._call("after_update")
        else:
            self._call("on_batch_valid_end", batch=batch)

    def end_epoch(self) -> None:
        """Call the stage after the last validation batch, or after the last training batch."""
        self.ctx.ended_epoch = len(self.net.history)
        self._is_ending = True
        if self._in_validation:
            self.ctx._finish("valid")
            self._call("on_valid_end")
        else:
            self._end_training()

    def epoch_has_ended(self) -> None:
        """Sort the callbacks, once all of them have ended an epoch."""
        self._is_ending = False
        self.arrange()

    def find_late_scores(self) -> None:
        """Let callbacks read the scores that others have recorded after them."""
        for callback in self.staged:
            callback.find_late_score(self.net)

    @short_traceback
    def end(self, X: Any, y: Any, **kwargs: Any) -> None:
        """Call ``on_train_end`` of all callbacks, then exit."""
        self._end_skorchs_loop()
        if is_main_process(self.net):
            warn_of_missing_scores(self.net, self.staged)
        try:
            for _, callback in self.in_order[1:]:
                callback.on_train_end(self.net, X=X, y=y, **kwargs)
        except BaseException as error:
            self.exit(error)
            raise
        self.exit()

    def exit(self, cause: BaseException | None = None) -> None:
        """Put the callbacks back in skorch's order and call the stage ``exit`` of each CallbackSet.

        Parameters
        ----------
        cause : BaseException, optional
            The error by which training ends; errors in the stage become notes on it. Without one, the first of them is
            raised after all callbacks have exited.
        """
        self._release("fit_loop")
        self._outputs.unwatch()
        self.net.callbacks_ = in_skorchs_order(self.net.callbacks_)
        for _, callback in self.net.callbacks_:
            if isinstance(callback, PrintLog):
                restore_table(callback)
        errors: list[BaseException] = []
        joined, self.joined = self.joined, []
        waiting = list(joined)
        while waiting:
            try:
                while waiting:
                    self._exit_callback(waiting[0], errors)
                    waiting.pop(0)
            except BaseException as error:  # Ctrl-C between two callbacks
                errors.append(error)
        for callback in joined:
            callback.ctx_ = None
        if cause is not None:
            for another in errors:
                cause.add_note(f"the stage exit raised too: {another!r}")
        elif errors:
            raise errors[0]

    def _exit_callback(self, callback: StagedCallback, errors: list[BaseException]) -> None:
        """Call the stage ``exit`` of a callback, and once more if Ctrl-C has left it half done."""
        for _ in range(2):
            try:
                callback.on_exit(self.net)
            except BaseException as error:
                errors.append(error)
                if isinstance(error, KeyboardInterrupt):
                    continue
            return

    def _end_training(self) -> None:
        self.ctx._finish("train")
        self._call("on_before_valid")

    def _check_monitors(self, has_valid: bool) -> None:
        """Check that the scores that callbacks read can come, as far as can be seen before the first step."""
        for callback in self.staged:
            callback.has_warned_of_nan_ = False
        monitors = list(dict.fromkeys(monitor for callback in self.staged for monitor in callback.monitors))
        check = partial(check_monitor, self.net, has_valid=has_valid)
        try:
            hidden = on_main_process(self.net, lambda: list(filter(check, monitors))) if monitors else []
        except Exception:
            take_back_epoch(self.net)
            raise
        self._hidden_scores = [partial(check, monitor, may_be_hidden=False) for monitor in hidden]

    def check_hidden_scores(self) -> None:
        """Check, after the first epoch, that the scores have come of which nothing could be seen before it."""
        checks, self._hidden_scores = self._hidden_scores, []
        for check in checks:
            on_main_process(self.net, check)

    def _call(self, hook: str, **kwargs: Any) -> None:
        for callback in self.staged:
            getattr(callback, hook)(self.net, **kwargs)

    def _end_skorchs_loop(self) -> None:
        """Empty the list that skorch is iterating over, and give the net a copy of it."""
        iterated = self.net.callbacks_
        self.net.callbacks_ = list(iterated)
        iterated.clear()


def must_start_run(net: Net, callback: StagedCallback) -> bool:
    """Check whether a callback is one of the net's but in no run of it."""
    callbacks = [other for _, other in net.callbacks_]
    contexts = [other.run_.ctx for other in callbacks if isinstance(other, LiveAdaptor)]
    ctx = callback.ctx_
    is_in_run = ctx is not None and ctx.net is net and (ctx.is_starting or has(contexts, ctx))
    return not is_in_run and has(callbacks, callback)
