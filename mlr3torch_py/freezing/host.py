"""SkorchHost: a net of skorch as the host of a freezing engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.freezing.data_parallel import check_wrappers, reduce_what_trains
from mlr3torch_py.names import listed
from mlr3torch_py.network.parameters import has_parameters
from mlr3torch_py.network.unwrap import modules_of
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.clock import take_back_epoch
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.trained import key_of, last_entry

__all__ = ["SkorchHost", "check_module", "optimizers_of"]


class SkorchHost:
    """What a freezing engine needs of a net: all of it is looked up when it is asked for.

    Parameters
    ----------
    net : skorch.NeuralNet
    ctx : ContextTorch, optional
        The context of the training.
    module : str
        The name of the module that the engine governs, without the trailing underscore.

    Raises
    ------
    ValueError
        If the net is wrapped in something that assumes that the set of trainable parameters never changes.
    """

    def __init__(self, net: Net, ctx: ContextTorch | None, module: str = "module") -> None:
        check_wrappers(net)
        self.net = net
        self.module = module
        self.attribute: str = f"{module}_"
        self.optimizer_attribute: str = "optimizer_"
        self.ctx = ctx

    @property
    def network(self) -> nn.Module:
        network: nn.Module = getattr(self.net, self.attribute)
        return network

    @property
    def optimizer(self) -> object:
        self.optimizer_attribute = f"{self._name_of_optimizer()}_"
        return getattr(self.net, self.optimizer_attribute, None)

    def _name_of_optimizer(self) -> str:
        """Return the name of the first optimizer that holds parameters of the network, or of the main one."""
        names = self.net._optimizers
        if len(names) > 1:
            tensors = set(map(id, self.network.parameters()))
            for name in names:
                groups = getattr(getattr(self.net, f"{name}_", None), "param_groups", ())
                if any(id(tensor) in tensors for group in groups for tensor in group["params"]):
                    return name
        return names[0] if names and not hasattr(self.net, "optimizer_") else "optimizer"

    def optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        return optimizers_of(self.net)

    def learnable(self) -> Iterator[torch.Tensor]:
        return (tensor for _, tensor in self.net.get_all_learnable_params())

    def record(self, key: str, value: object) -> None:
        self.net.history.record(key_of(key, self.module), value)

    def recorded(self, key: str) -> Any:
        return self.net.history[-1].get(key_of(key, self.module))

    def last_recorded(self, key: str, part: str) -> object:
        return last_entry(self.net.history, key_of(key, self.module), part)

    def record_rate(self, name: str, rate: float) -> None:
        if self.ctx is not None and self.ctx.batch is not None:  # a step may be taken between batches
            self.net.history.record_batch(name, rate)

    def flags_changed(self) -> None:
        reduce_what_trains(self.net)

    def drop_epoch(self) -> None:
        take_back_epoch(self.net)


def optimizers_of(net: Net) -> Iterator[tuple[str, Optimizer]]:
    """Yield the optimizers of torch that a net has, under the names by which rates are recorded."""
    for name in net._optimizers:
        optimizer = getattr(net, f"{name}_", None)
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        if isinstance(optimizer, Optimizer):  # somebody may have replaced it by one that is none of torch
            yield "lr" if name == "optimizer" else f"lr_{name}", optimizer


def check_module(net: Net, module: str, who: str) -> None:
    """Check that a net has a module to be governed.

    Parameters
    ----------
    net : skorch.NeuralNet
        With its modules made.
    module : str
        The name of one of its modules or criteria, without the trailing underscore.
    who : str
        Who governs it.

    Raises
    ------
    TypeError
        If it is the default, which the net lacks.
    ValueError
        If the net lacks another one, or it is a criterion without parameters.

    Examples
    --------
    >>> check_module(iris_net().initialize(), "modul", "Freezer")
    Traceback (most recent call last):
        ...
    ValueError: `module` is 'modul', which is no module of NeuralNetClassifier; give one of 'module'
    """
    parts, kind = modules_of(net), type(net).__name__
    known = [name for name, part in parts.items() if name in net._modules or has_parameters(part)]
    names = f"one of {listed(map(repr, known))}" if known else "a net with modules"
    if module in known:
        return
    if module == "module":
        raise TypeError(f"{who} governs the parameters of `module_`, which {kind} lacks; set `module` to {names}")
    what = "has no parameters" if module in (*net._modules, *net._criteria) else f"is no module of {kind}"
    raise ValueError(f"`module` is {module!r}, which {what}; give {names}")
