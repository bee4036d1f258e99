"""Find out whether a call reads weights that are being trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlr3torch_py.network.internals import TorchDispatchMode, tree_leaves

__all__ = ["TrainableReads"]


class TrainableReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of this thread for any that reads a trainable parameter, detached or not.

    Examples
    --------
    >>> import torch
    >>> weight = nn.Parameter(torch.ones(2))
    >>> with TrainableReads() as reads:
    ...     _ = weight.detach().mean()
    >>> reads.found
    True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        self.found = self.found or any(isinstance(one, nn.Parameter) and one.requires_grad for one in given)
        return func(*args, **kwargs)
