"""TrainableTensors: whether what is trainable gets gradients and moves, and what is the matter where it does not."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.audit.graph import reached_without_loss
from mlr3torch_py.names import listed
from mlr3torch_py.network.bits import content_hash, has_bits
from mlr3torch_py.network.normalisation import all_own_parameters
from mlr3torch_py.network.unwrap import named_modules, named_parameters, names_by_tensor

__all__ = ["TrainableTensors"]

# Below this many times the precision of its type, beside the largest of the network, a gradient is rounding noise.
_NOISE: Final = 16.0

_IN_NO_OPTIMIZER: Final = (
    "did not move in batches {}, though trainable: no optimizer holds it; give the optimizer all parameters, or add it "
    "by add_param_group"
)
_FROZEN_AGAIN: Final = (
    "did not move in batches {}, though unfrozen: something has frozen it again, such as the network's own train(); "
    "switch that off, often by an argument of the network"
)
_NO_GRADIENT: Final = (
    "never got a gradient in batches {}, though trainable: not used by the network, or cut off by detach(), no_grad() "
    "or activation checkpointing with use_reentrant=True"
)
_NO_RATE: Final = "did not move in batches {}, though trainable: its learning rate is 0"
_NO_UPDATE: Final = (
    "did not move in batches {}, though trainable: it got gradients, but its updates are too small for its dtype, or "
    "the optimizer skips it, or something undoes them"
)
_ZERO_GRADIENT: Final = (
    "did not move in batches {}, though trainable: its gradient was zero, or next to it, as behind a factor of zero, a "
    "saturated activation or a hook"
)


@dataclass(slots=True, eq=False)
class _Trainable:
    """A trainable parameter.

    Parameters
    ----------
    name : str
    tensor : torch.nn.Parameter
    module : torch.nn.Module
        Whose parameter it is.
    content : bytes or None
        A hash of what it was; None if it cannot be compared.
    has_gradient : bool
        Whether a gradient other than zero was seen.
    n_zeros : int or None
        How many gradients of zero were seen since something moved; None if none was seen at all.
    is_reached : bool
        Whether no rectifier stands between it and the output.
    is_frozen_again : bool
        Whether it required no gradient when gradients were computed.
    """

    name: str
    tensor: nn.Parameter
    module: nn.Module
    content: bytes | None
    has_gradient: bool = False
    n_zeros: int | None = None
    is_reached: bool = False
    is_frozen_again: bool = False

    def has_moved(self) -> bool:
        return self.content is not None and content_hash(self.tensor) != self.content


class TrainableTensors:
    """The trainable parameters of a network from one event to the next.

    Parameters
    ----------
    network : torch.nn.Module
        Wrapped or not.
    before : TrainableTensors, optional
        Those until now.
    batch : int
        The first training batch from now on.
    """

    def __init__(self, network: nn.Module, before: TrainableTensors | None, *, batch: int) -> None:
        self._since = batch
        self._saw_gradients = False
        self._largest = 0.0
        modules, tensors = dict(named_modules(network)), named_parameters(network)
        names = [group[0] for group in names_by_tensor(network) if tensors[group[0]].requires_grad]
        self._all = [
            _Trainable(name, tensors[name], modules[name.rpartition(".")[0]], _content(tensors[name])) for name in names
        ]
        self._unmoved = list(self._all)
        self._without_gradient = list(self._all)
        self._moved_before: dict[str, weakref.ref[nn.Parameter]] = {} if before is None else before._moved_before

    @property
    def _is_training(self) -> bool:
        """Whether a step was seen to move something."""
        return len(self._unmoved) < len(self._all)

    def look_at_values(self) -> None:
        """Note what has moved by now; it is not looked at again."""
        unmoved = []
        for one in self._unmoved:
            if one.has_moved():
                self._moved_before[one.name] = weakref.ref(one.tensor)
            else:
                unmoved.append(one)
        self._unmoved = unmoved

    def forward_done(self, outputs: Any) -> None:
        """Note what the gradient of an output reaches, where that was zero before."""
        zero = [one for one in self._unmoved if one.n_zeros is not None and not one.has_gradient]
        if zero:
            reached = reached_without_loss(outputs)
            for one in zero:
                one.is_reached = id(one.tensor) in reached

    def gradients_computed(self, *, look: bool) -> None:
        """Note what has a gradient; with `look`, also whether it is other than zero."""
        self._saw_gradients = True
        if self._without_gradient:
            self._without_gradient = [one for one in self._without_gradient if one.tensor.grad is None]
            for one in self._without_gradient:
                one.is_frozen_again = not one.tensor.requires_grad
        if look:
            sizes = [(one, _size(one.tensor.grad)) for one in self._unmoved if one.tensor.grad is not None]
            self._largest = max([self._largest, *(size for _, size in sizes if math.isfinite(size))])
            for one, size in sizes:
                if not size <= self._largest * _NOISE * torch.finfo(one.tensor.dtype).eps:
                    one.has_gradient = True
                else:  # before something has moved, adapters whose other half begins with zeros have no gradient
                    one.n_zeros = (one.n_zeros or 0) + self._is_training

    def complaints(self, network: nn.Module, optimizers: Iterable[Any], batch: int, place: str = "") -> list[str]:
        """Say which of them never moved, in which batches, and why.

        Parameters
        ----------
        network : torch.nn.Module
            As it is now.
        optimizers : iterable of torch.optim.Optimizer
            Those without groups of parameters are passed over.
        batch : int
            The last training batch.
        place : str
            What stands before names.

        Returns
        -------
        list of str
            One sentence for each reason.
        """
        if not self._saw_gradients:
            return []
        self.look_at_values()
        groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
        rates = {id(tensor): group.get("lr") for group in groups for tensor in group["params"]}
        now, is_remarkable = named_parameters(network), self._remarkable_zeros()
        names: dict[str, list[str]] = {}
        for one in self._unmoved:
            reason = self._reason(one, rates, id(one) in is_remarkable)
            if reason and now.get(one.name) is one.tensor:
                names.setdefault(reason, []).append(place + one.name)
        return [f"{listed(those)} {reason.format(f'{self._since} to {batch}')}" for reason, those in names.items()]

    def _reason(self, one: _Trainable, rates: Mapping[int, Any], is_remarkable: bool) -> str:
        if one.is_frozen_again and one in self._without_gradient:
            return _FROZEN_AGAIN
        if one.content is not None and rates and id(one.tensor) not in rates:
            return _IN_NO_OPTIMIZER
        if one in self._without_gradient:
            return _NO_GRADIENT
        before = self._moved_before.get(one.name)
        if one.content is None or not self._is_training or (before is not None and before() is one.tensor):
            return ""
        if one.has_gradient:
            rate = rates.get(id(one.tensor))
            return _NO_RATE if rate is not None and float(rate) == 0 else _NO_UPDATE
        return _ZERO_GRADIENT if is_remarkable else ""

    def _remarkable_zeros(self) -> set[int]:
        """Return the parameters, by their ``id``, whose gradients of zero are not the ordinary ones.

        Ordinary are what lies before or behind rectifiers, whose units may rest, and a bias whose effect a
        normalisation or a softmax takes away.
        """
        zero = [one for one in self._unmoved if one.n_zeros and not one.has_gradient]
        tensors, unmoved = {id(one.tensor) for one in zero}, {id(one) for one in self._unmoved}
        in_use = {id(one.module) for one in self._all if id(one) not in unmoved}

        def is_remarkable(one: _Trainable) -> bool:
            if one.tensor._backward_hooks:
                return True
            beside = all_own_parameters(one.module)
            is_bias = any(tensor.ndim > one.tensor.ndim and id(tensor) not in tensors for tensor in beside)
            return one.is_reached and not is_bias and id(one.module) not in in_use

        return {id(one) for one in zero if is_remarkable(one)}


def _content(tensor: nn.Parameter) -> bytes | None:
    return content_hash(tensor) if has_bits(tensor) else None


def _size(gradient: torch.Tensor) -> float:
    """Return the largest absolute value."""
    values = gradient._values() if gradient.layout is torch.sparse_coo else gradient
    return float(values.detach().abs().max()) if values.numel() else 0.0
