"""Keep what modules, criteria, modules of callbacks and the net itself remember outside of their state dicts."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import BuiltinFunctionType
from typing import Any, Final

import numpy as np
import torch
from skorch import NeuralNet
from torch import nn
from xxhash import xxh3_128_hexdigest

from mlr3torch_py.checkpoint.parts import (
    consolidation_of,
    has_state_dict,
    module_places,
    optimizers_of,
    searched,
    stateful_objects,
)
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.names import is_note
from mlr3torch_py.network.bits import content_hash, is_freed
from mlr3torch_py.network.holdings import GLOBALS, is_of_this_package, plain_values, walk
from mlr3torch_py.network.randomness import is_generator, kept_random_states
from mlr3torch_py.network.unwrap import named_modules
from mlr3torch_py.protocols import Net

__all__ = ["Attributes", "hash_of", "left_out_by_optimizers"]

_OF_MODULES: Final = frozenset(vars(nn.Module()))
# Parameters of a net that are of the call and not of the run, or that are read once, before the first epoch.
_OF_CALL: Final = frozenset(
    {
        *("max_epochs", "verbose", "device", "warm_start", "callbacks"),
        *("batch_size", "train_split", "iterator_train", "iterator_valid"),
    }
)


class Attributes:
    """What modules, criteria, modules of callbacks and the net itself remember in attributes, and what has changed.

    These are plain attributes, the buffers that are not persistent, and parameters of the net that a file can hold.
    What skorch keeps in a net is left out.

    Examples
    --------
    >>> net = iris_net().initialize()
    >>> attributes = Attributes()
    >>> attributes.watch(net)
    >>> net.module_.n_calls = 3
    >>> attributes.changed(net)
    ({'module': {'n_calls': 3}}, [])
    """

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], tuple[bool, str]] = {}
        self._restored: set[tuple[str, str]] = set()

    def watch(self, net: Net) -> None:
        """Remember the values as they are when training begins."""
        owners = _owners(net)
        marks = _Marks(net, owners)
        self._before = {
            (place, name): marks.of(value)
            for place, owner in owners.items()
            for name, value in marks.values(owner).items()
        }

    def changed(self, net: Net) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the values that have changed by place and name, and the places of those that no file can hold."""
        kept: dict[str, dict[str, Any]] = {}
        lost: list[str] = []
        owners = _owners(net)
        marks = _Marks(net, owners)
        for place, owner in owners.items():
            for name, value in marks.values(owner).items():
                now = marks.of(value)
                if callable(value):  # one made since training began is not lost before it changes
                    self._before.setdefault((place, name), now)
                before = self._before.get((place, name))
                if now == before and (place, name) not in self._restored:
                    continue
                if now[0]:
                    kept.setdefault(place, {})[name] = value
                else:
                    lost.append(f"{place}.{name} ({type(value).__name__})")
        return kept, lost

    def restore(self, net: Net, kept: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Set the values that a checkpoint has kept, and return the places that the net lacks."""
        owners = _owners(net)
        for place, values in kept.items():
            if place in owners:
                for name, value in values.items():
                    _set(owners[place], name, value, net)
                    self._restored.add((place, name))
        return [place for place in kept if place not in owners]


def left_out_by_optimizers(net: Net) -> list[str]:
    """Name the optimizers inside others whose state these leave out of their own, as that of SAM does."""
    return [
        f"the state of {place}, which the state_dict() of {name} leaves out"
        for name, outer in optimizers_of(net).items()
        if consolidation_of(outer) is None
        for place, inner in walk({f"{name}_": outer}, [net])
        if isinstance(inner, torch.optim.Optimizer) and inner is not outer and GLOBALS not in place
        if {*map(content_hash, _tensors_in(inner.state))} - {*map(content_hash, _tensors_in(outer.state_dict()))}
    ]


def _owners(net: Net) -> dict[str, Any]:
    """Return the objects whose attributes are kept, by place."""
    return _further_modules(net) | _parts_of(net)


def _parts_of(net: Net) -> dict[str, Any]:
    others = {name: getattr(net, f"{name}_", None) for name in {"criterion": 0, **dict.fromkeys(net._criteria)}}
    return {"net": net, **{name: one for name, one in others.items() if hasattr(one, "__dict__")}, **module_places(net)}


def _further_modules(net: Net) -> dict[str, nn.Module]:
    """Return the modules inside the objects that have a state dict, apart from those of the net, by place."""
    known = set(map(id, module_places(net).values()))
    return {
        f"{name}.{path}".rstrip("."): module
        for name, one in stateful_objects(net).items()
        if isinstance(one, nn.Module)
        for path, module in named_modules(one)
        if id(module) not in known
    }


class _Marks:
    """By which one sees whether an attribute has changed, apart from what a checkpoint keeps elsewhere.

    Kept elsewhere are parameters, buffers, modules, random generators, and objects with a state dict. Of an object that
    holds such things, is called, or cannot be pickled, the numbers, strings, tensors and arrays count that it holds.
    """

    def __init__(self, net: Net, owners: Mapping[str, Any]) -> None:
        self._held = _tensors_held(owners.values())
        self._parts = [*searched(net)[0], *_parts_of(net).values(), *optimizers_of(net).values()]
        self._seen: dict[int, tuple[bool, str]] = {}  # by id, as many modules may have the same configuration

    def values(self, owner: Any) -> dict[str, Any]:
        """Return the attributes of an object that are its own to remember."""
        if isinstance(owner, nn.Module):
            skipped = _OF_MODULES
            buffers = {name: owner._buffers.get(name) for name in owner._non_persistent_buffers_set}
        else:
            skipped, buffers = self._skipped_of(owner) if hasattr(owner, "callbacks_") else frozenset(), {}
        own = {name: one for name, one in vars(owner).items() if name not in skipped and not is_note(name)} | buffers
        return {name: value for name, value in own.items() if not self._is_kept_elsewhere(value)}

    def of(self, value: Any) -> tuple[bool, str]:
        """Return whether a file can hold a value, and a hash of it."""
        if id(value) not in self._seen:
            self._seen[id(value)] = self._of(value)
        return self._seen[id(value)]

    def _skipped_of(self, net: Net) -> frozenset[str]:
        """Return the attributes of a net that are skorch's or its parts, and the parameters that no file can hold."""
        parts = {f"{name}_" for name in (*net._modules, *net._criteria, *net._optimizers)}
        params = net.get_params(deep=False)
        left_out = {name for name, one in params.items() if name.partition("__")[0] in _OF_CALL or not self.of(one)[0]}
        return (_of_skorch() - params.keys()) | parts | left_out

    def _of(self, value: Any) -> tuple[bool, str]:
        is_plain, found = _mark(value)
        if is_plain and found is not None:
            return True, found
        closed = [one for _, one in walk({"": value}, self._parts) if _is_closed(one)]
        if closed or callable(value) or found is None:
            inner = plain_values({"": value}, [*self._parts, *closed])
            kept = {path: one for path, one in inner.items() if GLOBALS not in path and _address(one) not in self._held}
            found = xxh3_128_hexdigest(repr({path: hash_of(one) for path, one in kept.items()}).encode())
        return False, found

    def _is_kept_elsewhere(self, value: Any) -> bool:
        if isinstance(value, torch.Tensor) and is_freed(value):
            return True  # whoever frees it fills it again
        if isinstance(value, type | BuiltinFunctionType) or _is_closed(value) or is_of_this_package(type(value)):
            return True
        return any(_address(tensor) in self._held for tensor in _tensors_in(value))


def _is_closed(value: Any) -> bool:
    """Whether the state of an object is kept as a whole."""
    return isinstance(value, nn.Module) or is_generator(value) or has_state_dict(value)


def _mark(value: Any) -> tuple[bool, str | None]:
    """Return whether a file can hold a value, and a hash of it; None where it has none."""
    if value is None or type(value) in (bool, int, float, str):
        return True, repr(value)
    tensors: dict[str, torch.Tensor] = {}
    try:
        written = json.dumps(to_portable(value, "", tensors), sort_keys=True)
        hashes = "".join(f"{t.dtype}{tuple(t.shape)}{content_hash(t).hex()}" for t in tensors.values())
        return True, xxh3_128_hexdigest((written + hashes).encode())
    except (TypeError, ValueError, RuntimeError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 and 3.13 warn that iterators will lose pickling
            return False, xxh3_128_hexdigest(pickle.dumps(value))
    except Exception:  # of whatever kind, as any class may say how it is pickled
        return False, None


def hash_of(value: Any) -> str:
    """Return a text that is equal for equal values: a hash, or the class of what has none."""
    return _mark(value.item() if isinstance(value, np.generic) else value)[1] or type(value).__name__


def _set(owner: Any, name: str, value: Any, net: Net) -> None:
    current = owner._buffers.get(name) if isinstance(owner, nn.Module) else getattr(owner, name, None)
    if isinstance(value, torch.Tensor):
        device = current.device if isinstance(current, torch.Tensor) else net.device
        value = value.clone() if device is None else value.to(device, copy=True)
    if isinstance(owner, nn.Module) and name in owner._buffers:
        owner._buffers[name] = value
    else:
        setattr(owner, name, value)


def _tensors_held(owners: Iterable[Any]) -> frozenset[int]:
    """Return the addresses of all parameters and persistent buffers."""
    tensors: list[Any] = []
    for module in (one for one in owners if isinstance(one, nn.Module)):
        tensors += module._parameters.values()
        tensors += (one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set)
    return frozenset(map(_address, tensors)) - {0}


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _address(tensor: Any) -> int:
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):  # sparse, lazy, or no tensor at all
        return 0


@cache
def _of_skorch() -> frozenset[str]:
    with kept_random_states():
        net = NeuralNet(nn.Linear, nn.MSELoss, module__in_features=1, module__out_features=1, callbacks=None)
        return frozenset((*vars(net.initialize()), "fit_loop", "get_iterator"))
