"""Compare rows up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

import torch
from torch import nn

from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.network.unwrap import all_modules

__all__ = ["are_near", "distance", "float32_modes", "largest_values", "precision_of"]

_FINE: Final = torch.finfo(torch.float32).eps
# How coarsely factors of float32 are rounded in the modes that torch may be told to use.
_COARSE: Final = {"tf32": 2.0**-10, "bf16": torch.finfo(torch.bfloat16).eps}
_OF_OLD: Final = {"highest": "ieee", "high": "tf32", "medium": "bf16"}  # before torch 2.9
_IN_CUDA: Final = attrgetter("cudnn.conv", "cudnn.rnn", "cuda.matmul")
_ELSEWHERE: Final = attrgetter("mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul")
_OF_FLOAT32: Final = frozenset({torch.float32, torch.complex64})

# Layers amplify what was rounded before them, such as normalisation by small running variances.
_ALLOWANCE: Final = 512 * _FINE
_COARSE_ALLOWANCE: Final = 32
_SHARE_IN_ONE_SIZE: Final = 1 / 64


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
        position of all rows, plus 32 times `precision`, but at least 512 times that of float32, times the largest value
        overall.
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


def distance(
    tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor], *, precision: float, largest: Sequence[float]
) -> float:
    """Measure how much of a precision it takes for tensors to be near; the parameters are those of `are_near`.

    Returns
    -------
    float
        0 if they differ by no more than float32 is rounded; at most 1/64 if they differ as little as in batches of one
        size, which are computed in the same way; at most 1 if they are near; else infinity.

    Examples
    --------
    >>> one = torch.tensor([[1.0, 1000.0]])
    >>> [distance([one], [one * factor], precision=2**-10, largest=[0.0]) for factor in (1, 1.001, 1.05, 1.1)]
    [0.0, 0.015625, 1.0, inf]
    """
    for share in (0.0, _SHARE_IN_ONE_SIZE, 1.0) if precision > _FINE else (0.0,):
        if are_near(tensors, others, precision=max(_FINE, share * precision), largest=largest):
            return share
    return math.inf


def precision_of(module: nn.Module, call: Call, output: Iterable[torch.Tensor]) -> float:
    """Return the coarsest precision that is known to take part in a call; that of float32 depends on the device."""
    own = [one for layer in all_modules(module) for one in (*layer._parameters.values(), *layer._buffers.values())]
    tensors = (*own, *call.tensors, *output)
    dtypes = {*(tensor.dtype for tensor in tensors if tensor is not None), call.autocast_dtype}
    precisions = [torch.finfo(dtype).eps for dtype in dtypes if dtype is not None and dtype.is_floating_point]
    of_float32 = [_COARSE.get(mode, _FINE) for mode in float32_modes(call.device.type)] if dtypes & _OF_FLOAT32 else []
    return max(_FINE, *precisions, *of_float32)


def float32_modes(kind: str) -> tuple[str, ...]:
    """Return how torch may compute with float32 on a kind of device, by operation."""
    backends = torch.backends
    if hasattr(backends, "fp32_precision"):
        modes = [one.fp32_precision for one in (_IN_CUDA if kind == "cuda" else _ELSEWHERE)(backends)]
        return tuple("ieee" if mode == "none" else mode for mode in modes)
    is_coarse = kind == "cuda" and backends.cudnn.allow_tf32
    return "tf32" if is_coarse else "ieee", _OF_OLD[torch.get_float32_matmul_precision()]


def _is_near(one: torch.Tensor, other: torch.Tensor, precision: float, largest: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not _is_rounded(one):
        return torch.equal(one, other)
    one, other = _widened(one), _widened(other)
    allowance = max(_ALLOWANCE, _COARSE_ALLOWANCE * precision)
    if one.is_floating_point() and (one - other).abs_().max() <= allowance * largest:
        return True  # the usual case, at a glance
    sizes = _sizes(one)
    tolerance = math.sqrt(precision) * sizes.amax(0) + allowance * sizes.max().clamp(min=largest) + _FINE
    is_same = (one == other) | (one.isnan() & other.isnan())
    return bool((is_same | ((one - other).abs() <= tolerance)).all())


def _largest_value(tensor: torch.Tensor) -> float:
    if not tensor.numel() or not _is_rounded(tensor):
        return 0.0
    tensor = _widened(tensor)
    if tensor.is_floating_point():
        ends = [abs(end.item()) for end in tensor.aminmax()]  # without a copy of the tensor
        if all(map(math.isfinite, ends)):
            return max(ends)
    return _sizes(tensor).max().item()


def _is_rounded(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that can be computed with: torch does not compare numbers of a byte."""
    return tensor.float() if tensor.itemsize == 1 else tensor


def _sizes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().nan_to_num(0, 0, 0)
