"""What the output of a module depends on besides its input, and whether it is still what it was."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten

from mlr3torch_py.cache.rows import UnfitError
from mlr3torch_py.network.bits import content_hash, version_of

__all__ = ["Fingerprint"]

# What is looked at by itself, or may differ.
_NO_SETTINGS: Final = frozenset({"training", "_parameters", "_buffers", "_modules", "_compiled_call_impl"})


_Leaves = tuple[list[Any], TreeSpec | None]


class _Seen(NamedTuple):
    owner: dict[str, Any]
    name: str
    tensor: torch.Tensor
    address: int
    version: int | None
    hash: bytes


class Fingerprint:
    """The parameters, buffers, children and all other attributes of a module at one time.

    Parameters and buffers are taken by their values and as objects; other attributes by value if they are tensors or
    plain, item by item if they are containers, and as objects otherwise.

    Parameters
    ----------
    module : torch.nn.Module
    before : Fingerprint, optional
        An earlier one, from which the hashes are taken of the tensors that torch has not seen change since.

    Raises
    ------
    UnfitError
        If a tensor of the module cannot be read.

    Examples
    --------
    >>> linear = nn.Linear(2, 1).requires_grad_(False)
    >>> before = Fingerprint(linear)
    >>> linear.bias.data += 1
    >>> before.seems_current
    True
    >>> before.difference(Fingerprint(linear))
    "the 'bias' of its Linear"
    """

    def __init__(self, module: nn.Module, before: Fingerprint | None = None) -> None:
        known: dict[int, _Seen] = {} if before is None else {id(seen.tensor): seen for seen in before._tensors}
        self._layers = [(layer, type(layer)) for layer in module.modules()]
        self._children = [
            (layer._modules, name, child) for layer, _ in self._layers for name, child in layer._modules.items()
        ]
        try:
            self._tensors: list[_Seen] = [
                _see(owner, name, tensor, known.get(id(tensor)))
                for layer, _ in self._layers
                for owner in (layer._parameters, layer._buffers)
                for name, tensor in owner.items()
                if tensor is not None
            ]
            self._settings = [_settings(layer) for layer, _ in self._layers]
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UnfitError(f"what it holds cannot be read: {error}") from error

    @property
    def seems_current(self) -> bool:
        """Whether all objects are the same ones, none trains, and torch has not seen a tensor change.

        It does not see what is written through ``.data`` or numpy, the statistics of BatchNorm, and other attributes.
        """
        return all(
            owner.get(name) is tensor
            and not tensor.requires_grad
            and tensor.data_ptr() == address
            and version_of(tensor) == version
            for owner, name, tensor, address, version, _ in self._tensors
        ) and all(owner.get(name) is child for owner, name, child in self._children)

    def difference(self, other: Fingerprint) -> str | None:
        """Name something that differs; None if all is the same."""
        if len(self._layers) != len(other._layers) or len(self._tensors) != len(other._tensors):
            return "its layers"
        for (layer, kind), (other_layer, other_kind) in zip(self._layers, other._layers, strict=True):
            if layer is not other_layer or kind is not other_kind:
                return "its layers"
        owners = {id(owner): kind for layer, kind in self._layers for owner in (layer._parameters, layer._buffers)}
        for one, another in zip(self._tensors, other._tensors, strict=True):
            if one.tensor is not another.tensor or one.hash != another.hash:
                return f"the {one.name!r} of its {owners[id(one.owner)].__name__}"
        for (_, kind), settings, others in zip(self._layers, self._settings, other._settings, strict=True):
            for name in settings.keys() | others.keys():
                if name not in settings or name not in others or not _are_same(settings[name], others[name]):
                    return f"the {name!r} of its {kind.__name__}"
        return None


def _see(owner: dict[str, Any], name: str, tensor: torch.Tensor, before: _Seen | None) -> _Seen:
    address, version = tensor.data_ptr(), version_of(tensor)
    is_known = before is not None and version is not None and (before.address, before.version) == (address, version)
    return _Seen(owner, name, tensor, address, version, before.hash if before and is_known else content_hash(tensor))


def _settings(layer: nn.Module) -> dict[str, _Leaves]:
    return {name: _leaves(value) for name, value in vars(layer).items() if name not in _NO_SETTINGS}


def _leaves(value: Any) -> _Leaves:
    if isinstance(value, (list, tuple, dict, set)):
        leaves, spec = tree_flatten(list(value) if isinstance(value, set) else value) if value else ([], None)
    else:
        leaves, spec = [value], None
    return [content_hash(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec


def _are_same(one: _Leaves, other: _Leaves) -> bool:
    return one[1] == other[1] and all(
        a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str, bytes)) and a == b)
        for a, b in zip(one[0], other[0], strict=True)
    )
