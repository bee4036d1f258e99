"""Check that a checkpoint fits a net: names, shapes and dtypes of tensors, optimizers, and classes of callbacks."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from mlr3torch_py.checkpoint.contents import GRADIENTS, LARGE, STATE_TENSORS, Checkpoint
from mlr3torch_py.checkpoint.parts import consolidation_of, module_places, modules_of, optimizers_of
from mlr3torch_py.names import listed
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.warn import warn

__all__ = [
    "RESTRUCTURED",
    "check_callbacks",
    "check_fits",
    "differences",
    "optimizer_classes",
    "restructured",
    "state_dicts",
    "structure_of",
]

# What older versions wrote for each optimizer that accelerate had wrapped.
_UNKNOWN: Final = "AcceleratedOptimizer"
# The key under which a checkpoint holds what changed in the structure of the net while it trained.
RESTRUCTURED: Final = "restructured"
_CLASS_OF: Final = "class of "


def check_fits(net: Net, checkpoint: Checkpoint, ctx: ContextTorch) -> None:
    """Check that a checkpoint can be restored into a net.

    Raises
    ------
    ValueError
        If it is of another network or optimizer, or of an epoch after the last of this call.
    """
    epoch = checkpoint.epoch
    if epoch > ctx.total_epochs:
        raise ValueError(
            f"`{ctx.asked_by}` is {ctx.asked_epochs}, but the checkpoint is of epoch {epoch} and a resumed run counts "
            "all of its epochs; raise it"
        )
    if different := differences(net, checkpoint):
        was_changed = (
            ", or change the network before training, not while it trains: no checkpoint can repeat that"
            if RESTRUCTURED in checkpoint.state
            else ""
        )
        raise ValueError(
            f"`path`: the checkpoint of epoch {epoch} is of another network or optimizer, with a different "
            f"{listed(different, most=3)}; give another folder{was_changed}"
        )


def differences(net: Net, checkpoint: Checkpoint) -> list[str]:
    """List what is laid out differently in a net and in a checkpoint."""
    classes = optimizer_classes(net)
    here = _layout(_parts_of(net), classes)
    known = {name: kind for name, kind in checkpoint.state["classes"].items() if kind != _UNKNOWN}
    there = _layout(_of_net(checkpoint.parts), classes | known)
    if replaced := {place: kind for place, kind in checkpoint.state.get(RESTRUCTURED, {}).items() if kind}:
        here, there = here | _classes_of(net, replaced), there | replaced
    return [
        f"{place} ({here.get(place, 'nothing')} here, {there.get(place, 'nothing')} there)"
        for place in here | there
        if here.get(place, 0) not in (None, there.get(place, 0)) and _is_first(place, here, there)
    ]


def structure_of(net: Net, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the layout of a net's state dicts, and the classes of its modules; None for what its first batch decides.

    Parameters
    ----------
    net : skorch.NeuralNet
    parts : mapping
        Its state dicts, by name.
    """
    return _layout(_of_net(parts), optimizer_classes(net)) | _classes_of(net)


def restructured(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what has changed in the structure of a net while it trains, for modules with the class that they have now.

    What is first made in a forward pass, and has no tensors, a new net makes as well.
    """
    return {
        place: now.get(place) if place.startswith(_CLASS_OF) else None
        for place in {**before, **now}
        if (place in before or not place.startswith(_CLASS_OF))
        and before.get(place, 0) not in (None, now.get(place, 0))
        and _is_first(place, before, now)
    }


def check_callbacks(net: Net, checkpoint: Checkpoint) -> None:
    """Check that the callbacks of a net are those whose states a checkpoint holds.

    Raises
    ------
    ValueError
        If one is of another class.

    Warns
    -----
    UserWarning
        For a state whose callback is missing.
    """
    callbacks = own_callbacks(net)
    for name, kept in checkpoint.state["callbacks"].items():
        found = type(callbacks[name]).__qualname__ if name in callbacks else None
        if found is None:
            warn(
                f"`callbacks`: the checkpoint holds a state of the callback {name!r}, which the net lacks; "
                "add it under this name if the run needs it"
            )
        elif found != kept["class"]:
            raise ValueError(
                f"`callbacks`: the checkpoint holds a state of {kept['class']} for the callback {name!r}, but that "
                f"is now of {found}; give it another name"
            )


def state_dicts(net: Net) -> dict[str, Mapping[str, Any]]:
    """Return the state dicts of modules, criteria and optimizers, by name."""
    return {name: part.state_dict() for name, part in (modules_of(net) | optimizers_of(net)).items()}


def optimizer_classes(net: Net) -> dict[str, str]:
    """Return the names of the optimizers' classes, without the wrapper of accelerate."""
    found = optimizers_of(net)
    bare = {name: one.optimizer if type(one).__name__ == _UNKNOWN else one for name, one in found.items()}
    return {name: type(optimizer).__name__ for name, optimizer in bare.items()}


def _parts_of(net: Net) -> dict[str, Mapping[str, Any]]:
    """Return the state dicts of modules, criteria and optimizers, or only the groups of what is spread."""
    parts = modules_of(net) | optimizers_of(net)
    return {
        name: part.state_dict() if consolidation_of(part) is None else {"param_groups": part.param_groups}
        for name, part in parts.items()
    }


def _of_net(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Leave out what a checkpoint holds beside state dicts."""
    return {name: part for name, part in parts.items() if name not in (STATE_TENSORS, GRADIENTS, LARGE)}


def _layout(parts: Mapping[str, Mapping[str, Any]], classes: Mapping[str, str]) -> dict[str, Any]:
    """Return the classes and group sizes of optimizers, and the shapes and dtypes of tensors."""
    layout: dict[str, Any] = dict(classes)
    dtypes: dict[str, Any] = {}
    for name, part in parts.items():
        for i, group in enumerate(part.get("param_groups", ())):
            layout[f"{name}.group {i}"] = len(group["params"])
        for key, value in part.items():
            if isinstance(value, torch.Tensor) and not key.endswith("_extra_state"):
                is_lazy = nn.parameter.is_lazy(value)
                layout[f"{name}.{key}"] = None if is_lazy else tuple(value.shape)
                dtypes[f"dtype of {name}.{key}"] = None if is_lazy else str(value.dtype).removeprefix("torch.")
    return layout | dtypes


def _classes_of(net: Net, among: Container[str] | None = None) -> dict[str, str | None]:
    """Return the classes of the modules of a net, or of some of them; None for those that become another."""
    return {
        name: None if isinstance(module, LazyModuleMixin) else type(module).__qualname__
        for place, module in module_places(net).items()
        for name in [f"{_CLASS_OF}{place}"]
        if among is None or name in among
    }


def _is_first(place: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether a difference says something that no other has said: a dtype only where both have the tensor."""
    return not place.startswith("dtype of ") or (place in here and place in there)
