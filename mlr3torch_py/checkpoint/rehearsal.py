"""Train a net in a process of its own, once without a stop or up to a stop, and write down how it ends."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback

from mlr3torch_py.checkpoint.attributes import hash_of
from mlr3torch_py.checkpoint.callback import CallbackSetCheckpoint
from mlr3torch_py.checkpoint.layout import state_dicts
from mlr3torch_py.checkpoint.net_state import callback_states
from mlr3torch_py.checkpoint.parts import attributes_of_skorch, generators_of, module_places, modules_of, searched
from mlr3torch_py.network.holdings import plain_values
from mlr3torch_py.network.randomness import generators, random_states, set_random_states
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.clock import rows_of
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.training.stages import is_staged

__all__ = ["STOPPED", "Ending", "Rehearsal", "main"]

STOPPED: Final = 77
_NAME: Final = "rehearsal"
_OURS: Final = (_NAME, f"{_NAME}_stop")


class Rehearsal(NamedTuple):
    """What is trained.

    Parameters
    ----------
    net : skorch.NeuralNet
        A clone, not initialized.
    X, y : object
    epochs : int
    random : mapping
        The states of the global generators.
    n_threads : int
    is_deterministic : bool
    dtype : torch.dtype
        Of torch: its threads, whether it uses deterministic algorithms, and its default dtype.
    """

    net: Any
    X: Any
    y: Any
    epochs: int
    random: Mapping[str, Any]
    n_threads: int
    is_deterministic: bool
    dtype: torch.dtype


class Ending(NamedTuple):
    """How a training has ended.

    Parameters
    ----------
    parts : dict
        Of each part that is compared, hashes by name.
    elsewhere : dict
        What else the net, its callbacks and its data hold, as text by path.
    begun : dict
        The same at the beginning of each epoch but the first, by its number; of a run that was stopped, right after it
        was resumed.
    said : list of str
        The warnings.
    pending_after : int
        The last epoch, if rows of a schedule are pending after it and the training did not end early; 0 otherwise.
    """

    parts: dict[str, dict[str, str]]
    elsewhere: dict[str, str]
    begun: dict[int, dict[str, str]]
    said: list[str]
    pending_after: int = 0


class _Stop(Callback):  # type: ignore[misc]
    """End the process, as a kill does, when the epoch after the last one begins; before it, write down what is held."""

    dataset_: Any = None

    def __init__(self, after: int, folder: Path) -> None:
        self.after = after
        self.folder = folder

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, **kwargs: Any) -> None:
        epoch = len(net.history)
        if epoch > self.after:
            os._exit(STOPPED)
        self.dataset_ = dataset_train
        if epoch > 1:
            (self.folder / f"begun{epoch}").write_bytes(pickle.dumps(_elsewhere(net, dataset_train)))


def main(rehearsal: str, folder: str, stop_after: str) -> None:
    """Train a pickled net into a folder, and write down its ending.

    Parameters
    ----------
    rehearsal : str
        The file of a pickled `Rehearsal`.
    folder : str
        The folder for checkpoints, and for whatever else callbacks write.
    stop_after : str
        The last epoch to train in this process.
    """
    job: Rehearsal = pickle.loads(Path(rehearsal).read_bytes())
    torch.set_num_threads(job.n_threads)
    torch.use_deterministic_algorithms(job.is_deterministic)
    torch.set_default_dtype(job.dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stop = _Stop(int(stop_after), Path(folder))
        net = _prepared(job, Path(folder), stop)
        set_random_states(generators(), job.random)
        net.fit(job.X, job.y)
        messages = [str(one.message) for one in said]
        begun = {int(file.name[5:]): pickle.loads(file.read_bytes()) for file in Path(folder).glob("begun*")}
        ending = _ending_of(net, stop.dataset_, begun, messages)._replace(pending_after=_pending_after(net, job.epochs))
    (Path(folder) / "ending").write_bytes(pickle.dumps(ending))


def _prepared(job: Rehearsal, folder: Path, stop: Callback) -> Any:
    """Return the net with a checkpoint callback that writes to a folder, as all its callbacks do."""
    net = job.net
    kept = []
    for item in net.callbacks if isinstance(net.callbacks, list | tuple) else ():
        callback = getattr(item, "callback", item[1] if isinstance(item, tuple) else item)
        if not isinstance(callback, CallbackSetCheckpoint):
            kept.append(item)
            for name in ("path", "dirname"):
                if hasattr(callback, name):
                    setattr(callback, name, str(folder / f"{name}{len(kept)}"))
    checkpoint = CallbackSetCheckpoint(folder / "checkpoints", 1, resume=True)
    net.set_params(callbacks=[(f"{_NAME}_stop", stop), *kept, (_NAME, checkpoint)], max_epochs=job.epochs)
    return net


def _ending_of(net: Net, dataset: Any, begun: dict[int, dict[str, str]], said: list[str]) -> Ending:
    buffers = {
        f"{place}.{name}": module._buffers[name]
        for place, module in module_places(net).items()
        for name in module._non_persistent_buffers_set
    }
    states = state_dicts(net)
    weights = {f"{name}.{key}": value for name in modules_of(net) for key, value in states[name].items()}
    optimizers = {
        f"{name}.{key}": value for name in net._optimizers for key, value in _flat(states[name]) if name in states
    }
    history = {
        f"epoch {i}: {key}": value for i, row in enumerate(rows_of(net.history), 1) for key, value in row.items()
    }
    history = {key: value for key, value in history.items() if not key.endswith(" batches")}
    random = random_states(generators_of(net, dataset))
    callbacks = {name: state for name, state in callback_states(net).items() if name not in _OURS}
    parts = {"weights": weights | buffers, "optimizer": optimizers, "history": history, "callbacks": dict(callbacks)}
    hashes: dict[str, dict[str, str]] = {
        part: {key: hash_of(value) for key, value in held.items()} for part, held in parts.items()
    }
    hashes["random states"] = {key: hash_of(value) for key, value in random.items()}
    return Ending(hashes, _elsewhere(net, dataset), begun, said)


def _pending_after(net: Net, epochs: int) -> int:
    settled = (one.settled_since(net) for one in own_callbacks(net).values() if is_staged(one))
    return epochs if len(net.history) == epochs and math.inf in settled else 0


def _elsewhere(net: Net, dataset: Any) -> dict[str, str]:
    """Return what the net, its callbacks and its data hold that is not compared, as text by path."""
    skip, roots = searched(net, dataset)
    roots = {name: root for name, root in roots.items() if not name.endswith(_OURS)}
    compared = {
        f"callbacks_.{name}.{attribute}"
        for name, callback in own_callbacks(net).items()
        for attribute in attributes_of_skorch(callback)
    }
    return {path: _text(value) for path, value in plain_values(roots, skip).items() if path not in compared}


def _flat(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    groups = [(f"group {i}", group) for i, group in enumerate(state.get("param_groups", ()))]
    return [*((f"state {key}", value) for key, value in state.get("state", {}).items()), *groups]


def _text(value: Any) -> str:
    is_short = not isinstance(value, torch.Tensor | np.ndarray)
    return repr(value)[:100] if is_short else hash_of(value)
