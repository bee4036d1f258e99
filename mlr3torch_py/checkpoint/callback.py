"""CallbackSetCheckpoint: keep all of a training in files, and go on from them as if it had never stopped."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from numbers import Integral
from typing import Any, ClassVar, cast

import joblib
import numpy as np
from skorch.dataset import get_len

from mlr3torch_py.checkpoint.folder import Checkpoint, CheckpointFolder
from mlr3torch_py.checkpoint.net_state import (
    callback_states,
    check_fits,
    is_stateful,
    load,
    load_after_begin,
    places_of_generators,
    take_checkpoint,
)
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.names import listed
from mlr3torch_py.network.randomness import generators, random_states, set_random_states
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.training.output_folder import check_path, folder_of
from mlr3torch_py.training.processes import on_main_process

__all__ = ["CallbackSetCheckpoint"]

logger = logging.getLogger("mlr3torch_py")


class CallbackSetCheckpoint(CallbackSet):
    """Keep the training in files every few epochs and at its end, and go on from them.

    A run that was killed at any moment and is resumed ends as one that was never killed, bit for bit: weights,
    optimizer, history, states of callbacks, random numbers of dropout, shuffling and the validation split.

    Parameters
    ----------
    path : str, os.PathLike or callable
        The folder. A function without arguments is called when a run begins, and returns it; give one where a net is
        cloned and trained many times, as in a grid search.
    freq : int
        After how many epochs the training is kept again, from 1.
    resume : bool, str or os.PathLike
        With True a net without history goes on from the newest complete checkpoint in `path`, and begins if there is
        none. A folder says where to go on from; what follows is kept in `path`. ``max_epochs`` then counts all epochs
        of the run, so that one that is finished trains nothing.

    Raises
    ------
    TypeError, ValueError
        When training begins, if an argument is wrong, a callback with a state would run after this one, or the
        checkpoint is damaged, of another network, of a callback of another class, or has more epochs than
        ``max_epochs``. When a checkpoint is written, if a callback has a state that no file can hold.
    FileExistsError
        When training begins, if the folder holds the checkpoints of another run, or files of others.
    OSError
        If nothing can be written.
    RuntimeError
        If another run is writing to the folder.

    Warns
    -----
    UserWarning
        When training begins, for a checkpoint that is not complete, and for a state whose callback is missing.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("checkpoint")``.

    Notes
    -----
    Ported from ``CallbackSetCheckpoint`` of R's mlr3torch. For epoch n there is ``network<n>.pt``, which
    ``net.load_params(f_params=...)`` reads, ``optimizer<n>.pt`` and ``state<n>.json``; criteria and further modules
    that have weights are in ``<name>-<n>.pt``. "At the end" means the last epoch that is complete, also when Ctrl-C or
    an error ends the training in the middle of one; unless `freq` is 1 it is kept in memory until then. The files hold
    the weights as they were trained, not those that early stopping puts back at the end; a run that it had ended puts
    them back again. Only what callbacks of this package and callbacks with ``state_dict`` and ``load_state_dict`` know,
    and skorch's ``LRScheduler`` and ``EarlyStopping``, is kept, not what other callbacks of skorch remember beyond the
    history. Of the history's batches, only those of the last epoch are. A run that is resumed goes on with the learning
    rates that it had; the data must be the same, which is checked by the number of rows and the targets.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, t_clbk
    >>> X, y = load_iris(return_X_y=True)
    >>> with TemporaryDirectory() as folder:
    ...     for max_epochs in (2, 3):
    ...         net = NeuralNetClassifier(
    ...             MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...             max_epochs=max_epochs, verbose=0,
    ...             callbacks=[t_clbk("checkpoint", path=folder, freq=2, resume=True)],
    ...         ).fit(X.astype("float32"), y)
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

    def check_params(self) -> None:
        check_path(self.path)
        if self.freq is not REQUIRED:
            if isinstance(self.freq, bool) or not isinstance(self.freq, Integral):
                raise TypeError(f"`freq` is {self.freq!r}; give a whole number of epochs, from 1")
            if self.freq < 1:
                raise ValueError(f"`freq` is {self.freq!r}; epochs count from 1, so give at least 1")
        if not isinstance(self.resume, bool | str | os.PathLike):
            raise TypeError(f"`resume` is {self.resume!r}; give True, False, or the folder to go on from")

    def before_begin(self, net: Any, X: Any, y: Any) -> bool:
        """Open the folder, and load what it holds if that is wanted."""
        self._check_comes_last(net)
        self.unsaved_, self.states_of_call_ = None, None
        self.folder_, self.resumed_, self.run_ = on_main_process(lambda: self._open(net))
        if self.run_ is not None and self.run_["data"] != _fingerprint(X, y):
            raise ValueError(
                f"`path`: the run in {self.folder_.path} was begun with other data; give each training a folder of its "
                "own, such as by a function that returns a new one"
            )
        if self.ctx is not None and (self.resumed_ is not None or self.run_ is not None):
            self.ctx.is_resumed, self.ctx.total_epochs = True, net.max_epochs
        if self.resumed_ is None:
            return False
        epoch, left = self.resumed_.epoch, net.max_epochs - self.resumed_.epoch
        logger.info("the run in %s goes on after epoch %d; %d are left", self.folder_.path, epoch, left)
        check_fits(net, self.resumed_)
        load(net, self.resumed_)
        return True

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        here = generators(**places_of_generators(net))
        if self.resumed_ is not None:
            load_after_begin(net, self.resumed_)
            self.states_of_call_ = self.resumed_.state["random_of_call"]
        elif len(net.history):
            self.states_of_call_ = random_states(here)
        to_portable(callback_states(net), "callbacks", {})  # what cannot be kept is refused now, not after an epoch
        first = self.states_of_call_ or (self.run_ and self.run_["random"])
        if first is not None:
            set_random_states(here, first)
        run = {"random": first or random_states(here), "data": _fingerprint(X, y)}
        folder = cast(CheckpointFolder, self.folder_)
        on_main_process(lambda: folder.keep_run(run))

    def before_first_epoch(self, net: Any, dataset_train: Any) -> None:
        if self.resumed_ is not None:
            set_random_states(generators(**places_of_generators(net, dataset_train)), self.resumed_.state["random"])
            self.resumed_ = None

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        checkpoint = take_checkpoint(net, dataset_train, self.states_of_call_)
        is_due = checkpoint.epoch % self.freq == 0
        self.unsaved_ = checkpoint if is_due else deepcopy(checkpoint)
        if is_due:
            self._save()

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        self.resumed_ = None
        if self.folder_ is not None:
            try:
                self._save()
            finally:
                self.folder_.release()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"unsaved_": None, "resumed_": None, "run_": None}

    def _save(self) -> None:
        checkpoint, folder = self.unsaved_, cast(CheckpointFolder, self.folder_)
        if checkpoint is None:
            return
        try:
            on_main_process(lambda: folder.write(checkpoint))
        except Exception:
            self.unsaved_ = None  # after Ctrl-C, which is no Exception, exit tries again
            raise
        self.unsaved_ = None

    def _open(self, net: Any) -> tuple[CheckpointFolder, Checkpoint | None, Mapping[str, Any] | None]:
        """Return the folder, locked, and, of a run that is to go on, its checkpoint and what holds for all of it."""
        own = None if self.folder_ is None else self.folder_.path
        folder = self.folder_ = CheckpointFolder(folder_of(net, self.path, own))
        folder.lock()
        if len(net.history) and folder.path == own:
            folder.check_none_after(len(net.history))
            return folder, None, None
        if len(net.history) or self.resume is False:
            folder.clear_for_new_run()
            return folder, None, None
        source = folder if self.resume is True else CheckpointFolder(self.resume)
        epoch = source.newest()
        if source.path != folder.path:
            folder.clear_for_new_run()
            if epoch is None:
                raise FileNotFoundError(
                    f"`resume`: {source.path} holds no complete checkpoint; give a folder that does"
                )
        run = source.read_run()
        if epoch is not None and run is None:
            warnings.warn(f"{source.path} lacks run.json, so a random validation split is drawn anew", stacklevel=2)
        return folder, None if epoch is None else source.read(epoch), run

    def _check_comes_last(self, net: Any) -> None:
        position = next(i for i, (_, callback) in enumerate(net.callbacks_) if callback is self)
        behind = [name for name, callback in net.callbacks_[position:] if is_stateful(callback)]
        if behind:
            raise ValueError(
                f"`callbacks`: {listed(map(repr, behind))} would run after the checkpoint, whose weight is "
                f"{self.weight}, and could not be kept as left; give the checkpoint a larger weight, or list it last"
            )


def _fingerprint(X: Any, y: Any) -> dict[str, Any]:
    """Tell trainings on different data apart, as far as that is cheap: by the number of rows and the targets."""
    try:
        return {"rows": get_len(X), "targets": None if y is None else joblib.hash(np.ascontiguousarray(y))}
    except (TypeError, ValueError, RuntimeError):
        return {"rows": None, "targets": None}
