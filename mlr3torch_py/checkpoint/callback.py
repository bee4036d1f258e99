"""CallbackSetCheckpoint: save a training to files and resume it as if it had never stopped."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar, cast

from mlr3torch_py.arguments import check_flag, check_path, check_text, check_whole
from mlr3torch_py.checkpoint.contents import Checkpoint
from mlr3torch_py.checkpoint.data_record import record_of
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from mlr3torch_py.checkpoint.net_state import callback_states
from mlr3torch_py.checkpoint.parts import is_stateful
from mlr3torch_py.checkpoint.place import Place, ends_before
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.checkpoint.session import Session
from mlr3torch_py.names import listed
from mlr3torch_py.protocols import History, Net
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.output_folder import check_folder, folder_of
from mlr3torch_py.training.processes import check_unsharded, is_main_process, on_main_process
from mlr3torch_py.training.scoring import lower_is_better, warn_of_unknown_direction
from mlr3torch_py.training.sink import Sink, check_sink, say
from mlr3torch_py.values import plain, shown

__all__ = ["CallbackSetCheckpoint"]


logger: logging.Logger = logging.getLogger("mlr3torch_py")


class CallbackSetCheckpoint(CallbackSet):
    """Save the training every few epochs and at its end, and resume it.

    A run that is killed at any moment and resumed ends as one that was never killed, bit for bit: weights, optimizer,
    history, states of callbacks, random numbers of dropout, shuffling and the validation split.

    Parameters
    ----------
    path : str, os.PathLike or callable
        The folder. A function without arguments is called at the start of each run and returns it; use one if a net is
        cloned and trained many times, as in a grid search.
    freq : int
        The number of epochs between checkpoints, from 1.
    resume : bool, str or os.PathLike
        If True, a net without history, or with part of that of the run, as skorch's LoadInitState loads it, continues
        from the newest complete checkpoint in `path`, or starts from scratch if there is none. A folder says where to
        resume from; new checkpoints are written to `path`. ``max_epochs``, or ``epochs`` of ``fit``, then counts all
        epochs of the run, so that a finished one trains nothing. A later call of ``partial_fit`` in the same script is
        resumed too.
    keep_last : int, optional
        The number of checkpoints to keep, from 1; all by default, or the last one if `keep_best` is True. The ends
        of all calls before are kept as well.
    keep_best : bool
        Whether to keep the checkpoint with the best score too.
    monitor : str, optional
        The key of that score in a row of ``net.history``.
    lower_is_better : bool, optional
        Whether a smaller score is better. By default, the callback that records the score says it; a score that no
        callback knows is minimised.
    sink : callable
        What is given the line that says after which epoch a run is resumed, or that it is finished. `print` is used
        only if the net is verbose, and no ``t_clbk("progress")`` of the net says it.

    Attributes
    ----------
    path_ : pathlib.Path or None
        The folder of the latest run; None before the first.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong, a stateful callback would run after this one, or the checkpoint
        is damaged, of another run, of another network, data or rows for validation, of a callback of another class, has
        more epochs than the call asks for, or had other settings and leaves nothing to train. Then, and when a
        checkpoint is written, if no file can hold the state of a callback, a module or an optimizer.
    FileExistsError
        When training begins, if the folder holds checkpoints of another run or foreign files.
    OSError
        If nothing can be written.
    RuntimeError
        If another run is writing to the folder.

    Warns
    -----
    UserWarning
        When training begins, for an incomplete checkpoint, one that another version of this package wrote, a state
        whose callback is missing, other settings than those of the run, a score of unknown direction, and what a
        checkpoint cannot keep.

    See Also
    --------
    check_resume : Prove that a net resumes as if it had never stopped.
    t_clbk : Make this callback by its key, ``t_clbk("checkpoint")``.

    Notes
    -----
    Ported from ``CallbackSetCheckpoint`` of R's mlr3torch. The files of epoch n are ``network<n>.pt``, which
    ``net.load_params(f_params=...)`` reads, ``optimizer<n>.pt`` and ``state<n>.json``; criteria and further modules
    with weights are in ``<name>-<n>.pt``, and the rows of the history in ``.history.jsonl``. "At its end" means the
    last complete epoch, also if Ctrl-C or an error stops the training within one; unless `freq` is 1, that epoch is
    kept in memory until then. The files hold the weights as trained, not those that early stopping restores at the end;
    a resumed run that it had stopped restores them again.

    Saved are also which parameters are frozen, by callbacks or by hand, pending gradients, buffers that are not
    persistent, plain attributes of modules (those in callbacks included), criteria and the net that have changed,
    parameters of the net included, random generators, and whatever else has ``state_dict`` and ``load_state_dict``; of
    callbacks of skorch, ``LRScheduler`` and ``EarlyStopping``.
    Batches are saved for the last epoch of the history only. A resumed run keeps its learning rates.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mlr3torch_py import t_clbk
    >>> with TemporaryDirectory() as folder:
    ...     for max_epochs in (2, 3):
    ...         checkpoint = t_clbk("checkpoint", path=folder, freq=2, resume=True)
    ...         net = iris_net(max_epochs=max_epochs, callbacks=[checkpoint]).fit(X, y)
    ...     sorted(file.name for file in Path(folder).glob("network*"))
    ['network2.pt', 'network3.pt']
    """

    label = "Checkpoint"
    default_weight: ClassVar[float] = math.inf
    has_settings: ClassVar[bool] = False
    folder_: CheckpointFolder | None = None
    call_: Mapping[str, Any] | None = None
    session_: Session | None = None
    ends_: Set[int] = frozenset()

    def __init__(
        self,
        path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]],
        freq: int,
        resume: bool | str | os.PathLike[str] = False,
        keep_last: int | None = None,
        keep_best: bool = False,
        monitor: str | None = None,
        lower_is_better: bool | None = None,
        sink: Sink = print,
    ) -> None:
        self.path = path
        self.freq = freq
        self.resume = resume
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.monitor = monitor
        self.lower_is_better = lower_is_better
        self.sink = sink

    @property
    def path_(self) -> Path | None:
        return None if self.folder_ is None else self.folder_.path

    @property
    def monitors(self) -> tuple[str, ...]:
        return () if self.monitor is None else (self.monitor,)

    def check_params(self) -> None:
        check_folder(self.path)
        if self.freq is not REQUIRED:
            check_whole("freq", self.freq, "epochs")
        if not isinstance(plain(self.resume), bool):
            check_path("resume", self.resume, "True, False, or the folder to resume from")
        if self.keep_last is not None:
            check_whole("keep_last", self.keep_last, "checkpoints")
        check_flag("keep_best", self.keep_best)
        if self.lower_is_better is not None:
            check_flag("lower_is_better", self.lower_is_better)
        check_sink(self.sink)
        if self.monitor is not None:
            check_text("monitor", self.monitor, "the key of a score in a row of the history")

    def require_params(self, name: str = "") -> None:
        super().require_params(name)
        if self.keep_best != (self.monitor is not None):
            raise ValueError(
                f"`keep_best` is {shown(self.keep_best)} and `monitor` is {shown(self.monitor)}, but one needs the "
                "other; give keep_best=True and the score to watch, or neither"
            )

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        """Open the folder, and let the callbacks see the history of the run that is resumed."""
        self._check_comes_last(net)
        self._check_beside(net)
        check_unsharded(net, "checkpoint")
        owner = self.owner_
        fits = owner is not None and (owner.fits(net) or (owner.is_behind(net) and not callable(self.path)))
        previous = self.folder_ if fits or not len(net.history) else None
        before = None if previous is None else previous.path
        self.folder_ = CheckpointFolder(on_main_process(net, lambda: folder_of(net, self.path, before)))
        ctx = cast(ContextTorch, self.ctx)
        call = self.call_ if previous is not None and fits else None
        place = Place(self.folder_, self.resume, call, ctx.asked_epochs)
        start = on_main_process(net, lambda: place.open(net))
        self.session_ = session = Session(net, ctx, start, record_of(X, y))
        self.call_ = session.call
        if start.checkpoint is not None:
            last = start.epochs_before + ctx.asked_epochs
            logger.info("resuming %s after epoch %d of %d", self.folder_.path, start.checkpoint.epoch, last)
        return session.begin()

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        on_main_process(net, lambda: _check_states(net))

    def after_begin(self, net: Net, X: Any, y: Any) -> None:
        """Restore the net, which other callbacks may have changed when training began."""
        session, folder = cast(Session, self.session_), cast(CheckpointFolder, self.folder_)
        run = session.restore()
        self.ends_ = on_main_process(net, lambda: ends_before(folder, session.call))
        on_main_process(net, lambda: folder.write_run(run))
        ctx = cast(ContextTorch, self.ctx)
        if ctx.is_resumed:
            left = 0 if ctx.terminate else ctx.total_epochs - len(net.history)
            what = f"{left} left" if left > 0 else "which was the last one: finished already, nothing to train"
            say(net, self.sink, f"Resumed {folder.path} after epoch {len(net.history)}, {what}.")

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        if self.monitor is not None and self.lower_is_better is None:
            warn_of_unknown_direction(net, self.monitor, "`lower_is_better`")
        cast(Session, self.session_).begin_epochs(dataset_train, dataset_valid)

    def after_last_epoch(self, net: Net) -> None:
        cast(Session, self.session_).end_epochs()

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        session = cast(Session, self.session_)
        session.prepare()
        session.name_differing_gradients()
        on_main_process(net, lambda: self._capture(net))

    def epochs_have_ended(self, net: Net) -> None:
        super().epochs_have_ended(net)
        session, folder = self.session_, self.folder_
        if session is not None and folder is not None and session.prepare_unseen() and is_main_process(net):
            session.capture(folder.rows.n_rows, is_due=True)  # before on_train_end, which may change the weights

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        on_main_process(net, self._save)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        if self.folder_ is not None:
            try:
                if is_main_process(net):  # after an error; other processes may still be training
                    self._save()
            finally:
                self.folder_.release()
        self.session_ = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"session_": None}

    def _capture(self, net: Net) -> None:
        is_due = len(net.history) % int(self.freq) == 0
        cast(Session, self.session_).capture(cast(CheckpointFolder, self.folder_).rows.n_rows, is_due=is_due)
        if is_due:
            self._save()

    def _save(self) -> None:
        """Write the last complete epoch, unless that is done."""
        session, folder = self.session_, self.folder_
        if session is None or folder is None or (checkpoint := session.unsaved) is None:
            return
        try:
            self._write(folder, checkpoint, session.net)
        except Exception:
            session.unsaved = None  # only after Ctrl-C, which is no Exception, does on_exit try again
            raise
        session.unsaved = None

    def _write(self, folder: CheckpointFolder, checkpoint: Checkpoint, net: Net) -> None:
        folder.write(checkpoint)
        if self.keep_last is not None or self.keep_best:
            written = folder.epochs()
            kept = {*written[: self.keep_last or 1], checkpoint.epoch, *self.ends_}
            if self.monitor is not None:
                known = self.lower_is_better
                is_loss = lower_is_better(net, self.monitor) if known is None else known
                kept |= best_epoch(net.history, written, self.monitor, is_loss=is_loss)
            folder.keep_only(kept)

    def _check_comes_last(self, net: Net) -> None:
        position = next(i for i, (_, callback) in enumerate(net.callbacks_) if callback is self)
        later = [name for name, callback in net.callbacks_[position:] if is_stateful(callback)]
        if later:
            raise ValueError(
                f"`callbacks`: the checkpoint callback, whose `weight` is {self.weight}, runs before "
                f"{listed(map(repr, later))} and would miss their final state; give it a larger weight, or list it last"
            )

    def _check_beside(self, net: Net) -> None:
        """Check that no other checkpoint of the net resumes the run, too, or writes into the same folder."""
        beside = {name: one for name, one in net.callbacks_ if isinstance(one, CallbackSetCheckpoint)}
        if len(beside) == 1:
            return
        paths = [str(one.path) for one in beside.values() if not callable(one.path)]
        if any(plain(one.resume) is not False for one in beside.values()) or len(paths) > len(set(paths)):
            raise ValueError(
                f"`callbacks`: {listed(map(repr, beside))} are checkpoints of one net, and only one can resume it; "
                "leave the others out, or give all of them resume=False and folders of their own"
            )


def _check_states(net: Net) -> None:
    """Fail now if the state of a callback cannot be saved, not after an epoch."""
    to_portable(callback_states(net), "callbacks", {})


def best_epoch(history: History, epochs: Sequence[int], monitor: str, *, is_loss: bool) -> set[int]:
    """Return the epoch with the best score among some epochs; nothing if none has a score."""
    known = {epoch: score for epoch, score in scores_by_epoch(history, monitor) if epoch in epochs}
    sign = 1 if is_loss else -1
    return {min(known, key=lambda epoch: (sign * known[epoch], epoch))} if known else set()
