"""Find what a net consists of: modules, criteria, optimizers, and other objects with a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from skorch import NeuralNet
from skorch import callbacks as of_skorch
from torch import nn
from torch.utils.data import DataLoader

from mlr3torch_py.network.holdings import GLOBALS, walk
from mlr3torch_py.network.randomness import generators
from mlr3torch_py.network.unwrap import bare, modules_of, named_modules, named_parameters
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.order import own_callbacks
from mlr3torch_py.training.stages import is_staged

__all__ = [
    "attributes_of_skorch",
    "consolidation_of",
    "generators_of",
    "gradients",
    "has_state_dict",
    "is_stateful",
    "module_places",
    "modules_of",
    "optimizers_of",
    "searched",
    "stateful_objects",
]

# Attributes of skorch's callbacks that their on_train_begin resets.
_STATES_OF_SKORCH: Final[Mapping[type, tuple[str, ...]]] = MappingProxyType(
    {
        of_skorch.LRScheduler: ("lr_scheduler_", "batch_idx_"),
        of_skorch.PassthroughScoring: ("best_score_",),
        of_skorch.EarlyStopping: ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_"),
    }
)
# By which skorch clears the gradients of the batch before.
_STEPPING: Final = ("train_step", "train_step_single", "_zero_grad_optimizer", "_step_optimizer")


def module_places(net: Net) -> dict[str, nn.Module]:
    """Return all modules inside the modules and criteria of a net, by place."""
    return {
        f"{name}.{path}".rstrip("."): module
        for name, part in modules_of(net).items()
        for path, module in named_modules(part)
    }


def optimizers_of(net: Net) -> dict[str, Any]:
    """Return the optimizers of a net, by name."""
    return {name: getattr(net, f"{name}_") for name in net._optimizers}


def consolidation_of(optimizer: Any) -> Callable[[], None] | None:
    """Return what collects the state of an optimizer that is spread over the processes, such as torch's ZeRO."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    consolidate: Callable[[], None] | None = getattr(inner, "consolidate_state_dict", None)
    return consolidate


def stateful_objects(net: Net) -> dict[str, Any]:
    """Find everything else that a net holds and that has a state dict, such as a GradScaler or a metric, by path.

    Stateful callbacks are left out, as are the parameters of the net from which its modules were made, and loaders,
    which skorch makes for each epoch.
    """
    skip, roots = searched(net)
    for name in (*net._modules, *net._criteria, *net._optimizers):
        roots.pop(name, None)
    closed = [*optimizers_of(net).values(), *filter(is_stateful, own_callbacks(net).values())]
    inside = set(map(id, module_places(net).values()))
    found: dict[str, Any] = {}
    for path, value in walk(roots, [*skip, *closed]):
        is_new = (
            id(bare(value) if isinstance(value, nn.Module) else value) not in inside
            and not isinstance(value, type | DataLoader)
            and GLOBALS not in path
        )
        if is_new and has_state_dict(value) and not any(path.startswith((f"{one}.", f"{one}[")) for one in found):
            found[path] = value
    return found


def gradients(net: Net) -> dict[str, torch.Tensor]:
    """Return the gradients that the next step may add to, by name.

    There are none if the net steps as skorch does, which clears them first; a net with a step of its own may
    accumulate them.
    """
    is_skorchs = (getattr(type(net), name, None) is getattr(NeuralNet, name, None) for name in _STEPPING)
    if all(is_skorchs) and not any(name in vars(net) for name in _STEPPING):
        return {}
    return {
        f"{part}.{name}": tensor.grad
        for part, module in modules_of(net).items()
        for name, tensor in named_parameters(module).items()
        if tensor.grad is not None
    }


def generators_of(net: Net, dataset_train: Any = None, loaders: Sequence[Any] = ()) -> dict[str, Any]:
    """Find the generators that a net, its callbacks, its training data and its loaders hold."""
    skip, roots = searched(net, dataset_train, loaders)
    return generators(*skip, **roots)


def searched(
    net: Net, dataset_train: Any = None, loaders: Sequence[Any] = ()
) -> tuple[list[object], dict[str, object]]:
    """Return what of a net not to search, and what to search, by name."""
    callbacks = own_callbacks(net)
    tools = [getattr(one, name) for one in filter(is_staged, callbacks.values()) for name in type(one).tools]
    skip = [net, net.history, net.callbacks_, net.callbacks, *tools]
    own = {name: value for name, value in vars(net).items() if name not in ("fit_loop", "get_iterator")}
    later = {f"callbacks_.{name}": callback for name, callback in callbacks.items()}
    own |= {"class": type(net)}  # whose methods may draw from generators
    return skip, own | {"dataset_train": dataset_train, "loaders": list(loaders)} | later


def is_stateful(callback: Any) -> bool:
    """Whether a checkpoint keeps a state of this callback."""
    return has_state_dict(callback) or bool(attributes_of_skorch(callback))


def has_state_dict(value: Any) -> bool:
    """Whether an object can return and load a state; a `CallbackSet` without one says so by the default methods."""
    # Of the class, since an object such as a Mock may answer every attribute.
    methods = {name: getattr(type(value), name, None) for name in ("state_dict", "load_state_dict")}
    return all(method not in (None, getattr(CallbackSet, name)) for name, method in methods.items())


def attributes_of_skorch(callback: Any) -> tuple[str, ...]:
    """Return the attributes in which a callback of skorch keeps its state."""
    return next((names for kind, names in _STATES_OF_SKORCH.items() if isinstance(callback, kind)), ())
