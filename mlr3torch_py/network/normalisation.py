"""Normalisation: which modules normalise by statistics that they keep, and where they keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mlr3torch_py.network.internals import internal
from mlr3torch_py.network.unwrap import own_parameters

__all__ = ["NORMALISATION", "all_own_parameters", "is_normalisation", "plain_statistics"]

NORMALISATION: tuple[type[nn.Module], ...] = (internal("torch.nn.modules.batchnorm", "_NormBase"),)

_PARAMETRIZATIONS: Final = "parametrizations"  # where torch keeps them
_OF_TORCH: Final = frozenset(vars(nn.Module()))


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module seems to normalise by statistics that it keeps: only such a norm is another one in eval mode.

    Those are torch's, and every other module whose parameters do no more than scale or shift, that holds a
    floating-point buffer beside them, or a plain tensor of their size, and in which no other module holds anything.
    A buffer that is None, until the first forward pass perhaps, counts as well.

    Examples
    --------
    >>> is_normalisation(nn.BatchNorm1d(2)), is_normalisation(nn.Dropout()), is_normalisation(nn.Linear(2, 2))
    (True, False, False)
    >>> norm = nn.Module()
    >>> norm.scale, norm.mean = nn.Parameter(torch.ones(2)), nn.Buffer(torch.zeros(2))
    >>> is_normalisation(norm)
    True
    """
    if isinstance(module, NORMALISATION):
        return True
    own = all_own_parameters(module)
    if not own or not all(_only_scales(module, tensor) for tensor in own):
        return False
    has_statistics = any(one is None or one.is_floating_point() for one in module._buffers.values())
    children = (child for name, child in module._modules.items() if child is not None and name != _PARAMETRIZATIONS)
    return (has_statistics or bool(plain_statistics(module))) and not any(map(_holds_tensors, children))


def all_own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a module without those of its children, parametrized ones included.

    Examples
    --------
    >>> linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    >>> [tuple(tensor.shape) for tensor in all_own_parameters(linear)]
    [(2,), (2, 1), (2, 3)]
    """
    own = [one for one in own_parameters(module).values() if one is not None]
    return [*own, *module.get_submodule(_PARAMETRIZATIONS).parameters()] if is_parametrized(module) else own


def plain_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors in plain attributes of a module that are as large as a parameter which scales.

    Those in lists, tuples and dicts there count as well. Running statistics are kept so in some code; what else is, as
    the last output or a mask, has another size.

    Examples
    --------
    >>> norm = nn.Module()
    >>> norm.scale, norm.mean, norm.last = nn.Parameter(torch.ones(2)), torch.zeros(2), torch.zeros(5, 2)
    >>> plain_statistics(norm)
    {'mean': tensor([0., 0.])}
    """
    found = {
        name: value
        for name, value in _plain_attributes(module)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.requires_grad
    }
    sizes = {one.numel() for one in all_own_parameters(module) if _only_scales(module, one)} - {1} if found else set()
    return {name: value for name, value in found.items() if value.numel() in sizes and _is_long(value)}


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the attributes of a module, and what is in lists, tuples and dicts among them, with their names."""
    for name, value in vars(module).items():
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", one) for i, one in enumerate(value))
        elif isinstance(value, dict) and name not in _OF_TORCH:
            yield from ((f"{name}[{key!r}]", one) for key, one in value.items())
        else:
            yield name, value


def _only_scales(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether a parameter has the shape of one that scales or shifts; a row may also be a matrix of torch's layers."""
    if is_lazy(tensor) or tensor.ndim <= 1:
        return not is_lazy(tensor)
    is_of_torch = str(getattr(getattr(type(module), "forward", None), "__module__", "")).startswith("torch.")
    return not is_of_torch and _is_long(tensor)


def _is_long(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one dimension, others of size 1 apart."""
    return tensor.ndim > 0 and tensor.numel() == max(tensor.shape)


def _holds_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or any(one.is_floating_point() for one in module.buffers())
