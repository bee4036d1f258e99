"""Tree: which modules of a network are opened, so that what they hold are blocks, and which are blocks themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from mlr3torch_py.names import ancestors
from mlr3torch_py.network.code_loops import Loop
from mlr3torch_py.network.code_order import code_loops, code_order
from mlr3torch_py.network.flow import Flow
from mlr3torch_py.network.normalisation import NORMALISATION, is_normalisation
from mlr3torch_py.network.parameters import has_parameters
from mlr3torch_py.network.unwrap import bare, named_modules

__all__ = ["MANY", "Level", "Module", "Tree", "is_slight"]

Level = Literal["layer", "stage"]

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MANY: Final = 3


class Module(NamedTuple):
    """A module with its path, or parameters that their module uses as a layer, with the path of the first of them."""

    path: str
    module: nn.Module
    names: tuple[str, ...] = ()  # those of such parameters


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
        What a forward pass has shown; without it, the code of the forward passes tells the order.
    """

    def __init__(self, network: nn.Module, level: Level, flow: Flow | None) -> None:
        self.level = level
        self.flow = flow
        self._kind: Callable[[nn.Module], object] = cache(_kind)
        self._n = Counter(self._kind(one) for one in {id(one): one for _, one in named_modules(network)}.values())
        self._modules = dict(named_modules(network))
        self._children: dict[str, list[Module]] = {}
        self._lists_in: dict[str, list[Module]] = {}
        self.top = self._top(Module("", bare(network)))

    def children(self, at: Module) -> list[Module]:
        """List the children that hold parameters, in the order in which they run.

        Parameters of the module itself that its code uses after all layers are the last of them.
        """
        if at.path not in self._children:
            found = self._in_order(at)
            self._children[at.path] = [*found, *_last_parameters(at, found)]
        return self._children[at.path]

    def own_parameters(self, at: Module) -> list[str]:
        """List the parameters that a module itself holds, apart from those that are among its children."""
        below = {name for child in self.children(at) for name in child.names}
        return [name for name in _own_parameters(at) if name not in below]

    def _in_order(self, at: Module) -> list[Module]:
        found = [
            Module(f"{at.path}.{name}" if at.path else name, bare(child))
            for name, child in at.module._modules.items()
            if child is not None and has_parameters(child)
        ]
        loops = self._loops_over(at.path)
        if loops and all(loop.is_reversed for loop in loops):
            found.reverse()
        order = {name: i for i, name in enumerate(code_order(at.module))}
        found = _sorted_by(found, [order.get(child.path.rpartition(".")[2]) for child in found])
        return found if self.flow is None else _sorted_by(found, [self.flow.first_call(one.path) for one in found])

    def _loops_over(self, path: str) -> list[Loop]:
        """List the loops over a list in the code of the modules around it; none if a forward pass tells more."""
        if self.flow is not None or not isinstance(self._modules.get(path), (nn.ModuleList, nn.ModuleDict)):
            return []
        inner = {around: path[len(around) :].removeprefix(".") for around in ancestors(path) if around in self._modules}
        return [loop for around, rest in inner.items() for loop in code_loops(self._modules[around]).get(rest, [])]

    def opens(self, at: Module) -> bool:
        """Check whether the blocks of a module are found in it, so that it is no block itself."""
        if not self._holds_blocks(at):
            return False
        return not (self.level == "stage" and self._is_stage(at))

    def n_layers(self, at: Module) -> int:
        """Count the modules at or below one that hold a matrix, or a tensor of more dimensions."""
        return _n_layers(at.module)

    def has_own_forward(self, at: Module) -> bool:
        """Check whether a module does more than to hold others, or to run them one after the other."""
        return not _is_container(at.module)

    def is_backbone(self, at: Module) -> bool:
        """Check whether a module is opened although it has a forward pass of its own."""
        return self.has_own_forward(at) and self._holds_blocks(at)

    def is_deep(self, at: Module) -> bool:
        """Check whether a module holds a list that repeats what is made of several layers, as residual blocks are."""
        return any(map(self._holds_layers, self._lists(at)))

    def is_chain(self, children: list[Module]) -> bool:
        """Check whether the elements of a list run one after the other, as far as can be known."""
        return not any(self.are_side_by_side(one, other) for one, other in pairwise(children))

    def are_of_one_kind(self, modules: list[Module]) -> bool:
        """Check whether modules are of one make."""
        return len({self._kind(one.module) for one in modules}) == 1

    def are_side_by_side(self, one: Module, other: Module) -> bool:
        """Check whether the later of two modules takes what the earlier takes, and not what it returns."""
        if self.flow is not None and self.flow.knows(one.path, other.path):
            return self.flow.are_side_by_side(one.path, other.path)
        return not self._run_in_turn(one.path, other.path) and self._take_the_same(one.module, other.module)

    def read_the_same(self, one: Module, other: Module) -> bool:
        """Check whether two modules read what the same layers have computed, as far as that is known."""
        if self.flow is None or not self.flow.knows(one.path, other.path):
            return True
        differ = self.flow.sources(one.path) ^ self.flow.sources(other.path)
        return not any(self._modules[path]._parameters for path in differ)

    def ends(self, layers: list[Module]) -> list[Module]:
        """List those of some modules that no other one of them reads; none where that is not known."""
        if self.flow is None or not self.flow.is_complete:
            return []
        called = [one for one in layers if self.flow.first_call(one.path) is not None]
        return [one for one in called if not any(self.reads(other, one) for other in called if other != one)]

    def reads(self, one: Module, other: Module) -> bool:
        """Check whether a module is known to read what another one has computed."""
        return self.flow is not None and self.flow.reads(one.path, other.path)

    def _run_in_turn(self, path: str, other: str) -> bool:
        """Check whether the innermost module around two others runs what it holds one after the other."""
        paths = set(ancestors(other))
        around = self._modules[next(one for one in ancestors(path) if one in paths)]
        return _runs_in_sequence(around)

    def _top(self, at: Module) -> Module:
        """Look through modules that hold one other module and nothing else."""
        while len(children := self.children(at)) == 1 and not any(True for _ in at.module._parameters.values()):
            if not self.children(children[0]) or is_parametrized(children[0].module):
                break
            at = children[0]
        return at

    def _holds_blocks(self, at: Module) -> bool:
        children = self.children(at)
        if not children or is_parametrized(at.module):
            return False
        if _is_container(at.module):
            loops = self._loops_over(at.path)
            is_parallel = bool(loops) and all(loop.is_parallel for loop in loops)
            return not is_parallel and self.is_chain(children) and not self._is_one_layer(at)
        is_one_of_its_kind = self._n[self._kind(at.module)] == 1
        return self.is_deep(at) or (is_one_of_its_kind and len(self._lists(at)) == 1) or self._branches(at)

    def _is_stage(self, at: Module) -> bool:
        """Check whether a module that holds blocks is a stage: a list of them, or one of several of its kind."""
        if not _is_container(at.module):
            return self._n[self._kind(at.module)] > 1
        children = self.children(at)
        return self._repeats(children) and not any(map(self._holds_blocks, children))

    def _branches(self, at: Module) -> bool:
        """Check whether another module reads what lies inside of a child of the network, and not what that returns."""
        if self.flow is None or not self.flow.is_complete or at not in (siblings := self.children(self.top)):
            return False
        return any(self.flow.reads_inside(one.path, at.path) for one in siblings if one != at)

    def _lists(self, at: Module) -> list[Module]:
        """List the lists of repeated layers in a module."""
        if at.path not in self._lists_in:
            children = self.children(at)
            is_list = isinstance(at.module, _CONTAINERS) and self._repeats(children) and self.is_chain(children)
            self._lists_in[at.path] = [at] if is_list else [*self._lists_below(children)]
        return self._lists_in[at.path]

    def _lists_below(self, children: list[Module]) -> Iterator[Module]:
        for child in children:
            is_layer = not isinstance(child.module, _CONTAINERS) and self._n[self._kind(child.module)] > 1
            others = [other for other in children if other is not child]
            for found in self._lists(child) if not is_layer or self.is_deep(child) else ():
                if not any(self._runs_beside(found, other) for other in others):
                    yield found

    def _runs_beside(self, one: Module, other: Module) -> bool:
        return self.flow is not None and self.flow.are_side_by_side(one.path, other.path)

    def _repeats(self, children: list[Module]) -> bool:
        kinds = [self._kind(child.module) for child in children]
        return len(kinds) > len(set(kinds))

    def _holds_layers(self, at: Module) -> bool:
        """Check whether what a list repeats is made of several layers itself, as a residual block is."""
        children = self.children(at)
        kinds = Counter(self._kind(child.module) for child in children)
        return any(kinds[self._kind(child.module)] > 1 and _n_layers(child.module) > 1 for child in children)

    def _is_one_layer(self, at: Module) -> bool:
        """Check whether a container is a layer: one of many that hold single layers, or as large as those around it."""
        children = self.children(at)
        if _n_layers(children[0].module) == 0 and _n_layers(at.module) == 1:
            return False  # a norm in front of a layer belongs to what is before both of them
        has_single_layers = all(_n_layers(child.module) <= 1 for child in children)
        if has_single_layers and self._n[self._kind(at.module)] >= MANY:
            return True
        around = Module(at.path.rpartition(".")[0], self._modules.get(at.path.rpartition(".")[0], at.module))
        if len(children) == 1 or not isinstance(around.module, _CONTAINERS) or not self._holds_layers(around):
            return False
        neighbours = (_n_layers(one.module) for one in self.children(around) if not _is_container(one.module))
        return not self._lists(at) and _n_layers(at.module) <= max(neighbours, default=0)

    def _take_the_same(self, one: nn.Module, other: nn.Module) -> bool:
        """Check whether the widths of two modules tell that both take the same, so that neither follows the other."""
        layers, following = list(_layers(one)), next(_layers(other), None)
        # Which of several layers returns the output of a module is known of a sequence, and guessed in its like.
        if not layers or following is None or (len(layers) > 1 and self._kind(one) != self._kind(other)):
            return False
        if any(type(layer) is not type(following) for layer in (layers[0], layers[-1])):
            return False
        widths, follows = [_widths(layer) for layer in layers], _widths(following)
        if not follows or not follows.taken or not widths[0] or widths[0].taken != follows.taken:
            return False
        last = widths[-1:] if _runs_in_sequence(one) else widths
        # Gates, maxima and shuffled pixels make one number of several, and so a width that divides the one before them.
        return all(width and width.returned % follows.taken for width in last)


