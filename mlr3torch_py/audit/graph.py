"""What the graph of a forward pass says about the way of a gradient to a parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch.autograd.graph import Node

__all__ = ["reached_without_loss"]

# Where units rest, the gradient behind these is zero, and nothing is wrong.
_RECTIFIER: Final = re.compile("relu|threshold|hard|clamp|maximum|minimum", flags=re.IGNORECASE)

# Operations of torch; others, such as a compiled graph or checkpointed activations, may hold a rectifier.
_OPERATION: Final = re.compile(r"(torch::autograd::)?\w+Backward\d+|torch::autograd::AccumulateGrad")


def reached_without_loss(outputs: Any) -> set[int]:
    """Find the parameters between which and the outputs no rectifier stands that may turn a gradient into zero.

    Parameters
    ----------
    outputs : tensor, or sequence or mapping of outputs
        What a network has computed.

    Returns
    -------
    set of int
        The parameters by their ``id``.

    Examples
    --------
    >>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> reached_without_loss(second(first(torch.ones(2)).relu())) == {id(second.weight), id(second.bias)}
    True
    """
    reached, cut_off = set[int](), set[int]()
    todo = [(tensor.grad_fn, False) for tensor in _tensors(outputs) if tensor.grad_fn is not None]
    seen = set[tuple[Node, bool]]()
    while todo:
        node, is_cut = todo.pop()
        if (node, is_cut) in seen:
            continue
        seen.add((node, is_cut))
        if (variable := getattr(node, "variable", None)) is not None:
            (cut_off if is_cut else reached).add(id(variable))
        is_cut = is_cut or _RECTIFIER.search(node.name()) is not None or _OPERATION.fullmatch(node.name()) is None
        todo += [(below, is_cut) for below, _ in node.next_functions if below is not None]
    return reached - cut_off


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, (Mapping, list, tuple)):
        for one in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(one)
