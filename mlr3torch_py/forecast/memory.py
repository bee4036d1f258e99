"""Measure the memory that tensors take while something runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from mlr3torch_py.network.internals import TorchDispatchMode, tree_leaves

__all__ = ["TensorMemory"]


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that are alive, as a context manager.

    What an operation takes for itself while it runs is not seen.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        The tensors that are there at the beginning.

    Attributes
    ----------
    peak : int
        The most bytes at any time.

    Examples
    --------
    >>> there = torch.ones(100)
    >>> with TensorMemory([there]) as memory:
    ...     _ = torch.ones(1000).sum()
    >>> memory.peak
    4404
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._held = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._add(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._add(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        return output

    def _add(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            try:
                storage = tensor.untyped_storage()
            except (NotImplementedError, ValueError):  # a sparse tensor, a parameter that is lazy
                continue
            key, n_bytes = id(storage), storage.nbytes()
            if key not in self._storages:
                self._storages[key] = weakref.ref(storage, partial(self._drop, key, n_bytes))
                self._held += n_bytes
        self.peak = max(self.peak, self._held)

    def _drop(self, key: int, n_bytes: int, _: object) -> None:
        del self._storages[key]
        self._held -= n_bytes
