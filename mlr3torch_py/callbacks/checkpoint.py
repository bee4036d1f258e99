"""CallbackSetCheckpoint: keep all of a training in files, and go on from them as if it had never stopped."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, Final, cast

from skorch import callbacks as of_skorch
from skorch.history import History
from torch import nn

from mlr3torch_py.callbacks.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.callbacks.folder import check_path, folder_of
from mlr3torch_py.callbacks.processes import on_main_process
from mlr3torch_py.checkpoint_folder import Checkpoint, CheckpointFolder
from mlr3torch_py.names import listed
from mlr3torch_py.parameters import bare
from mlr3torch_py.portable import to_portable
from mlr3torch_py.randomness import generators, random_states, set_random_states

__all__ = ["CallbackSetCheckpoint"]

# What callbacks of skorch know beyond the history; their begin makes it anew.
_STATES_OF_SKORCH: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType(
    {
        of_skorch.LRScheduler: ("lr_scheduler_", "batch_idx_"),
        of_skorch.PassthroughScoring: ("best_score_",),
        of_skorch.EarlyStopping: ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_"),
    }
)


_MISSING: Final = "missing"
_NOT_KNOWN_YET: Final = "not known yet"


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
    an error ends the training in the middle of one; unless `freq` is 1 it is kept in memory until then. Only what
    callbacks of this package and callbacks with ``state_dict`` and ``load_state_dict`` know, and skorch's
    ``LRScheduler`` and ``EarlyStopping``, is kept, not what other callbacks of skorch remember beyond the history. Of
    the history's batches, only those of the last epoch are.

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
    first_states_: Mapping[str, Any] | None = None

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

    def before_begin(self, net: Any) -> bool:
        """Open the folder, and load what it holds if that is wanted."""
        self._check_comes_last(net)
        self.unsaved_ = None
        self.folder_, self.resumed_, self.first_states_ = on_main_process(lambda: self._open(net))
        is_resumed = self.resumed_ is not None or self.first_states_ is not None
        if self.ctx is not None and is_resumed:
            self.ctx.is_resumed, self.ctx.total_epochs = True, net.max_epochs
        if self.resumed_ is None:
            return False
        _check_fits(net, self.resumed_)
        _load(net, self.resumed_)
        return True

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if self.resumed_ is not None:
            _load_after_begin(net, self.resumed_)
        to_portable(_callback_states(net), "callbacks", {})  # what cannot be kept is refused now, not after an epoch
        here = generators(**_places(net))
        if self.first_states_ is not None:
            set_random_states(here, self.first_states_)
        folder, run = cast(CheckpointFolder, self.folder_), {"random": random_states(here)}
        on_main_process(lambda: folder.keep_run(run))

    def before_first_epoch(self, net: Any, dataset_train: Any) -> None:
        if self.resumed_ is not None:
            set_random_states(generators(**_places(net, dataset_train)), self.resumed_.state["random"])
            self.resumed_ = None

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        checkpoint = _checkpoint(net, dataset_train)
        self.unsaved_ = checkpoint if checkpoint.epoch % self.freq == 0 else deepcopy(checkpoint)
        if self.unsaved_ is checkpoint:
            self._save()

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        self.resumed_ = None
        if self.folder_ is not None:
            try:
                self._save()
            finally:
                self.folder_.release()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"unsaved_": None, "resumed_": None}

    def _save(self) -> None:
        checkpoint, self.unsaved_ = self.unsaved_, None
        folder = cast(CheckpointFolder, self.folder_)
        if checkpoint is not None:
            on_main_process(lambda: folder.write(checkpoint))

    def _open(self, net: Any) -> tuple[CheckpointFolder, Checkpoint | None, Mapping[str, Any] | None]:
        """Return the folder, locked, and, of a run that is to go on, its checkpoint and its first random states."""
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
        return folder, None if epoch is None else source.read(epoch), None if run is None else run["random"]

    def _check_comes_last(self, net: Any) -> None:
        position = next(i for i, (_, callback) in enumerate(net.callbacks_) if callback is self)
        behind = [name for name, callback in net.callbacks_[position:] if _is_stateful(callback)]
        if behind:
            raise ValueError(
                f"`callbacks`: {listed(map(repr, behind))} would run after the checkpoint, which could not keep the "
                "state; give a smaller weight, or put the checkpoint behind it"
            )


def _checkpoint(net: Any, dataset_train: Any) -> Checkpoint:
    weights = {name: part.state_dict() for name, part in _parts(net).items()}
    rows = [dict(row) for row in net.history.to_list()]
    for row in rows[:-1]:
        if "train_batch_count" in row:
            row["batches"] = []
    state = {
        "classes": _optimizer_classes(net),
        "history": rows,
        "callbacks": _callback_states(net),
        "random": random_states(generators(**_places(net, dataset_train))),
    }
    return Checkpoint(len(rows), {name: held for name, held in weights.items() if held}, state)


def _callback_states(net: Any) -> dict[str, Any]:
    return {
        name: {"class": type(callback).__qualname__, "state": _state_of(callback)}
        for name, callback in net.callbacks_
        if _is_stateful(callback)
    }


def _check_fits(net: Any, checkpoint: Checkpoint) -> None:
    """Check, before anything is changed, that a checkpoint is one of this net."""
    epoch, weights, state = checkpoint
    if epoch > net.max_epochs:
        raise ValueError(
            f"`max_epochs` is {net.max_epochs}, but the checkpoint is of epoch {epoch}; in a run that is resumed it "
            "counts all epochs, so raise it"
        )
    here = {name: _form(part.state_dict()) for name, part in _parts(net).items()} | {"": _optimizer_classes(net)}
    there = {name: _form(held) for name, held in weights.items()} | {"": state["classes"]}
    differs = [
        f"{name}.{key}".strip(".")
        for name in here.keys() | there.keys()
        for key in {**here.get(name, {}), **there.get(name, {})}
        if here.get(name, {}).get(key, _MISSING) not in (there.get(name, {}).get(key, _MISSING), _NOT_KNOWN_YET)
    ]
    if differs:
        raise ValueError(
            f"the checkpoint of epoch {epoch} is of another network or optimizer, which differs in "
            f"{listed(differs, most=3)}; give `path` another folder"
        )
    callbacks = dict(net.callbacks_)
    for name, kept in state["callbacks"].items():
        found = type(callbacks[name]).__qualname__ if name in callbacks else None
        if found is None:
            warnings.warn(f"the checkpoint holds a state of the callback {name!r}, which the net lacks", stacklevel=2)
        elif found != kept["class"]:
            raise ValueError(
                f"the checkpoint holds a state of {kept['class']} for the callback {name!r}, which is of {found} now; "
                "give it another name"
            )


def _load(net: Any, checkpoint: Checkpoint) -> None:
    for callback, state in _states_for(net, checkpoint):
        if hasattr(callback, "load_state_dict"):
            callback.load_state_dict(state)
    for name, part in _parts(net).items():
        if name in checkpoint.weights:
            part.load_state_dict(checkpoint.weights[name])
    net.history = History(checkpoint.state["history"])


def _load_after_begin(net: Any, checkpoint: Checkpoint) -> None:
    """Load again what the begin of schedulers has changed, and what skorch's callbacks have forgotten at theirs."""
    for name in net._optimizers:
        getattr(net, f"{name}_").load_state_dict(checkpoint.weights[name])
    for callback, state in _states_for(net, checkpoint):
        for attribute in _attributes_of_skorch(callback):
            value = getattr(callback, attribute)
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state[attribute])
            else:
                setattr(callback, attribute, state[attribute])


