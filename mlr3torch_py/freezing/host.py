"""SkorchHost: a net of skorch as the host of a freezing engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.freezing.data_parallel import check_wrappers, reduce_what_trains
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.clock import take_back_epoch
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.trained import last_entry

__all__ = ["SkorchHost"]


class SkorchHost:
    """What a freezing engine needs of a net: all of it is looked up when it is asked for.

    Parameters
    ----------
    net : skorch.NeuralNet
    ctx : ContextTorch, optional
        The context of the training.

    Raises
    ------
    ValueError
        If the net is wrapped in something that assumes that the set of trainable parameters never changes.
    """

    def __init__(self, net: Net, ctx: ContextTorch | None) -> None:
        check_wrappers(net)
        self.net = net
        self._first = f"{net._optimizers[0]}_" if net._optimizers else "optimizer_"
        self.ctx = ctx

    @property
    def network(self) -> nn.Module:
        return self.net.module_

    @property
    def optimizer(self) -> object:
        return getattr(self.net, "optimizer_" if hasattr(self.net, "optimizer_") else self._first, None)

    def optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        for name in self.net._optimizers:
            optimizer = getattr(self.net, f"{name}_", None)
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            if isinstance(optimizer, Optimizer):  # somebody may have replaced it by one that is none of torch
                yield "lr" if name == "optimizer" else f"lr_{name}", optimizer

    def learnable(self) -> Iterator[torch.Tensor]:
        return (tensor for _, tensor in self.net.get_all_learnable_params())

    def record(self, key: str, value: object) -> None:
        self.net.history.record(key, value)

    def recorded(self, key: str) -> Any:
        return self.net.history[-1].get(key)

    def last_recorded(self, key: str, part: str) -> object:
        return last_entry(self.net.history, key, part)

    def record_rate(self, name: str, rate: float) -> None:
        if self.ctx is not None and self.ctx.batch is not None:  # a step may be taken between batches
            self.net.history.record_batch(name, rate)

    def flags_changed(self) -> None:
        reduce_what_trains(self.net)

    def drop_epoch(self) -> None:
        take_back_epoch(self.net)
