"""What the output of a module depends on besides its input, and whether it is still what it was."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from mlr3torch_py.rows import content_hash, version_of

__all__ = ["Fingerprint"]


class _Seen(NamedTuple):
    owner: dict[str, Any]
    name: str
    tensor: torch.Tensor
    version: int | None
    hash: bytes


class Fingerprint:
    """The parameters, buffers, children and plain settings of a module at one time.

    Parameters
    ----------
    module : torch.nn.Module
    before : Fingerprint, optional
        An earlier one, from which the hashes are taken of the tensors that torch has not seen change since.

    Examples
    --------
    >>> linear = nn.Linear(2, 1).requires_grad_(False)
    >>> before = Fingerprint(linear)
    >>> linear.bias.data += 1
    >>> before.seems_current, before == Fingerprint(linear)
    (True, False)
    """

    def __init__(self, module: nn.Module, before: Fingerprint | None = None) -> None:
        known = {} if before is None else {id(seen.tensor): seen for seen in before._tensors}
        self._layers = tuple(module.modules())
        self._children = tuple(
            (layer._modules, name, child) for layer in self._layers for name, child in layer._modules.items()
        )
        self._tensors: tuple[_Seen, ...] = tuple(
            _see(owner, name, tensor, known.get(id(tensor)))
            for layer in self._layers
            for owner in (layer._parameters, layer._buffers)
            for name, tensor in owner.items()
            if tensor is not None
        )
        self._settings = [
            {key: value for key, value in vars(layer).items() if isinstance(value, (int, float, str))}
            for layer in self._layers
        ]
        for settings in self._settings:
            settings.pop("training")

    @property
    def seems_current(self) -> bool:
        """Whether all objects are the same ones, none trains, and torch has not seen a tensor change.

        It does not see what is written through ``.data`` or numpy, nor the statistics of BatchNorm.
        """
        return all(
            owner.get(name) is tensor and not tensor.requires_grad and version_of(tensor) == version
            for owner, name, tensor, version, _ in self._tensors
        ) and all(owner.get(name) is child for owner, name, child in self._children)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint) and self._identity == other._identity and self._settings == other._settings
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def _identity(self) -> list[Any]:
        tensors = [(seen.name, id(seen.tensor), seen.hash) for seen in self._tensors]
        return [*map(id, self._layers), *tensors]


def _see(owner: dict[str, Any], name: str, tensor: torch.Tensor, before: _Seen | None) -> _Seen:
    version = version_of(tensor)
    if before is not None and version is not None and before.version == version:
        return _Seen(owner, name, tensor, version, before.hash)
    return _Seen(owner, name, tensor, version, content_hash(tensor))
