"""Capture, validate and restore the state of a net."""

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
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet

__all__ = [
    "callback_states",
    "capture",
    "check_fits",
    "generators_of",
    "is_stateful",
    "restore",
    "restore_after_train_begin",
]

# Attributes of skorch's callbacks that their on_train_begin resets.
_STATES_OF_SKORCH: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType(
    {
        of_skorch.LRScheduler: ("lr_scheduler_", "batch_idx_"),
        of_skorch.PassthroughScoring: ("best_score_",),
        of_skorch.EarlyStopping: ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_"),
    }
)


def capture(net: Net, dataset_train: Any, states_of_call: Mapping[str, Any] | None) -> Checkpoint:
    """Capture the state of a net at the end of an epoch.

    Parameters
    ----------
    net : skorch.NeuralNet
    dataset_train : torch.utils.data.Dataset
    states_of_call : mapping, optional
        The random states from which this call of ``partial_fit`` drew its validation split; None for the first call
        of a run.

    Raises
    ------
    TypeError
        If a callback, or the history, holds something that no file can keep.
    """
    rows = [dict(row) for row in net.history.to_list()]
    for row in rows[:-1]:
        if "train_batch_count" in row:
            row["batches"] = []
    state = {
        "classes": _optimizer_classes(net),
        "history": rows,
        "callbacks": callback_states(net),
        "random": random_states(generators_of(net, dataset_train)),
        "random_of_call": states_of_call,
        "trainable": trainable_names(net.module_),
    }
    return Checkpoint.of(len(rows), _state_dicts(net), state)


def callback_states(net: Net) -> dict[str, Any]:
    """Return the classes and states of the stateful callbacks, by name."""
    return {
        name: {"class": type(callback).__qualname__, "state": _state_of(callback)}
        for name, callback in net.callbacks_
        if is_stateful(callback)
    }


def check_fits(net: Net, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint can be restored into a net.

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
            f"`max_epochs` is {net.max_epochs}, but the checkpoint is of epoch {epoch} and a resumed run counts all of "
            "its epochs; raise it"
        )
    here = _layout(_state_dicts(net), _optimizer_classes(net))
    there = _layout({name: part for name, part in parts.items() if name != "callbacks"}, state["classes"])
    different = [
        f"{place} ({here.get(place, 'nothing')} here, {there.get(place, 'nothing')} there)"
        for place in here | there
        if here.get(place, 0) not in (None, there.get(place, 0))
    ]
    if different:
        raise ValueError(
            f"the checkpoint of epoch {epoch} is of another network or optimizer, with a different "
            f"{listed(different, most=3)}; give `path` another folder"
        )
    callbacks = dict(net.callbacks_)
    for name, kept in state["callbacks"].items():
        found = type(callbacks[name]).__qualname__ if name in callbacks else None
        if found is None:
            warnings.warn(f"the checkpoint holds a state of the callback {name!r}, which the net lacks", stacklevel=2)
        elif found != kept["class"]:
            raise ValueError(
                f"the checkpoint holds a state of {kept['class']} for the callback {name!r}, but that is now of "
                f"{found}; give it another name"
            )


def restore(net: Net, checkpoint: Checkpoint) -> None:
    """Restore a net, or change nothing if a callback refuses its state."""
    before = [(callback, dict(vars(callback))) for _, callback in net.callbacks_]
    try:
        for callback, state in _states_for(net, checkpoint):
            if _has_state_dict(callback):
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
    rows: Any = getattr(net.history, "history", net.history)  # a DistributedHistory wraps a list
    rows.clear()
    rows.extend(checkpoint.contents()["history"])


def restore_after_train_begin(net: Net, checkpoint: Checkpoint) -> None:
    """Restore what the callbacks' ``on_train_begin`` has reset.

    These are the optimizers, whose rates a new scheduler sets, and the attributes of skorch's callbacks.

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


def is_stateful(callback: Any) -> bool:
    """Whether a checkpoint keeps a state of this callback."""
    return _has_state_dict(callback) or bool(_attributes_of_skorch(callback))


def generators_of(net: Net, dataset_train: Any = None) -> dict[str, Any]:
    """Find the generators in a net's parameters, modules and training data."""
    params = {name: value for name, value in vars(net).items() if not name.endswith("_")}
    modules = {f"module_.{path}": module for path, module in named_modules(net.module_)}
    return generators(**(params | modules | {"dataset_train": dataset_train}))


def _states_for(net: Net, checkpoint: Checkpoint) -> Iterator[tuple[Any, Any]]:
    callbacks = dict(net.callbacks_)
    for name, kept in checkpoint.contents()["callbacks"].items():
        if name in callbacks:
            yield callbacks[name], kept["state"]


def _has_state_dict(callback: Any) -> bool:
    # Of the class, since an object such as a Mock may answer every attribute.
    methods = {name: getattr(type(callback), name, None) for name in ("state_dict", "load_state_dict")}
    return all(method not in (None, getattr(CallbackSet, name)) for name, method in methods.items())


def _state_of(callback: Any) -> Any:
    if _has_state_dict(callback):
        return callback.state_dict()
    values = {attribute: getattr(callback, attribute) for attribute in _attributes_of_skorch(callback)}
    return {
        attribute: value.state_dict() if hasattr(value, "state_dict") else value for attribute, value in values.items()
    }


def _attributes_of_skorch(callback: Any) -> tuple[str, ...]:
    return next((names for kind, names in _STATES_OF_SKORCH.items() if isinstance(callback, kind)), ())


def _parts(net: Net) -> dict[str, Any]:
    """Return the bare modules, criteria and optimizers of a net, by name."""
    parts = {name: getattr(net, f"{name}_") for name in (*net._modules, *net._criteria)}
    modules = {name: bare(part) for name, part in parts.items() if isinstance(part, nn.Module)}
    return modules | {name: getattr(net, f"{name}_") for name in net._optimizers}


def _state_dicts(net: Net) -> dict[str, Mapping[str, Any]]:
    return {name: part.state_dict() for name, part in _parts(net).items()}


def _optimizer_classes(net: Net) -> dict[str, str]:
    return {name: type(getattr(net, f"{name}_")).__name__ for name in net._optimizers}


def _layout(parts: Mapping[str, Mapping[str, Any]], classes: Mapping[str, str]) -> dict[str, Any]:
    """Return the classes and group sizes of optimizers, and the shapes of tensors."""
    layout: dict[str, Any] = dict(classes)
    for name, part in parts.items():
        for i, group in enumerate(part.get("param_groups", ())):
            layout[f"{name}.group {i}"] = len(group["params"])
        for key, value in part.items():
            if isinstance(value, torch.Tensor) and not key.endswith("_extra_state"):
                layout[f"{name}.{key}"] = None if nn.parameter.is_lazy(value) else tuple(value.shape)
    return layout
