"""Capture and restore the state of a net."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

from skorch.callbacks import EarlyStopping
from torch import nn

from mlr3torch_py.checkpoint.attributes import Attributes, hash_of
from mlr3torch_py.checkpoint.contents import GRADIENTS, Checkpoint
from mlr3torch_py.checkpoint.layout import optimizer_classes, state_dicts
from mlr3torch_py.checkpoint.parts import (
    attributes_of_skorch,
    gradients,
    has_state_dict,
    is_stateful,
    modules_of,
    optimizers_of,
    stateful_objects,
)
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.checkpoint.row_file import line_of
from mlr3torch_py.network.holdings import is_of_this_package
from mlr3torch_py.network.parameters import Flags, frozen_before_us
from mlr3torch_py.network.unwrap import named_parameters
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import row_of
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.training.stages import is_staged

__all__ = [
    "callback_states",
    "capture",
    "object_states",
    "restore_callbacks",
    "restore_flags",
    "restore_flags_by_hand",
    "restore_history",
    "restore_parts",
    "restore_rest",
    "was_stopped",
]


def capture(net: Net, more: Mapping[str, Any], attributes: Mapping[str, Any], first: int) -> Checkpoint:
    """Capture the state of a net at the end of an epoch.

    Parameters
    ----------
    net : skorch.NeuralNet
    more : mapping
        What else to keep.
    attributes : mapping
        What `Attributes.changed` returned.
    first : int
        The number of rows of the history that are kept already.

    Raises
    ------
    TypeError
        If a callback, or the history, holds something that no file can keep.
    """
    n_rows = len(net.history)
    state = {
        "classes": optimizer_classes(net),
        "history": _row(net, n_rows - 1),
        "callbacks": callback_states(net),
        "objects": object_states(net)[0],
        "attributes": attributes,
        **_flags_of(net),
        **more,
    }
    rows = [line_of(_without_batches(_row(net, i)), f"history.{i}") for i in range(first, n_rows - 1)]
    return Checkpoint.of(n_rows, state_dicts(net) | {GRADIENTS: gradients(net)}, state, rows, first)


def callback_states(net: Net) -> dict[str, Any]:
    """Return the classes and states of the stateful callbacks, by name."""
    return {
        name: {"class": type(callback).__qualname__, "state": _state_of(callback)}
        for name, callback in own_callbacks(net).items()
        if is_stateful(callback)
    }


def object_states(net: Net) -> tuple[dict[str, Any], list[str]]:
    """Return the states of what else has a state dict, by path, and the paths of those that no file can hold."""
    states: dict[str, Any] = {}
    lost = []
    for path, one in stateful_objects(net).items():
        try:
            to_portable(state := one.state_dict(), path, {})
        except Exception:  # of whatever kind, as it is code of others
            lost.append(path)
        else:
            states[path] = state
    return states, lost


def restore_callbacks(net: Net, checkpoint: Checkpoint) -> None:
    """Restore the callbacks, or change nothing if one refuses its state.

    Those whose ``on_train_begin`` has yet to make what they load into are left to `restore_rest`.
    """
    with _unchanged_by_errors(own_callbacks(net).values()):
        for callback, state in _states_for(net, checkpoint):
            is_early = (AttributeError, KeyError, TypeError) if _may_be_reset(callback) else ()
            with suppress(*is_early), _unchanged_by_errors([callback]):
                if has_state_dict(callback):
                    _load(callback, state)


def was_stopped(net: Net, checkpoint: Checkpoint) -> bool:
    """Whether skorch's EarlyStopping has stopped the run, and would have with the patience of now."""
    return any(
        state["misses_"] >= callback.patience
        for callback, state in _states_for(net, checkpoint)
        if isinstance(callback, EarlyStopping)
    )


def restore_history(net: Net, checkpoint: Checkpoint) -> None:
    """Replace the rows of a net's history by those of a checkpoint."""
    rows: Any = getattr(net.history, "history", net.history)  # a DistributedHistory wraps a list
    rows.clear()
    rows.extend(checkpoint.contents()["history"])


def restore_parts(net: Net, checkpoint: Checkpoint) -> None:
    """Restore modules, criteria and optimizers."""
    for name, part in (modules_of(net) | optimizers_of(net)).items():
        if name in checkpoint.parts:
            part.load_state_dict(checkpoint.parts[name])


def restore_flags(net: Net, checkpoint: Checkpoint) -> None:
    """Let train what trained at a checkpoint, before the freezing callbacks begin."""
    for module, flags in _flags_for(net, checkpoint):
        flags.with_ours(module).restore(module)