def _states_for(net: Any, checkpoint: Checkpoint) -> Iterator[tuple[Any, Any]]:
    callbacks = dict(net.callbacks_)
    for name, kept in checkpoint.state["callbacks"].items():
        if name in callbacks:
            yield callbacks[name], kept["state"]


def _is_stateful(callback: Any) -> bool:
    is_own = hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")
    return is_own or bool(_attributes_of_skorch(callback))


def _state_of(callback: Any) -> Any:
    if hasattr(callback, "state_dict"):
        return callback.state_dict()
    values = {attribute: getattr(callback, attribute) for attribute in _attributes_of_skorch(callback)}
    return {
        attribute: value.state_dict() if hasattr(value, "state_dict") else value for attribute, value in values.items()
    }


def _attributes_of_skorch(callback: Any) -> tuple[str, ...]:
    return next((names for kind, names in _STATES_OF_SKORCH.items() if isinstance(callback, kind)), ())


def _parts(net: Any) -> dict[str, Any]:
    """Return the modules, criteria and optimizers of a net by their names, without wrappers."""
    parts = {name: getattr(net, f"{name}_") for name in (*net._modules, *net._criteria)}
    modules = {name: bare(part) for name, part in parts.items() if isinstance(part, nn.Module)}
    return modules | {name: getattr(net, f"{name}_") for name in net._optimizers}


def _optimizer_classes(net: Any) -> dict[str, str]:
    return {name: type(getattr(net, f"{name}_")).__name__ for name in net._optimizers}


def _form(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a state dictionary is one of: the shape of each tensor, the size of each group of an optimizer."""
    if "param_groups" in weights:
        return {f"group {i}": len(group["params"]) for i, group in enumerate(weights["param_groups"])}
    return {
        key: _NOT_KNOWN_YET if nn.parameter.is_lazy(value) else tuple(getattr(value, "shape", ()))
        for key, value in weights.items()
    }


def _places(net: Any, dataset_train: Any = None) -> dict[str, Any]:
    """Return where random generators may be: parameters of the net, its module, its training data."""
    places = {name: value for name, value in vars(net).items() if not name.endswith("_")}
    return places | {"module_": bare(net.module_), "dataset_train": dataset_train}
