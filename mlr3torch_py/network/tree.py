"""Tree: which modules of a network are opened, so that what they hold are blocks, and which are blocks themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from typing import Final, Literal, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mlr3torch_py.names import ancestors
from mlr3torch_py.network.evaluation import NORMALISATION
from mlr3torch_py.network.flow import Flow
from mlr3torch_py.network.unwrap import bare, named_modules

__all__ = ["Level", "Module", "Tree", "is_slight"]

Level = Literal["layer", "stage"]

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MANY: Final = 3


class Module(NamedTuple):
    """A module with its path."""

    path: str
    module: nn.Module


class Tree:
    """The module tree of a network, and what it says about how the network computes.

    Nothing is decided by the name or the class of a module, but for the containers of torch: whether it repeats, what
    it repeats, and whether a tensor that one module returns can be what another one takes.

    Parameters
    ----------
    network : torch.nn.Module
    level : {"layer", "stage"}
        Whether lists of layers are opened.
    flow : Flow, optional
        What a forward pass has shown.
    """

    def __init__(self, network: nn.Module, level: Level, flow: Flow | None) -> None:
        self.level = level
        self.flow = flow
        self._kind: Callable[[nn.Module], Hashable] = cache(_kind)
        self._n = Counter(self._kind(one) for one in {id(one): one for _, one in named_modules(network)}.values())
        self._modules = dict(named_modules(network))
        self.top = self._top(Module("", bare(network)))

    def children(self, at: Module) -> list[Module]:
        """List the children that hold parameters, in the order in which they run."""
        found = [
            Module(f"{at.path}.{name}" if at.path else name, bare(child))
            for name, child in at.module._modules.items()
            if child is not None and _has_parameters(child)
        ]
        if self.flow is None:
            return found
        calls: list[tuple[int, int]] = []
        for i, child in enumerate(found):
            call = self.flow.first_call(child.path)
            # What was not called stays behind what it follows in the tree.
            calls.append((call, 0) if call is not None else (calls[-1][0], i) if calls else (-1, i))
        return [child for _, child in sorted(zip(calls, found, strict=True), key=lambda pair: pair[0])]

    def opens(self, at: Module) -> bool:
        """Check whether the blocks of a module are found in it, so that it is no block itself."""
        children = self.children(at)
        if not children or is_parametrized(at.module):
            return False
        if _is_container(at.module):
            is_open = self._is_chain(children) and not self._is_repeated_layer(at)
        else:
            lists = list(self._lists(at))
            is_deep = any(map(self._holds_layers, lists))
            is_one = self._n[self._kind(at.module)] == 1
            is_open = is_deep or (is_one and (len(lists) == 1 or self._is_backbone(at)))
        return is_open and not (self.level == "stage" and self._is_stage(at, children))

    def n_layers(self, at: Module) -> int:
        """Count the modules at or below one that hold a matrix, or a tensor of more dimensions."""
        return _n_layers(at.module)

    def is_network_of_its_own(self, at: Module) -> bool:
        """Check whether a module is opened although it has a forward pass of its own, as the backbone of a network."""
        return not _is_container(at.module) and self.opens(at)

    def are_side_by_side(self, one: Module, other: Module) -> bool:
        """Check whether the later of two modules takes what the earlier takes, and not what it returns."""
        if self.flow is not None and self.flow.is_complete:
            if self.flow.first_call(one.path) is not None and self.flow.first_call(other.path) is not None:
                return self.flow.are_side_by_side(one.path, other.path)
        return not self._run_in_turn(one.path, other.path) and self._take_the_same(one.module, other.module)

    def _run_in_turn(self, path: str, other: str) -> bool:
        """Check whether the innermost module around two others runs what it holds one after the other."""
        paths = set(ancestors(other))
        around = self._modules[next(one for one in ancestors(path) if one in paths)]
        return getattr(type(around), "forward", None) is nn.Sequential.forward

    def _top(self, at: Module) -> Module:
        """Look through modules that hold one other module and no more."""
        while len(children := self.children(at)) == 1 and not any(True for _ in at.module._parameters.values()):
            if not self.children(children[0]) or is_parametrized(children[0].module):
                break
            at = children[0]
        return at

    def _is_backbone(self, at: Module) -> bool:
        """Check whether a module and a head are all that the network has, and most layers are in the module."""
        *backbone, _ = [one for one in self.children(self.top) if _n_layers(one.module)] or [self.top]
        return backbone == [at] and 2 * _n_layers(at.module) > _n_layers(self.top.module)

    def _is_stage(self, at: Module, children: list[Module]) -> bool:
        """Check whether a module that is opened is a stage: a list of blocks, or one of several of its kind."""
        if not _is_container(at.module):
            return self._n[self._kind(at.module)] > 1
        return self._repeats(children) and not any(map(self.opens, children))

    def _lists(self, at: Module) -> Iterator[Module]:
        """Yield the lists of repeated layers in a module."""
        children = self.children(at)
        if isinstance(at.module, _CONTAINERS) and self._repeats(children) and self._is_chain(children):
            yield at
            return
        for child in children:
            is_layer = not isinstance(child.module, _CONTAINERS) and self._n[self._kind(child.module)] > 1
            if not is_layer or any(map(self._holds_layers, self._lists(child))):
                for found in self._lists(child):
                    if not any(self._runs_beside(found, other) for other in children if other is not child):
                        yield found

    def _runs_beside(self, one: Module, other: Module) -> bool:
        return self.flow is not None and self.flow.are_side_by_side(one.path, other.path)

    def _is_chain(self, children: list[Module]) -> bool:
        """Check whether the elements of a list run one after the other, as far as can be known."""
        return not any(self.are_side_by_side(one, other) for one, other in zip(children, children[1:], strict=False))

    def _repeats(self, children: list[Module]) -> bool:
        kinds = [self._kind(child.module) for child in children]
        return len(kinds) > len(set(kinds))

    def _holds_layers(self, at: Module) -> bool:
        """Check whether what a list repeats is made of several layers itself, as a residual block is."""
        children = self.children(at)
        kinds = Counter(self._kind(child.module) for child in children)
        return any(kinds[self._kind(child.module)] > 1 and _n_layers(child.module) > 1 for child in children)

    def _is_repeated_layer(self, at: Module) -> bool:
        """Check whether a container is one of many of its kind and holds single layers, as convolution and norm."""
        has_layers = any(_n_layers(child.module) > 1 for child in self.children(at))
        return self._n[self._kind(at.module)] >= _MANY and not has_layers

    def _take_the_same(self, one: nn.Module, other: nn.Module) -> bool:
        first, last, (following, *_) = None, None, (*_layers(other), None)
        for layer in _layers(one):
            first, last = first or layer, layer
        if first is None or last is None or following is None:
            return False
        # The last layer of a module may not be the one that returns its output, unless there is one layer alone.
        are_comparable = first is last or self._kind(one) == self._kind(other)
        if not are_comparable or type(first) is not type(following) or type(last) is not type(first):
            return False
        taken, returned, follows = _width(first)[1], _width(last)[0], _width(following)[1]
        return taken == follows and returned != follows


def is_slight(module: nn.Module, tensor: nn.Parameter) -> bool:
    """Check whether a tensor only scales or shifts, as those of a norm do.

    Parameters
    ----------
    module : torch.nn.Module
        The module that holds it.
    tensor : torch.nn.Parameter

    Returns
    -------
    bool
    """
    if is_lazy(tensor):
        return isinstance(module, NORMALISATION)
    return tensor.ndim <= 1 or tuple(tensor.shape) == tuple(getattr(module, "normalized_shape", ()))


def _is_container(module: nn.Module) -> bool:
    """Check whether a module does nothing but hold others, or run one after the other."""
    forward = getattr(type(module), "forward", None)
    has_own_forward = forward not in (nn.Sequential.forward, nn.Module.forward)
    return type(module) is nn.Module or (isinstance(module, _CONTAINERS) and not has_own_forward)


def _kind(module: nn.Module) -> Hashable:
    """Return what modules of one make have in common; for a container, also what it holds."""
    module = bare(module)
    if not _is_container(module):
        return type(module)
    return (type(module), *(_kind(child) for child in module._modules.values() if child is not None))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that hold a matrix, or a tensor of more dimensions."""
    for _, one in named_modules(module):
        if any(tensor is not None and not is_slight(one, tensor) for tensor in one._parameters.values()):
            yield one


def _n_layers(module: nn.Module) -> int:
    return sum(1 for _ in _layers(module))


def _width(layer: nn.Module) -> tuple[int, int]:
    """Return the first two dimensions of the weight of a layer, what it returns and what it takes."""
    for tensor in layer._parameters.values():
        if tensor is not None and not is_lazy(tensor) and not is_slight(layer, tensor):
            return tensor.shape[0], tensor.shape[1]
    return -1, -1


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