def restore_flags_by_hand(net: Net, checkpoint: Checkpoint) -> None:
    """Restore the flags that others had changed at a checkpoint, once the freezing callbacks have begun."""
    for module, flags in _flags_for(net, checkpoint):
        flags.restore_by_hand(module)


def restore_rest(net: Net, checkpoint: Checkpoint, attributes: Attributes) -> list[str]:
    """Restore what no ``on_train_begin`` may reset: gradients, attributes, further objects, and others' callbacks.

    Returns
    -------
    list of str
        The places that the net lacks.
    """
    for callback, state in _states_for(net, checkpoint):
        if _may_be_reset(callback) and hash_of(_state_of(callback)) != hash_of(state):
            _load(callback, state)
        for name in attributes_of_skorch(callback):
            value = getattr(callback, name)
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state[name])
            else:
                setattr(callback, name, state[name])
    pending = checkpoint.parts.get(GRADIENTS, {})
    for part, module in modules_of(net).items():
        for name, tensor in named_parameters(module).items():
            if (gradient := pending.get(f"{part}.{name}")) is not None:
                tensor.grad = gradient.to(tensor.device, copy=True)
    contents = checkpoint.contents()
    objects = stateful_objects(net)
    kept: dict[str, Any] = contents.get("objects", {})
    for path, state in kept.items():
        if path in objects:
            objects[path].load_state_dict(state)
    missing = [path for path in kept if path not in objects]
    return list(dict.fromkeys(missing + attributes.restore(net, contents.get("attributes", {}))))


@contextmanager
def _unchanged_by_errors(callbacks: Iterable[Any]) -> Iterator[None]:
    """Give callbacks the attributes of before if an error is raised."""
    before = [(callback, dict(vars(callback))) for callback in callbacks]
    try:
        yield
    except Exception:
        for callback, attributes in before:
            vars(callback).clear()
            vars(callback).update(attributes)
        raise


def _states_for(net: Net, checkpoint: Checkpoint) -> Iterator[tuple[Any, Any]]:
    callbacks = own_callbacks(net)
    for name, kept in checkpoint.contents()["callbacks"].items():
        if name in callbacks:
            yield callbacks[name], kept["state"]


def _load(callback: Any, state: Any) -> None:
    state = deepcopy(state)  # for what is loaded may be changed in place
    if not is_staged(callback):
        callback.load_state_dict(state)
    elif not callback.is_from_history:
        callback.resume_run(state)


def _may_be_reset(callback: Any) -> bool:
    """Whether a callback has a state of its own, unlike those of this package, which know how they resume."""
    methods = [vars(cls).get("state_dict") for cls in type(callback).__mro__ if cls is not CallbackSet]
    return has_state_dict(callback) and not any(map(is_of_this_package, methods))


def _state_of(callback: Any) -> Any:
    if has_state_dict(callback):
        if is_staged(callback):
            return None if callback.is_from_history else callback.run_state()
        return callback.state_dict()
    values = {attribute: getattr(callback, attribute) for attribute in attributes_of_skorch(callback)}
    return {
        attribute: value.state_dict() if hasattr(value, "state_dict") else value for attribute, value in values.items()
    }


def _flags_of(net: Net) -> dict[str, dict[str, Any]]:
    flags = {name: Flags.of(module) for name, module in modules_of(net).items()}
    before = {name: one.frozen_before_us for name, one in flags.items()}
    return {
        "trainable": {name: sorted(one.trainable) for name, one in flags.items()},
        "frozen_by_us": {name: sorted(one.frozen_by_us) for name, one in flags.items()},
        "frozen_before_us": {name: sorted(names) for name, names in before.items() if names is not None},
    }


def _flags_for(net: Net, checkpoint: Checkpoint) -> Iterator[tuple[nn.Module, Flags]]:
    """Yield the modules of a net with their flags at a checkpoint; older ones do not say who froze what."""
    state = checkpoint.state
    trainable = state["trainable"] if isinstance(state["trainable"], dict) else {"module": state["trainable"]}
    ours, before = state.get("frozen_by_us", {}), state.get("frozen_before_us", {})
    for name, module in modules_of(net).items():
        if name in ours:
            known = frozenset(before[name]) if name in before else None
            yield module, Flags(frozenset(trainable[name]), frozenset(ours[name]), known)
        elif name in trainable:
            yield module, Flags(frozenset(trainable[name]), frozenset(), frozen_before_us(module)).with_ours(module)


def _row(net: Net, i: int) -> dict[str, Any]:
    return dict(row_of(net.history, i))


def _without_batches(row: dict[str, Any]) -> dict[str, Any]:
    """Drop the batches of a finished epoch."""
    return row | {"batches": []} if "train_batch_count" in row else row
