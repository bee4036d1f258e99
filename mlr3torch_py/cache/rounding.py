"""Compare rows up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import nn

from mlr3torch_py.cache.rows import Call
from mlr3torch_py.network.unwrap import all_modules

__all__ = ["are_near", "largest_values", "precision_of"]

# Layers amplify what was rounded before them, such as normalisation by small running variances.
_ALLOWANCE: Final = 512


def largest_values(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Compute the largest finite absolute value of each tensor; 0 for an empty one."""
    return list(map(_largest_value, tensors))


def are_near(
    tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor], *, precision: float, largest: Sequence[float]
) -> bool:
    """Check whether tensors differ by no more than rounding.

    Batches of different sizes are computed in a different order of operations, and round differently.

    Parameters
    ----------
    tensors, others : sequence of torch.Tensor
        Some rows of the tensors of an output, in pairs.
    precision : float
        The relative error of one operation. The tolerance is its square root times the largest value at the same
        position of all rows, plus 512 times `precision` times the largest value overall.
    largest : sequence of float
        The largest value of each tensor in other rows.

    Returns
    -------
    bool

    Examples
    --------
    >>> one, other = torch.tensor([[1.0, 1000.0]]), torch.tensor([[1.0001, 1000.01]])
    >>> are_near([one], [other], precision=1e-7, largest=[0.0])
    True
    >>> are_near([one], [other + 1], precision=1e-7, largest=[0.0])
    False
    """
    return all(_is_near(one, other, precision, size) for one, other, size in zip(tensors, others, largest, strict=True))


def precision_of(module: nn.Module, call: Call, output: Iterable[torch.Tensor]) -> float:
    """Return the precision of the coarsest dtype that is known to take part in a call."""
    own = [one for layer in all_modules(module) for one in (*layer._parameters.values(), *layer._buffers.values())]
    tensors = (*own, *call.tensors, *output)
    dtypes = {torch.float32, *(tensor.dtype for tensor in tensors if tensor is not None), call.autocast_dtype}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None and dtype.is_floating_point)


def _is_near(one: torch.Tensor, other: torch.Tensor, precision: float, largest: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    if one.is_floating_point() and (one - other).abs_().max() <= _ALLOWANCE * precision * largest:
        return True  # the usual case, at a glance
    sizes = _sizes(one)
    tolerance = (
        math.sqrt(precision) * sizes.amax(0) + _ALLOWANCE * precision * sizes.max().clamp(min=largest) + precision
    )
    is_same = (one == other) | (one.isnan() & other.isnan())
    return bool((is_same | ((one - other).abs() <= tolerance)).all())


def _largest_value(tensor: torch.Tensor) -> float:
    if not tensor.numel():
        return 0.0
    if tensor.is_floating_point():
        ends = [abs(end.item()) for end in tensor.aminmax()]  # without a copy of the tensor
        if all(map(math.isfinite, ends)):
            return max(ends)
    return _sizes(tensor).max().item()


def _sizes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().nan_to_num(0, 0, 0)
