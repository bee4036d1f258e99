"""Copies of modules that torch does not copy, or not well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["copyable", "with_leaves"]


@contextmanager
def copyable(objects: Iterable[object]) -> Iterator[None]:
    """Let modules hold detached copies of the tensors that they have computed, which torch refuses to copy.

    Such are the weights of old weight norms, which the next forward pass computes again.

    Parameters
    ----------
    objects : iterable of object
        What is no module is passed over.

    Examples
    --------
    >>> from copy import deepcopy
    >>> linear = nn.Linear(2, 1)
    >>> linear.scaled = 2 * linear.weight
    >>> with copyable([linear]):
    ...     copied = deepcopy(linear)
    >>> copied.scaled.requires_grad, linear.scaled.requires_grad
    (False, True)
    """
    held = [vars(module) for one in objects if isinstance(one, nn.Module) for module in one.modules()]
    results = [
        (attributes, name, value)
        for attributes in held
        for name, value in attributes.items()
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    ]
    copies = {id(value): value.detach().clone() for _, _, value in results}
    for attributes, name, value in results:
        attributes[name] = copies[id(value)]
    try:
        yield
    finally:
        for attributes, name, value in results:
            attributes[name] = value


def with_leaves(network: nn.Module) -> nn.Module:
    """Let the parameters of TorchScript be leaves, which those of its copies are not.

    Parameters
    ----------
    network : torch.nn.Module
        A copy.

    Returns
    -------
    torch.nn.Module
        The same one.
    """
    leaves: dict[int, nn.Parameter] = {}
    copies: list[torch.Tensor] = []  # kept, so that no id is reused
    for module in network.modules():
        for name, tensor in list(module._parameters.items()) if isinstance(module, torch.jit.ScriptModule) else ():
            if tensor is not None and not isinstance(tensor, nn.Parameter):
                copies.append(tensor)
                leaf = leaves.setdefault(id(tensor), nn.Parameter(tensor.detach(), tensor.requires_grad))
                setattr(module, name, leaf)
    return network
