"""Blocks: the parts of a network that a schedule freezes and unfreezes as one, from the input to the head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from torch import nn

from mlr3torch_py.network.flow import Flow
from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.tree import MANY, Level, Module, Tree, is_slight
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["Block", "find_blocks", "without_slight"]


class Block(NamedTuple):
    """A part of a network.

    Parameters
    ----------
    names : frozenset of str
        Its parameters, under all of their names.
    main : frozenset of str
        Those by which it is called: without norms, and without further names of a tied tensor.
    """

    names: frozenset[str]
    main: frozenset[str]

    @property
    def is_slight(self) -> bool:
        """Whether it only scales or shifts."""
        return not self.main

    def joined(self, other: Block) -> Block:
        """Return one block in the place of two."""
        return Block(self.names | other.names, self.main | other.main)


class _Part(NamedTuple):
    """Modules, and parameters of modules that were opened, in one block."""

    modules: list[Module]
    names: list[str]
    is_slight: bool

    def joined(self, other: _Part) -> _Part:
        return _Part(self.modules + other.modules, self.names + other.names, self.is_slight and other.is_slight)

    def holds(self, name: str) -> bool:
        within = (name in one.names or not one.path or name.startswith(f"{one.path}.") for one in self.modules)
        return name in self.names or any(within)


_Joinable = TypeVar("_Joinable", Block, _Part)


def find_blocks(network: nn.Module, flow: Flow | None = None, level: Level = "layer") -> list[Block]:
    """Find the blocks of a network, from the input to the head.

    Parameters
    ----------
    network : torch.nn.Module
    flow : Flow, optional
        What a forward pass has shown; without it the order is that of the code, as far as it tells one.
    level : {"layer", "stage"}
        Whether every layer of a list is a block, or the list.

    Returns
    -------
    list of Block
        Every parameter is in one of them; none for a network without parameters.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> [sorted(block.names) for block in find_blocks(network)]
    [['0.bias', '0.weight', '1.bias', '1.weight'], ['2.bias', '2.weight']]
    """
    network = bare(network)
    tree = Tree(network, level, flow)
    return without_slight(_blocks(network, _parts(tree)))


def _parts(tree: Tree) -> list[_Part]:
    """List the parts of a network in the order in which they run; the last one is the head."""
    siblings = _with_heads_last(tree, tree.children(tree.top))
    first, is_whole = _heads(tree, siblings)
    body = [part for sibling in siblings[:first] for part in _parts_in(tree, sibling)]
    if is_whole:
        tail = [_Part(siblings[first:], [], is_slight=False)]
    else:
        tail = [part for sibling in siblings[first:] for part in _parts_in(tree, sibling)]
    if not (parts := without_slight(body + tail)):
        return _with_own(tree, tree.top, [])
    *body, head = _side_by_side_joined(tree, parts)
    while body and _are_heads(tree, body[-1], head):
        head = body.pop().joined(head)
    # Where nothing lies before them, they are no heads, and all would be one block.
    return _with_own(tree, tree.top, [*body, head] if body else parts)


def _heads(tree: Tree, siblings: list[Module]) -> tuple[int, bool]:
    """Return the position of the first head among the children of a network, and whether heads are to stay whole."""
    layers = [i for i, one in enumerate(siblings) if tree.n_layers(one)]
    if not layers:
        return max(0, len(siblings) - 1), False
    if heads := _heads_of_branches(tree, siblings):
        return min(map(siblings.index, heads)), True
    last, backbones = siblings[layers[-1]], [i for i in layers[:-1] if tree.is_backbone(siblings[i])]
    if _is_as_large(tree, last, [siblings[i] for i in backbones]):
        return layers[-1], False
    if (after := _after_backbone(tree, siblings, backbones, layers)) is not None:
        return after, True
    first = _first_at_the_end(tree, siblings, layers)
    if first == 0:
        return layers[-1], False
    return first, first < layers[-1] or tree.has_own_forward(siblings[first])


def _after_backbone(tree: Tree, siblings: list[Module], backbones: list[int], layers: list[int]) -> int | None:
    """Return the position of the first layer after the last backbone; None if these are layers, or another follows."""
    if not backbones or _are_layers(tree, [siblings[i] for i in backbones]):
        return None
    after = [i for i in layers if i > backbones[-1]]
    return None if any(_is_as_large(tree, siblings[i], [siblings[backbones[-1]]]) for i in after) else after[0]


def _first_at_the_end(tree: Tree, siblings: list[Module], layers: list[int]) -> int:
    """Return the position of the first of the layers that are side by side at the end of a network."""
    if tree.flow is not None and tree.flow.is_complete:
        return _after_shared(tree, siblings, layers)
    *before, first = layers
    while before and tree.are_side_by_side(siblings[before[-1]], siblings[first]):
        first = before.pop()
    return first


def _is_as_large(tree: Tree, one: Module, backbones: list[Module]) -> bool:
    """Check whether a module is deep itself, such as a decoder, and no head of those before it."""
    return tree.is_deep(one) and all(2 * tree.n_layers(one) >= tree.n_layers(other) for other in backbones)


def _are_layers(tree: Tree, modules: list[Module]) -> bool:
    """Check whether modules are the layers of one backbone, which the network itself runs one after the other."""
    return len(modules) >= MANY and tree.are_of_one_kind(modules) and tree.is_chain(modules)


def _after_shared(tree: Tree, siblings: list[Module], layers: list[int]) -> int:
    """Return the position of the first child after the last one that several ends of the network have read."""
    ends = tree.ends([siblings[i] for i in layers])
    shared = [i for i in layers if sum(tree.reads(end, siblings[i]) for end in ends) > 1]
    if len(ends) < 2 or not shared:
        return layers[-1]
    return min((i for i in layers if i > shared[-1]), default=layers[-1])


def _heads_of_branches(tree: Tree, siblings: list[Module]) -> list[Module]:
    """List the heads of branches that have no layer in common, such as the projections of two towers."""
    layers = [one for one in siblings if tree.n_layers(one)]
    ends = tree.ends(layers)
    heads = [end for end in ends if any(tree.reads(end, one) for one in layers)]
    is_shared = any(sum(tree.reads(end, one) for end in ends) > 1 for one in layers)
    if len(heads) < 2 or is_shared or any(map(tree.is_deep, heads)):
        return []
    backbones = [one for one in layers if tree.is_backbone(one)]
    first = [one for one in layers if one in backbones or any(tree.reads(backbone, one) for backbone in backbones)]
    after = [one for one in layers if one not in first and any(tree.reads(one, backbone) for backbone in backbones)]
    return [one for one in layers if one in heads or one in after]


def _with_heads_last(tree: Tree, siblings: list[Module]) -> list[Module]:
    """Move the heads of branches that have no layer in common, and what follows each, behind the branches."""
    heads = _heads_of_branches(tree, siblings)
    after = [one for one in siblings if one in heads or one.names or any(tree.reads(one, head) for head in heads)]
    return [one for one in siblings if one not in after] + after if heads else siblings


def _side_by_side_joined(tree: Tree, parts: list[_Part]) -> list[_Part]:
    """Join neighbouring single layers that take the same, such as the embeddings of words and of positions."""
    joined: list[_Part] = []
    for part in parts:
        if joined and _take_the_same(tree, joined[-1], part):
            part = joined.pop().joined(part)
        joined.append(part)
    return joined


def _take_the_same(tree: Tree, one: _Part, other: _Part) -> bool:
    if not (_is_single_layer(tree, one) and _is_single_layer(tree, other)):
        return False
    pair = one.modules[-1], other.modules[0]
    return tree.are_side_by_side(*pair) and tree.read_the_same(*pair)


def _is_single_layer(tree: Tree, part: _Part) -> bool:
    return all(not tree.children(one) and tree.n_layers(one) == 1 for one in part.modules)


def _are_heads(tree: Tree, part: _Part, head: _Part) -> bool:
    if len(part.modules) != 1 or any(tree.reads(one, part.modules[0]) for one in head.modules):
        return False
    return bool(head.modules) and tree.are_side_by_side(part.modules[0], head.modules[0])


def _parts_in(tree: Tree, at: Module) -> list[_Part]:
    if not tree.opens(at):
        return [_Part([at], [], is_slight=not tree.n_layers(at))]
    return _with_own(tree, at, [part for child in tree.children(at) for part in _parts_in(tree, child)])


def _with_own(tree: Tree, at: Module, parts: list[_Part]) -> list[_Part]:
    """Add the parameters of a module that was opened to its first part."""
    own = tree.own_parameters(at)
    if own and not parts:
        return [_Part([], own, is_slight=False)]
    if own:
        parts[0] = _Part([], own, is_slight=False).joined(parts[0])
    return parts


def without_slight(parts: Iterable[_Joinable]) -> list[_Joinable]:
    """Join what only scales or shifts, such as a norm, to what is before it.

    At the beginning it is joined to what follows, unless that is the head.
    """
    joined: list[_Joinable] = []
    for part in parts:
        joined.append(joined.pop().joined(part) if joined and part.is_slight else part)
    if len(joined) > 2 and joined[0].is_slight:
        joined[:2] = [joined[0].joined(joined[1])]
    return joined


def _blocks(network: nn.Module, parts: list[_Part]) -> list[Block]:
    """Turn parts into blocks, each tensor in the last of those that use it."""
    tensors, owners = named_parameters(network), dict(named_modules(network))
    aliases = {name: names for names in sharing_names(tensors) for name in names}
    found: list[Block] = []
    taken: set[str] = set()

    def around(name: str) -> str:
        return name.rpartition(".")[0]

    for part in reversed(parts):
        own = [name for name in tensors if name not in taken and part.holds(name)]
        names = {alias for name in own for alias in aliases.get(name, [name])}
        layers = {around(name) for name in own if not is_slight(owners[around(name)], tensors[name])}
        main = (name for name in own if around(name) in layers)
        taken |= names
        if names:
            found.insert(0, Block(frozenset(names), frozenset(main)))
    return found
