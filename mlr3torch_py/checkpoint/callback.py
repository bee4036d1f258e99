"""CallbackSetCheckpoint: save a training to files and resume it as if it had never stopped."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, cast

from mlr3torch_py.arguments import check_path, check_whole, plain
from mlr3torch_py.checkpoint.data_record import record_of, same_data
from mlr3torch_py.checkpoint.folder import Checkpoint, CheckpointFolder
from mlr3torch_py.checkpoint.net_state import (
    callback_states,
    capture,
    check_fits,
    generators_of,
    is_stateful,
    restore,
    restore_after_train_begin,
)
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.names import listed
from mlr3torch_py.network.randomness import random_states, set_random_states
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.training.output_folder import check_folder, folder_of
from mlr3torch_py.training.processes import on_main_process

__all__ = ["CallbackSetCheckpoint"]

logger = logging.getLogger("mlr3torch_py")


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
        If True, a net without history continues from the newest complete checkpoint in `path`, or starts from scratch
        if there is none. A folder says where to resume from; new checkpoints are written to `path`. ``max_epochs`` then
        counts all epochs of the run, so that a finished one trains nothing.

    Attributes
    ----------
    path_ : pathlib.Path or None
        The folder of the latest run; None before the first.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong, a stateful callback would run after this one, or the checkpoint
        is damaged, of another network, of a callback of another class, or has more epochs than ``max_epochs``. When a
        checkpoint is written, if no file can hold the state of a callback.
    FileExistsError
        When training begins, if the folder holds checkpoints of another run or foreign files.
    OSError
        If nothing can be written.
    RuntimeError
        If another run is writing to the folder.

    Warns
    -----
    UserWarning
        When training begins, for an incomplete checkpoint, one that another version of this package wrote, and a state
        whose callback is missing.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("checkpoint")``.

    Notes
    -----
    Ported from ``CallbackSetCheckpoint`` of R's mlr3torch. The files of epoch n are ``network<n>.pt``, which
    ``net.load_params(f_params=...)`` reads, ``optimizer<n>.pt`` and ``state<n>.json``; criteria and further modules
    with weights are in ``<name>-<n>.pt``. "At its end" means the last complete epoch, also if Ctrl-C or an error stops
    the training within one; unless `freq` is 1, that epoch is kept in memory until then. The files hold the weights as
    trained, not those that early stopping restores at the end; a resumed run that it had stopped restores them again.
    Saved are the states of this package's callbacks, of callbacks with ``state_dict`` and ``load_state_dict``, and of
    skorch's ``LRScheduler`` and ``EarlyStopping``, but not what other callbacks of skorch remember outside of the
    history. Batches are saved for the last epoch of the history only. A resumed run keeps its learning rates; the data
    must be the same, which is checked by the number of rows and the targets.

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
    folder_: CheckpointFolder | None = None
    unsaved_: Checkpoint | None = None
    resumed_: Checkpoint | None = None
    run_: Mapping[str, Any] | None = None
    states_of_call_: Mapping[str, Any] | None = None

    def __init__(
        self,
        path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]],
        freq: int,
        resume: bool | str | os.PathLike[str] = False,
    ) -> None:
        self.path = path
        self.freq = freq
        self.resume = resume

    @property
    def path_(self) -> Path | None:
        return None if self.folder_ is None else self.folder_.path

    def check_params(self) -> None:
        check_folder(self.path)
        if self.freq is not REQUIRED:
            check_whole("freq", self.freq, "epochs")
        if not isinstance(plain(self.resume), bool):
            check_path("resume", self.resume, "True, False, or the folder to resume from")

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        """Open the folder, and restore the net if it resumes a run."""
        self._check_comes_last(net)
        self.unsaved_, self.states_of_call_ = None, None
        self.folder_, self.resumed_, self.run_ = on_main_process(lambda: self._open(net))
        if self.run_ is not None and not same_data(self.run_["data"], record_of(X, y)):
            raise ValueError(
                f"`path`: the run in {self.folder_.path} was started with other data; give each training its own "
                "folder, for example by a function that returns a new one"
            )
        if self.ctx is not None and (self.resumed_ is not None or self.run_ is not None):
            self.ctx.is_resumed, self.ctx.total_epochs = True, net.max_epochs
        if self.resumed_ is None:
            return False
        epoch = self.resumed_.epoch
        logger.info("resuming %s after epoch %d of %d", self.folder_.path, epoch, net.max_epochs)
        check_fits(net, self.resumed_)
        restore(net, self.resumed_)
        return True

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        here = generators_of(net)
        if self.resumed_ is not None:
            restore_after_train_begin(net, self.resumed_)
            self.states_of_call_ = self.resumed_.state["random_of_call"]
        elif len(net.history):
            self.states_of_call_ = random_states(here)
        to_portable(callback_states(net), "callbacks", {})  # fail now if a state cannot be saved, not after an epoch
        first = self.states_of_call_ or (self.run_ and self.run_["random"])
        if first is not None:
            set_random_states(here, first)
        run = {"random": first or random_states(here), "data": record_of(X, y)}
        folder = cast(CheckpointFolder, self.folder_)
        on_main_process(lambda: folder.write_run(run))

    def before_first_epoch(self, net: Net, dataset_train: Any) -> None:
        if self.resumed_ is not None:
            set_random_states(generators_of(net, dataset_train), self.resumed_.state["random"])
            self.resumed_ = None

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        checkpoint = capture(net, dataset_train, self.states_of_call_)
        is_due = checkpoint.epoch % int(self.freq) == 0
        self.unsaved_ = checkpoint if is_due else deepcopy(checkpoint)
        if is_due:
            self._save()

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self.resumed_ = None
        if self.folder_ is not None:
            try:
                self._save()
            finally:
                self.folder_.files.release()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"unsaved_": None, "resumed_": None, "run_": None}

    def _save(self) -> None:
        checkpoint, folder = self.unsaved_, cast(CheckpointFolder, self.folder_)
        if checkpoint is None:
            return
        try:
            on_main_process(lambda: folder.write(checkpoint))
        except Exception:
            self.unsaved_ = None  # only after Ctrl-C, which is no Exception, does on_exit try again
            raise
        self.unsaved_ = None

    def _open(self, net: Net) -> tuple[CheckpointFolder, Checkpoint | None, Mapping[str, Any] | None]:
        """Lock the folder; return it with the checkpoint and the facts of the run to resume."""
        previous = None if self.folder_ is None else self.folder_.path
        folder = self.folder_ = CheckpointFolder(folder_of(net, self.path, previous))
        folder.files.lock()
        if len(net.history) and folder.path == previous:
            folder.check_none_after(len(net.history))
            return folder, None, None
        resume = plain(self.resume)
        if len(net.history) or resume is False:
            folder.clear_for_new_run()
            return folder, None, None
        source = folder if resume is True else CheckpointFolder(check_path("resume", resume))
        epoch = source.newest()
        if source.path != folder.path:
            folder.clear_for_new_run()
            if epoch is None:
                raise FileNotFoundError(
                    f"`resume`: {source.path} holds no complete checkpoint; give a folder that does"
                )
        run = source.read_run()
        if epoch is not None and run is None:
            warnings.warn(
                f"{source.path} lacks run.json, so a random validation split will differ from the one before",
                stacklevel=2,
            )
        return folder, None if epoch is None else source.read(epoch), run

    def _check_comes_last(self, net: Net) -> None:
        position = next(i for i, (_, callback) in enumerate(net.callbacks_) if callback is self)
        later = [name for name, callback in net.callbacks_[position:] if is_stateful(callback)]
        if later:
            raise ValueError(
                f"`callbacks`: the checkpoint callback, whose `weight` is {self.weight}, runs before "
                f"{listed(map(repr, later))} and would miss their final state; give it a larger weight, or list it last"
            )
