"""Keep what modules, criteria and the net itself remember outside of their state dicts."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Iterator, Mapping, Set
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from skorch import NeuralNet
from torch import nn
from xxhash import xxh3_128_hexdigest

from mlr3torch_py.checkpoint.parts import has_state_dict, module_places
from mlr3torch_py.checkpoint.portable import to_portable
from mlr3torch_py.network.bits import content_hash
from mlr3torch_py.network.randomness import is_generator, kept_random_states
from mlr3torch_py.protocols import Net

__all__ = ["Attributes", "hash_of"]

_OF_MODULES: Final = frozenset(vars(nn.Module()))


class Attributes:
    """What modules, criteria and the net itself remember in attributes, and what of it has changed since.

    These are plain attributes, and the buffers that are not persistent. Parameters of the net, and what skorch keeps
    in a net, are left out.

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
        self._before: dict[tuple[str, str], tuple[bool, str | None]] = {}
        self._restored: set[tuple[str, str]] = set()

    def watch(self, net: Net) -> None:
        """Remember the values as they are when training begins."""
        held = _tensors_held(net)
        self._before = {
            (place, name): _mark(value)
            for place, owner in _owners(net).items()
            for name, value in _values(owner, held).items()
        }

    def changed(self, net: Net) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the values that have changed by place and name, and the places of those that no file can hold."""
        kept: dict[str, dict[str, Any]] = {}
        lost: list[str] = []
        held = _tensors_held(net)
        for place, owner in _owners(net).items():
            for name, value in _values(owner, held).items():
                now = _mark(value)
                before = self._before.get((place, name))
                if now == before and (place, name) not in self._restored:
                    continue
                if now[0]:
                    kept.setdefault(place, {})[name] = value
                elif before is None or now[1] is not None:
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


def _owners(net: Net) -> dict[str, Any]:
    others = {name: getattr(net, f"{name}_", None) for name in {"criterion": 0, **dict.fromkeys(net._criteria)}}
    return {"net": net, **{name: one for name, one in others.items() if hasattr(one, "__dict__")}, **module_places(net)}


def _values(owner: Any, held: Set[int]) -> dict[str, Any]:
    """Return the attributes of an object that are its own to remember."""
    if isinstance(owner, nn.Module):
        skipped = _OF_MODULES
        buffers = {name: owner._buffers.get(name) for name in owner._non_persistent_buffers_set}
    else:
        skipped, buffers = _of_net(owner) if hasattr(owner, "callbacks_") else frozenset(), {}
    own = {name: value for name, value in vars(owner).items() if name not in skipped}
    return {name: value for name, value in (own | buffers).items() if not _is_kept_elsewhere(value, held)}


def _is_kept_elsewhere(value: Any, held: Set[int]) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if any(callable(one) or is_generator(one) or has_state_dict(one) for one in (value, *items)):
        return True
    return any(_address(tensor) in held for tensor in _tensors_in(value))


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


def _tensors_held(net: Net) -> frozenset[int]:
    """Return the addresses of all parameters and persistent buffers."""
    tensors: list[Any] = []
    for module in module_places(net).values():
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


def _of_net(net: Net) -> frozenset[str]:
    """Return the attributes of a net that are skorch's, its parameters, or its parts."""
    parts = {f"{name}_" for name in (*net._modules, *net._criteria, *net._optimizers)}
    given = (name for cls in type(net).__mro__ for name in inspect.signature(cls).parameters)
    return _of_skorch() | parts | {*given, *(name for name in vars(net) if "__" in name)}


@cache
def _of_skorch() -> frozenset[str]:
    with kept_random_states():
        net = NeuralNet(nn.Linear, nn.MSELoss, module__in_features=1, module__out_features=1, callbacks=None)
        return frozenset((*vars(net.initialize()), "fit_loop", "get_iterator"))
