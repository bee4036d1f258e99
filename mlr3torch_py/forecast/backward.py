"""What a backward pass goes through, as autograd sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mlr3torch_py.names import ancestors
from mlr3torch_py.network.internals import tree_leaves
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["BackwardWatch"]


class BackwardWatch:
    """Sees which parameters the backward pass of a step goes through on its way to others.

    The backward pass goes through a parameter if autograd keeps it to compute the gradient of something else, or if
    its module turns an input that requires a gradient into an output that does.

    Parameters
    ----------
    module : torch.nn.Module

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    >>> for layer in network[::2]:
    ...     _ = layer.requires_grad_(False)
    >>> watch = BackwardWatch(network)
    >>> with watch.watching():
    ...     network(torch.ones(1, 2)).sum().backward()
    >>> watch.passed, watch.below
    (['2.weight', '2.bias'], ['1.weight', '1.bias'])
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = bare(module)
        self._tensors: Mapping[str, torch.Tensor] = named_parameters(self._module)
        self._addresses = {name: _address(tensor) for name, tensor in self._tensors.items()}
        self._known = set(self._addresses.values())
        self._order: dict[str, int] = {}  # the modules that were called with a tensor
        self._on_the_way: set[str] = set()  # those among them whose input and output required a gradient
        self._kept: dict[int, int] = {}  # after how many calls a tensor was kept, by address

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is computed inside."""
        with ExitStack() as stack:
            for path, module in named_modules(self._module):
                if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                    hook = module.register_forward_hook(partial(self._called, path), with_kwargs=True)
                    stack.callback(hook.remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            yield

    @property
    def passed(self) -> list[str]:
        """The frozen parameters that the backward pass goes through."""
        frozen = (name for name, tensor in self._tensors.items() if not tensor.requires_grad)
        return [name for name in frozen if self._is_kept(name) or self._caller(name) in self._on_the_way]

    @property
    def below(self) -> list[str]:
        """The trainable parameters for whose sake it does so: those that are used before these, if known."""
        last = max(map(self._position, self.passed), default=-1)
        trainable = [name for name, tensor in self._tensors.items() if tensor.requires_grad]
        below = [name for name in trainable if self._position(name) < last]
        return below or (trainable if self.passed else [])

    def _is_kept(self, name: str) -> bool:
        return self._addresses[name] in self._kept

    def _position(self, name: str) -> int:
        """Return after how many calls of modules a parameter is used first; not every use keeps it."""
        n_called = len(self._order)
        return min(self._kept.get(self._addresses[name], n_called), self._order.get(self._caller(name), n_called))

    def _caller(self, name: str) -> str:
        """Return the innermost module around a parameter that was called with a tensor."""
        return next((path for path in ancestors(name) if path in self._order), "")

    def _called(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if inputs:
            self._order.setdefault(path, len(self._order))
            if _requires_gradient(inputs) and _requires_gradient(tree_leaves(output)):
                self._on_the_way.add(path)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if (address := _address(tensor)) in self._known:
            self._kept.setdefault(address, len(self._order))
        return tensor


def _requires_gradient(leaves: Iterable[Any]) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def _address(tensor: torch.Tensor) -> int:
    """Return where the values of a tensor are, so that its views are recognized; its ``id`` if they are nowhere."""
    try:
        return tensor.data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError, ValueError):  # a sparse tensor, a parameter that is lazy
        return id(tensor)
