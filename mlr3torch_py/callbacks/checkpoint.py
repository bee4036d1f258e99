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

import joblib
import numpy as np
from skorch import callbacks as of_skorch
from skorch.dataset import get_len
from skorch.history import History
from torch import nn

from mlr3torch_py.callbacks.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.callbacks.folder import check_path, folder_of
from mlr3torch_py.callbacks.processes import on_main_process
from mlr3torch_py.checkpoint_folder import Checkpoint, CheckpointFolder
from mlr3torch_py.names import listed
from mlr3torch_py.parameters import Flags, bare, frozen_by_us, named_modules, trainable_names
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
    the history's batches, only those of the last epoch are. A run that is resumed goes on with the learning rates that
    it had; the data must be the same, which is checked by the number of rows and the targets.

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
        _check_fits(net, self.resumed_)
        _load(net, self.resumed_)
        return True

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        here = generators(**_places(net))
        if self.resumed_ is not None:
            _check_is_loaded(net, self.resumed_)
            _load_after_begin(net, self.resumed_)
            self.states_of_call_ = self.resumed_.state["random_of_call"]
        elif len(net.history):
            self.states_of_call_ = random_states(here)
        to_portable(_callback_states(net), "callbacks", {})  # what cannot be kept is refused now, not after an epoch
        first = self.states_of_call_ or (self.run_ and self.run_["random"])
        if first is not None:
            set_random_states(here, first)
        run = {"random": first or random_states(here), "data": _fingerprint(X, y)}
        folder = cast(CheckpointFolder, self.folder_)
        on_main_process(lambda: folder.keep_run(run))

    def before_first_epoch(self, net: Any, dataset_train: Any) -> None:
        if self.resumed_ is not None:
            set_random_states(generators(**_places(net, dataset_train)), self.resumed_.state["random"])
            self.resumed_ = None

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        checkpoint = _checkpoint(net, dataset_train, self.states_of_call_)
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
        behind = [name for name, callback in net.callbacks_[position:] if _is_stateful(callback)]
        if behind:
            raise ValueError(
                f"`callbacks`: {listed(map(repr, behind))} would run after the checkpoint, which could not keep the "
                "state; give a smaller weight, or put the checkpoint behind it"
            )


def _checkpoint(net: Any, dataset_train: Any, states_of_call: Mapping[str, Any] | None) -> Checkpoint:
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
        "random_of_call": states_of_call,
        "trainable": trainable_names(net.module_),
    }
    return Checkpoint.of(len(rows), weights, state)


def _fingerprint(X: Any, y: Any) -> dict[str, Any]:
    """Tell trainings on different data apart, as far as that is cheap: by the number of rows and the targets."""
    try:
        return {"rows": get_len(X), "targets": None if y is None else joblib.hash(np.asarray(y))}
    except (TypeError, ValueError, RuntimeError):
        return {"rows": None, "targets": None}


def _callback_states(net: Any) -> dict[str, Any]:
    return {
        name: {"class": type(callback).__qualname__, "state": _state_of(callback)}
        for name, callback in net.callbacks_
        if _is_stateful(callback)
    }


def _check_fits(net: Any, checkpoint: Checkpoint) -> None:
    """Check, before anything is changed, that a checkpoint is one of this net."""
    epoch, weights, state = checkpoint.epoch, _weights(checkpoint), checkpoint.state
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
    before = [(callback, dict(vars(callback))) for _, callback in net.callbacks_]
    try:
        for callback, state in _states_for(net, checkpoint):
            if hasattr(callback, "load_state_dict"):
                callback.load_state_dict(state)
    except Exception:
        for callback, attributes in before:
            vars(callback).clear()
            vars(callback).update(attributes)
        raise
    for name, part in _parts(net).items():
        if name in checkpoint.parts:
            part.load_state_dict(checkpoint.parts[name])
    Flags(frozenset(checkpoint.state["trainable"]), frozen_by_us(net.module_)).restore(net.module_)
    net.history = History(checkpoint.contents()["history"])


def _check_is_loaded(net: Any, checkpoint: Checkpoint) -> None:
    if len(net.history) != checkpoint.epoch:
        raise ValueError(
            f"`callbacks`: another callback, such as LoadInitState, has loaded a history of {len(net.history)} epochs "
            f"over the checkpoint of epoch {checkpoint.epoch}; keep only one of the two"
        )


def _load_after_begin(net: Any, checkpoint: Checkpoint) -> None:
    """Load again what the begin of schedulers has changed, and what skorch's callbacks have forgotten at theirs."""
    for name in net._optimizers:
        getattr(net, f"{name}_").load_state_dict(checkpoint.parts[name])
    for callback, state in _states_for(net, checkpoint):
        for attribute in _attributes_of_skorch(callback):
            value = getattr(callback, attribute)
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state[attribute])
            else:
                setattr(callback, attribute, state[attribute])


def _states_for(net: Any, checkpoint: Checkpoint) -> Iterator[tuple[Any, Any]]:
    callbacks = dict(net.callbacks_)
    for name, kept in checkpoint.contents()["callbacks"].items():
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


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: part for name, part in checkpoint.parts.items() if name != "callbacks"}


def _form(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a state dictionary is one of: the shape of each tensor, the size of each group of an optimizer."""
    if "param_groups" in weights:
        return {f"group {i}": len(group["params"]) for i, group in enumerate(weights["param_groups"])}
    return {
        key: _NOT_KNOWN_YET if _has_no_form(key, value) else tuple(getattr(value, "shape", ()))
        for key, value in weights.items()
    }


def _has_no_form(key: str, value: Any) -> bool:
    return nn.parameter.is_lazy(value) or key.endswith("_extra_state")


def _places(net: Any, dataset_train: Any = None) -> dict[str, Any]:
    """Return where random generators may be: parameters of the net, its module, its training data."""
    places = {name: value for name, value in vars(net).items() if not name.endswith("_")}
    modules = {f"module_.{path}": module for path, module in named_modules(net.module_)}
    return places | modules | {"dataset_train": dataset_train}