class _Widths(NamedTuple):
    """How many numbers a layer returns, and how many it takes."""

    returned: int
    taken: int


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
    shape = getattr(module, "normalized_shape", ())  # which norms of others give as a number
    has_shape_of_norm = isinstance(shape, Iterable) and tuple(tensor.shape) == tuple(shape)
    return tensor.ndim <= 1 or has_shape_of_norm or is_normalisation(module)


def _sorted_by(modules: list[Module], numbers: list[int | None]) -> list[Module]:
    """Sort modules by their numbers; what has none stays before what follows it."""
    places: list[tuple[float, bool, int]] = []
    following = math.inf
    for i, number in reversed([*enumerate(numbers)]):
        following = following if number is None else number
        places.append((following, number is not None, i))
    return [modules[i] for _, _, i in sorted(places)]


def _own_parameters(at: Module) -> dict[str, nn.Parameter]:
    found = at.module._parameters.items() if not at.names else ()
    return {f"{at.path}.{name}" if at.path else name: one for name, one in found if one is not None}


def _last_parameters(at: Module, children: list[Module]) -> Iterator[Module]:
    """Yield the parameters that the code of a module uses after all of its layers, as one layer, if there are any."""
    own = _own_parameters(at)
    if own and (layers := [child.path.rpartition(".")[2] for child in children if _n_layers(child.module)]):
        order = code_order(at.module)
        after = order[max(map(order.index, layers)) :] if all(name in order for name in layers) else []
        if names := tuple(name for name in own if name.rpartition(".")[2] in after):
            yield Module(names[0], nn.ParameterList(own[name] for name in names), names)


def _is_container(module: nn.Module) -> bool:
    """Check whether a module does nothing but hold others, or run one after the other."""
    forward = getattr(type(module), "forward", None)
    has_own_forward = forward not in (nn.Sequential.forward, nn.Module.forward)
    return type(module) is nn.Module or (isinstance(module, _CONTAINERS) and not has_own_forward)


def _kind(module: nn.Module) -> object:
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


def _widths(layer: nn.Module) -> _Widths | None:
    """Return the widths of a layer with one weight; None for others, such as recurrent ones."""
    tensors = [one for one in layer._parameters.values() if one is not None]
    weights = [one for one in tensors if not is_slight(layer, one)]
    if len(weights) != 1 or any(map(is_lazy, tensors)):
        return None
    returned, taken = weights[0].shape[:2]
    is_transposed = returned != taken and any(one.shape == (taken,) for one in tensors)  # as its bias tells
    return _Widths(taken, returned) if is_transposed else _Widths(returned, taken)


def _runs_in_sequence(module: nn.Module) -> bool:
    return getattr(type(module), "forward", None) is nn.Sequential.forward
