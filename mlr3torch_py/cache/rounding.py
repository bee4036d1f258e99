"""Compare rows up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mlr3torch_py.cache.rows import Call, NotCacheableError, OutputSpec, RowTensors

__all__ = ["is_near", "largest_values", "reproduces"]


def reproduces(
    module: nn.Module, call: Call, expected: Mapping[int, RowTensors], spec: OutputSpec, largest: Sequence[float]
) -> bool:
    """Recompute some rows of a call and compare them.

    Parameters
    ----------
    module : torch.nn.Module
    call : Call
    expected : mapping of int to tuple of torch.Tensor
        Rows of the output by their position in the call.
    spec : OutputSpec
        The spec of the output.
    largest : sequence of float
        The largest value of each tensor; see `is_near`.

    Returns
    -------
    bool
        Whether they are the same up to rounding.

    Examples
    --------
    >>> linear, call = nn.Linear(3, 2).requires_grad_(False), Call((torch.rand(4, 3),), {})
    >>> output = linear(*call.args)
    >>> spec = OutputSpec.of(output, 4)
    >>> rows = spec.split(output, 4)
    >>> reproduces(linear, call, {3: rows[3], 1: rows[1]}, spec, largest_values(rows))
    True
    >>> reproduces(linear, call, {3: rows[2]}, spec, largest_values(rows))
    False
    """
    part = call.take(list(expected))
    output = module._call_impl(*part.args, **part.kwargs)  # type: ignore[no-untyped-call]
    try:
        rows = spec.split(output, len(expected))
    except NotCacheableError:
        return False
    return is_near(list(expected.values()), rows, precision=_precision(module, call, rows[0]), largest=largest)


def largest_values(rows: Sequence[RowTensors]) -> list[float]:
    """Compute the largest finite absolute value of each tensor.

    Parameters
    ----------
    rows : sequence of tuples of torch.Tensor

    Returns
    -------
    list of float
        0 for an empty tensor.
    """
    return [
        _sizes(torch.stack(tensors)).max().item() if tensors[0].numel() else 0.0 for tensors in zip(*rows, strict=True)
    ]


def is_near(
    rows: Sequence[RowTensors], others: Sequence[RowTensors], *, precision: float, largest: Sequence[float]
) -> bool:
    """Check whether rows differ by no more than rounding.

    Batches of different sizes are computed in a different order of operations, and round differently.

    Parameters
    ----------
    rows, others : sequence of tuples of torch.Tensor
    precision : float
        The relative error of one operation. The tolerance is its square root times the largest value at the same
        position of all rows, plus 64 times `precision` times the largest value overall.
    largest : sequence of float
        The largest value of each tensor in other rows.

    Returns
    -------
    bool

    Examples
    --------
    >>> one, other = torch.tensor([1.0, 1000.0]), torch.tensor([1.0001, 1000.01])
    >>> is_near([(one,)], [(other,)], precision=1e-7, largest=[0.0])
    True
    >>> is_near([(one,)], [(other + 1,)], precision=1e-7, largest=[0.0])
    False
    """
    return all(
        _is_near(torch.stack(ours), torch.stack(theirs), precision, size)
        for ours, theirs, size in zip(zip(*rows, strict=True), zip(*others, strict=True), largest, strict=True)
    )


def _precision(module: nn.Module, call: Call, row: RowTensors) -> float:
    """Return the precision of the coarsest dtype that is known to take part in a call."""
    tensors = (*module.parameters(), *module.buffers(), *call.tensors, *row)
    dtypes = {torch.float32, *(tensor.dtype for tensor in tensors), call.autocast_dtype}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None and dtype.is_floating_point)


def _is_near(one: torch.Tensor, other: torch.Tensor, precision: float, largest: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    sizes = _sizes(one)
    tolerance = math.sqrt(precision) * sizes.amax(0) + 64 * precision * sizes.max().clamp(min=largest) + precision
    is_same = (one == other) | (one.isnan() & other.isnan())
    return bool((is_same | ((one - other).abs() <= tolerance)).all())


def _sizes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().nan_to_num(0, 0, 0)
