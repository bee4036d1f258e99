"""Rows in one tensor: on the device of the outputs, or in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from mlr3torch_py.cache.rows.keys import Places
from mlr3torch_py.cache.rows.output import RowSpec

__all__ = ["Memory", "index_on"]

_Slots: TypeAlias = Sequence[int] | Places


class Memory:
    """Room for rows of one kind.

    Between host memory and CUDA, a batch crosses through pinned memory: its copies are queued on the device, and Python
    waits only for one to the host, when it needs what that has brought. The rows themselves are not pinned, since torch
    rounds what it pins up to a power of two, and never gives it back.

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
        self._is_in_order = row.order == tuple(range(len(row.order)))  # its dimensions lie in memory as they are named
        self._is_queued = self._device.type == "cpu" and row.device.type == "cuda"
        # A row is in one piece: its dimensions are those of the outputs without the first, in their order.
        self._order = (0, *(dim for dim in row.order if dim))
        self._arriving: tuple[torch.cuda.Event, int, torch.Tensor] | None = None  # when, the place, and the rows
        self._rows = self._empty(0)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def read(self, places: _Slots) -> torch.Tensor:
        """Copy the rows at some places into a new tensor, where outputs are."""
        rows, here = self._arrived(), self._row.device
        if rows.device != here:
            selected = self._select(places, for_queue=True).to(here, non_blocking=self._is_queued)
            return self._row.empty(len(places)).copy_(selected)
        start, index = int(places[0]), np.asarray(places, np.int64)
        if index.tobytes() == np.arange(start, start + len(index)).tobytes():
            run = rows[start : start + len(index)]
            return run.clone() if self._is_in_order else self._row.empty(len(index)).copy_(run)
        out = None if self._is_in_order else self._row.empty(len(index))
        return torch.index_select(rows, 0, index_on(index, here), out=out)

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Copy rows to a place, and those after it."""
        self._arrived()  # those before, for which the look-up of the keys of these has waited already
        with torch.inference_mode(False):
            if not (self._is_queued and rows.is_cuda):
                self._rows[start : start + len(rows)] = rows
                return
            in_order = self._empty(len(rows), device=rows.device).copy_(rows)
            pinned = self._empty(len(rows), for_queue=True).copy_(in_order, non_blocking=True)
            self._arriving = torch.cuda.current_stream(rows.device).record_event(), start, pinned

    def grow(self, n_rows: int) -> None:
        """Make room for more rows."""
        with torch.inference_mode(False):
            grown = self._empty(n_rows)
            grown[: len(self)] = self._arrived()
            self._rows = grown

    def keep(self, places: _Slots) -> None:
        """Drop all rows but those at some places, and all other room."""
        self._arrived()
        with torch.inference_mode(False):
            self._rows = self._select(places) if len(places) else self._empty(0)

    def on_cpu(self, n_rows: int) -> torch.Tensor:
        """Return the first rows, in a tensor of their own size that later changes leave as it is."""
        rows = self._arrived()[:n_rows].cpu()
        is_whole = rows.untyped_storage().nbytes() == rows.nbytes  # files hold all of a storage
        return rows if is_whole else rows.clone()

    def _select(self, places: _Slots, *, for_queue: bool = False) -> torch.Tensor:
        out = self._empty(len(places), for_queue=for_queue)
        return torch.index_select(self._arrived(), 0, index_on(places, self.device), out=out)

    def _arrived(self) -> torch.Tensor:
        """Return the rows, once those have arrived that were copied to the host."""
        if self._arriving is not None:
            event, start, rows = self._arriving
            self._arriving = None
            event.synchronize()
            with torch.inference_mode(False):
                self._rows[start : start + len(rows)] = rows
        return self._rows

    def _empty(self, n_rows: int, *, device: torch.device | None = None, for_queue: bool = False) -> torch.Tensor:
        return torch.empty_permuted(
            (n_rows, *self._row.shape),
            self._order,
            dtype=self._row.dtype,
            device=self._device if device is None else device,
            pin_memory=for_queue and self._is_queued,
        )


def index_on(places: _Slots, device: torch.device) -> torch.Tensor:
    """Make an index on a device, without waiting for that."""
    index = torch.from_numpy(np.asarray(places, dtype=np.int64))
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
