"""Rows in one tensor: on the device of the outputs, or in host memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mlr3torch_py.cache.output import RowSpec

__all__ = ["Memory", "index_on"]


class Memory:
    """Room for rows of one kind.

    Rows of outputs on CUDA that are kept in host memory are in pinned memory. Copies in both directions are then queued
    on the device, and Python waits only for those to the host, when it reads what they have written.

    Parameters
    ----------
    row : RowSpec
        What an output is made of.
    device : torch.device, optional
        Where rows are kept; by default where the outputs are.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> memory = Memory(RowSpec(rows.shape[1:], rows.dtype, rows.device, (0, 1)))
    >>> memory.grow(3)
    >>> memory.write(1, rows)
    >>> memory.read([2, 1])
    tensor([[3., 4.],
            [1., 2.]])
    >>> memory.keep([2])
    >>> len(memory), memory.read([0])
    (1, tensor([[3., 4.]]))
    """

    def __init__(self, row: RowSpec, device: torch.device | None = None) -> None:
        self._row = row
        self._device = row.device if device is None else device
        self._is_pinned = self._device.type == "cpu" and row.device.type == "cuda"
        # A row is in one piece: its dimensions are those of the outputs without the first, in their order.
        self._order = (0, *(dim for dim in row.order if dim))
        self._copies: dict[torch.cuda.Stream, torch.cuda.Event] = {}  # to the host, by where they are queued
        self._rows = self._empty(0, self._device)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def read(self, places: Sequence[int]) -> torch.Tensor:
        """Copy the rows at some places into a new tensor, where outputs are."""
        out, rows, first = self._row.empty(len(places)), self._written(), places[0]
        if np.array_equal(places, np.arange(first, first + len(places))):
            found = rows[first : first + len(places)]
        elif rows.device == out.device:
            return torch.index_select(rows, 0, index_on(places, out.device), out=out)
        else:
            found = self._select(places)
        return out.copy_(found.to(out.device, non_blocking=self._is_pinned))

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Copy rows to a place, and those after it."""
        with torch.inference_mode(False):
            into = self._rows[start : start + len(rows)]
            if self._is_pinned and rows.is_cuda:
                stream = torch.cuda.current_stream(rows.device)
                into.copy_(self._empty(len(rows), rows.device).copy_(rows), non_blocking=True)
                self._copies[stream] = stream.record_event()
            else:
                into.copy_(rows)

    def grow(self, n_rows: int) -> None:
        """Make room for more rows."""
        with torch.inference_mode(False):
            grown = self._empty(n_rows, self._device)
            grown[: len(self)] = self._written()
            self._rows = grown

    def keep(self, places: Sequence[int]) -> None:
        """Drop all rows but those at some places, and all other room."""
        with torch.inference_mode(False):
            self._rows = self._select(places) if len(places) else self._empty(0, self._device)

    def on_cpu(self, n_rows: int) -> torch.Tensor:
        """Return the first rows, in a tensor of their own size that later changes leave as it is."""
        rows = self._written()[:n_rows].cpu()
        is_whole = rows.untyped_storage().nbytes() == rows.nbytes  # files hold all of a storage
        return rows if is_whole else rows.clone()

    def _select(self, places: Sequence[int]) -> torch.Tensor:
        out = self._empty(len(places), self._device)
        return torch.index_select(self._written(), 0, index_on(places, self.device), out=out)

    def _written(self) -> torch.Tensor:
        """Return the rows, once all copies to the host have arrived."""
        for event in self._copies.values():
            event.synchronize()
        self._copies.clear()
        return self._rows

    def _empty(self, n_rows: int, device: torch.device) -> torch.Tensor:
        is_pinned = self._is_pinned and device == self._device
        shape, dtype = (n_rows, *self._row.shape), self._row.dtype
        return torch.empty_permuted(shape, self._order, dtype=dtype, device=device, pin_memory=is_pinned)


def index_on(places: Sequence[int], device: torch.device) -> torch.Tensor:
    """Make an index on a device, without waiting for that."""
    index = torch.from_numpy(np.asarray(places, dtype=np.int64))
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
