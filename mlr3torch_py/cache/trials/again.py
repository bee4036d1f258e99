"""Rows of a call that are computed again, to see whether they depend on the rest of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.rows.output import OutputSpec
from mlr3torch_py.cache.rows.rounding import distance, largest_values, precision_of

__all__ = ["Again"]


class Again:
    """Compute rows of a call again, and compare them.

    Parameters
    ----------
    module : torch.nn.Module
        It is called directly, without the cache.
    call : Call
    output : object
        What the call has given.

    Raises
    ------
    NotCacheableError
        If the output is not made of rows.

    Notes
    -----
    Where float32 is rounded coarsely, results depend on the size of a batch. So rows that differ by no more than that
    explains are computed once more, repeated, in a batch as large as that of the call.

    Examples
    --------
    >>> import torch
    >>> norm, rows = nn.BatchNorm1d(2).requires_grad_(False), torch.rand(3, 2)
    >>> call, part = Call((rows,), {}), Call((rows[:2],), {})
    >>> Again(norm, call, norm(rows)).agrees([0, 1], part)
    False
    >>> norm = norm.eval()
    >>> Again(norm, call, norm(rows)).agrees([0, 1], part)
    True
    """

    def __init__(self, module: nn.Module, call: Call, output: Any) -> None:
        self._module, self._call = module, call
        self._spec = OutputSpec.of(output, len(call))
        self._tensors = self._spec.tensors_of(output, len(call))
        self._largest = largest_values(self._tensors)
        self._precision = precision_of(module, call, self._tensors)

    def agrees(self, rows: Sequence[int], part: Call) -> bool:
        """Compute some rows in a smaller batch, which holds them alone, and return whether they are the same."""
        found = self._distance(rows, part)
        if found == 1 and not self._call.has_changed():
            found = self._distance(rows, self._call.take([rows[i % len(rows)] for i in range(len(self._call))]))
        return found < 1

    def repeats(self) -> bool:
        """Compute the same batch, and return whether it gives the same."""
        return self._distance(range(len(self._call)), self._call) == 0

    def _distance(self, rows: Sequence[int], part: Call) -> float:
        """Measure how some rows differ when they are computed in a batch that begins with them; see `distance`."""
        try:
            output = self._module._call_impl(*part.args, **part.kwargs)  # type: ignore[no-untyped-call]
            others = [tensor[: len(rows)] for tensor in self._spec.tensors_of(output, len(part))]
            ours = [tensor[list(rows)] for tensor in self._tensors]
            return distance(ours, others, precision=self._precision, largest=self._largest)
        except Exception:  # whatever a module raises that accepts whole batches only
            return math.inf
