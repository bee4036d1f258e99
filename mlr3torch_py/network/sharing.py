"""Names of parameters that share weights: one tensor under several names, or tensors whose memory overlaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.network.unwrap import grouped_names

__all__ = ["sharing_names"]


def sharing_names(tensors: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Group the names of those parameters that share weights.

    Parameters
    ----------
    tensors : mapping of str to torch.nn.Parameter
        What `named_parameters` returns.

    Returns
    -------
    list of list of str
        A step that moves one parameter of a group moves others of it: they are one tensor, or their memory overlaps.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> network[1].weight = nn.Parameter(network[0].weight.data)
    >>> sharing_names(dict(network.named_parameters()))
    [['0.weight', '1.weight']]
    """
    group_of = {id(tensors[names[0]]): names for names in grouped_names(tensors)}
    for one, other in _overlapping({id(tensor): tensor for tensor in tensors.values()}.values()):
        kept, joined = group_of[id(one)], group_of[id(other)]
        if kept is not joined:
            kept += joined
            group_of |= {key: kept for key, group in group_of.items() if group is joined}
    place = {name: i for i, name in enumerate(tensors)}
    groups = {id(group): sorted(group, key=place.__getitem__) for group in group_of.values() if len(group) > 1}
    return sorted(groups.values(), key=lambda group: place[group[0]])


@dataclass(frozen=True, slots=True)
class _Extent:
    """The bytes of memory that a tensor spans; those between its elements may belong to others."""

    device: str
    start: int
    end: int
    tensor: torch.Tensor

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Extent | None:
        """Return None for a tensor without memory of its own: on no device, sparse, or a wrapper of others."""
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.numel() == 0:
            return None
        try:
            start = tensor.data_ptr()
        except (RuntimeError, NotImplementedError):
            return None
        n_elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(str(tensor.device), start, start + n_elements * tensor.element_size(), tensor) if start else None

    @property
    def __array_interface__(self) -> dict[str, Any]:
        size = self.tensor.element_size()
        return {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": tuple(self.tensor.shape),
            "strides": tuple(stride * size for stride in self.tensor.stride()),
            "data": (self.start, True),
        }

    def overlaps(self, other: _Extent) -> bool:
        """Whether an element of one lies where one of the other does; no memory is read, so any device will do."""
        return np.shares_memory(np.asarray(self), np.asarray(other))


def _overlapping(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pairs of tensors that have memory in common."""
    extents = [extent for tensor in tensors if (extent := _Extent.of(tensor)) is not None]
    reaching: list[_Extent] = []  # those of the same device that end behind the start of the next one
    for extent in sorted(extents, key=attrgetter("device", "start")):
        reaching = [one for one in reaching if one.device == extent.device and one.end > extent.start]
        yield from ((one.tensor, extent.tensor) for one in reaching if one.overlaps(extent))
        reaching.append(extent)
