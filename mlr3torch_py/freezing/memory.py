"""What optimizers remember between steps, where freezing and unfreezing need it to be another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

__all__ = ["complete_momentum", "forget_directions"]


def forget_directions(optimizers: Iterable[Optimizer]) -> None:
    """Reset LBFGS: its gradient memory would keep moving frozen weights.

    Parameters
    ----------
    optimizers : iterable of torch.optim.Optimizer
    """
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()


def complete_momentum(optimizers: Iterable[Optimizer]) -> None:
    """Give fused SGD a momentum of zero for what it has not moved yet.

    It takes a step with either no momentum or that of all parameters, and fails on those unfrozen later. With
    `dampening`, their first step is dampened too, unlike in the other implementations of SGD.

    Parameters
    ----------
    optimizers : iterable of torch.optim.Optimizer

    Examples
    --------
    >>> from torch import nn
    >>> early, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    >>> sgd = torch.optim.SGD([early, late], momentum=0.9, fused=True)
    >>> early.grad = torch.ones(1)
    >>> sgd.step()
    >>> complete_momentum([sgd])
    >>> sgd.state[late]
    {'momentum_buffer': tensor([0.])}
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
            if group["fused"] and group["momentum"]:
                known = {tensor for tensor in group["params"] if _has_momentum(optimizer, tensor)}
                for tensor in group["params"]:
                    if known and tensor.requires_grad and tensor not in known:
                        optimizer.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor.detach())


def _has_momentum(optimizer: Optimizer, tensor: torch.Tensor) -> bool:
    return optimizer.state.get(tensor, {}).get("momentum_buffer") is not None
