"""All of a net that a checkpoint keeps: taking it down, checking that it fits, and loading it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from skorch import callbacks as of_skorch
from torch import nn

from mlr3torch_py.checkpoint.folder import Checkpoint
from mlr3torch_py.names import listed
from mlr3torch_py.network.parameters import Flags, frozen_by_us, trainable_names
from mlr3torch_py.network.randomness import generators, random_states
from mlr3torch_py.network.unwrap import bare, named_modules

__all__ = [
    "callback_states",
    "check_fits",
    "is_stateful",
    "load",
    "load_after_begin",
    "places_of_generators",
    "take_checkpoint",
]

# What callbacks of skorch know beyond the history; their begin makes it anew.
_STATES_OF_SKORCH: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType(
    {
        of_skorch.LRScheduler: ("lr_scheduler_", "batch_idx_"),
        of_skorch.PassthroughScoring: ("best_score_",),
        of_skorch.EarlyStopping: ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_"),
    }
)


def take_checkpoint(net: Any, dataset_train: Any, states_of_call: Mapping[str, Any] | None) -> Checkpoint:
    """Take down all of a net, at the end of an epoch.

    Parameters
    ----------
    net : skorch.NeuralNet
    dataset_train : torch.utils.data.Dataset
    states_of_call : mapping, optional
        The random states by which this call drew its validation split, where it is not the first one of a run.

    Raises
    ------
    TypeError
        If a callback, or the history, holds what a file cannot.
    """
    weights = {name: part.state_dict() for name, part in _parts(net).items()}
    rows = [dict(row) for row in net.history.to_list()]
    for row in rows[:-1]:
        if "train_batch_count" in row:
            row["batches"] = []
    state = {
        "classes": _optimizer_classes(net),
        "history": rows,
        "callbacks": callback_states(net),
        "random": random_states(generators(**places_of_generators(net, dataset_train))),
        "random_of_call": states_of_call,
        "trainable": trainable_names(net.module_),
    }
    return Checkpoint.of(len(rows), weights, state)


def callback_states(net: Any) -> dict[str, Any]:
    """Return the classes and the states of those callbacks that have one, by their names."""
    return {
        name: {"class": type(callback).__qualname__, "state": _state_of(callback)}
        for name, callback in net.callbacks_
        if is_stateful(callback)
    }


def check_fits(net: Any, checkpoint: Checkpoint) -> None:
    """Check, before anything is changed, that a checkpoint is one of this net.

    Raises
    ------
    ValueError
        If it is of another network, optimizer or class of callback, or has more epochs than ``max_epochs``.

    Warns
    -----
    UserWarning
        For a state whose callback is missing.
    """
    epoch, parts, state = checkpoint
    if epoch > net.max_epochs:
        raise ValueError(
            f"`max_epochs` is {net.max_epochs}, but the checkpoint is of epoch {epoch}; in a run that is resumed it "
            "counts all epochs, so raise it"
        )
    here = _form({name: part.state_dict() for name, part in _parts(net).items()}, _optimizer_classes(net))
    there = _form({name: part for name, part in parts.items() if name != "callbacks"}, state["classes"])
    differs = [
        f"{place} ({here.get(place, 'nothing')} here, {there.get(place, 'nothing')} there)"
        for place in here | there
        if here.get(place, 0) not in (None, there.get(place, 0))
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


def load(net: Any, checkpoint: Checkpoint) -> None:
    """Load a checkpoint into a net; if a callback refuses its state, all is as it was before."""
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
    rows = getattr(net.history, "history", net.history)  # a distributed history keeps a list in it
    rows.clear()
    rows.extend(checkpoint.contents()["history"])


def load_after_begin(net: Any, checkpoint: Checkpoint) -> None:
    """Load again what the begin of schedulers has changed, and what skorch's callbacks have forgotten at theirs.

    Raises
    ------
    ValueError
        If the history is no longer that of the checkpoint.
    """
    if len(net.history) != checkpoint.epoch:
        raise ValueError(
            f"`callbacks`: another callback, such as LoadInitState, has loaded a history of {len(net.history)} epochs "
            f"over the checkpoint of epoch {checkpoint.epoch}; keep only one of the two"
        )
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


def is_stateful(callback: Any) -> bool:
    """Whether a callback knows something that a checkpoint keeps."""
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


def _form(parts: Mapping[str, Mapping[str, Any]], classes: Mapping[str, str]) -> dict[str, Any]:
    """Say what parts are of: classes of optimizers and sizes of their groups, and the shapes of tensors."""
    form: dict[str, Any] = dict(classes)
    for name, part in parts.items():
        for i, group in enumerate(part.get("param_groups", ())):
            form[f"{name}.group {i}"] = len(group["params"])
        for key, value in part.items():
            if isinstance(value, torch.Tensor) and not key.endswith("_extra_state"):
                form[f"{name}.{key}"] = None if nn.parameter.is_lazy(value) else tuple(value.shape)
    return form


def places_of_generators(net: Any, dataset_train: Any = None) -> dict[str, Any]:
    """Return where random generators may be: parameters of the net, its module, its training data."""
    places = {name: value for name, value in vars(net).items() if not name.endswith("_")}
    modules = {f"module_.{path}": module for path, module in named_modules(net.module_)}
    return places | modules | {"dataset_train": dataset_train}
