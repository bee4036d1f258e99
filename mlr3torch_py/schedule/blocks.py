"""network_blocks: the blocks of a network as a table, and what schedules make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any, get_args

import pandas as pd
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_choice, check_names, check_network, check_whole
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.blocks import Block, find_blocks, without_slight
from mlr3torch_py.network.flow import flow_of
from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.tree import Level
from mlr3torch_py.network.unwrap import bare, named_parameters, names_by_tensor
from mlr3torch_py.patterns import cover, expanded, patterns
from mlr3torch_py.protocols import NetOfUser
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.check import check_select
from mlr3torch_py.select.functions import select_name, select_prefix
from mlr3torch_py.select.nodes import joined
from mlr3torch_py.values import shown

__all__ = ["Head", "check_head", "make_blocks", "name_of", "network_blocks", "selector_of"]

Head = str | Sequence[str] | Select | None


class BlockTable(pd.DataFrame):
    """A data frame that prints its columns whole."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        columns = []
        for name in self:
            is_number = name in ("tensors", "weights")
            cells = [str(name), *(f"{cell:,}" if is_number else str(cell) for cell in self[name])]
            width = max(map(len, cells))
            columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
        return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


@short_traceback
def network_blocks(
    network: nn.Module | NetOfUser,
    X: Any = None,
    *,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
) -> pd.DataFrame:
    """Show the blocks that schedules freeze and unfreeze.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
        A network, or an initialized net.
    X : object, optional
        A batch that the network can be called with: one argument, a tuple of several, or a mapping of names to
        arguments. It is run through the network once, in the mode that the network has; then the order in which
        blocks run, and what runs side by side, are known instead of guessed. Nothing of the network changes.
    head : str, list of str, or Select, optional
        What the head is: paths of modules, or a selector. By default it is what lies after the backbone, or after the
        last module that several outputs share, or the last layer.
    n_groups : int, optional
        The number of blocks to make, by joining neighbours so that they have about as many weights each. The head
        stays as it is, if there are two or more.
    level : {"layer", "stage"}
        With "layer", every layer of a list of layers is a block, such as a residual block; with "stage" the list is.

    Returns
    -------
    pandas.DataFrame
        One row per block, from the input to the head: its `name`, the selector of what it `holds`, its number of
        `tensors`, and of `weights`. Every parameter of the network is in one of them.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the network has no parameters, or cannot be called with `X`.

    See Also
    --------
    gradual_unfreezing, select_last

    Notes
    -----
    Blocks are in the order in which the code of each ``forward`` calls them, which may be another one than that of the
    module tree; a layer of which only the weight is used counts as called there. Where the code names none, as in a
    loop over ``getattr`` or over keys, or is not there, they stay in the order of the tree, unless a batch tells
    another one. Apart from the containers of torch, nothing is decided by names or classes. These are opened, and so is
    a module that holds a list of repeated layers, also inside of another, as in ``nn.Sequential(backbone, head)``. A
    module that runs its children side by side is one block; so are embeddings side by side, and heads. A norm, which is
    known by the shape of its tensors, belongs to the block before, and the parameters that an opened module holds
    itself to its first block, or to one behind its last block if its code uses them after all layers. A tied tensor is
    in the last of the blocks that use it.

    Examples
    --------
    >>> from torch import nn
    >>> body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    >>> network_blocks(nn.ModuleDict({"body": body, "head": nn.Linear(8, 3)}))
    name    holds                              tensors  weights
    body.0  select_prefix('body.0', 'body.1')        4       56
    body.3  select_prefix('body.3')                  2       72
    head    select_prefix('head')                    2       27

    The column `holds` can be the `groups` of a schedule:

    >>> from mlr3torch_py import MLP, gradual_unfreezing
    >>> network = MLP(4, 3, neurons=(8, 8))
    >>> gradual_unfreezing(network, groups=network_blocks(network, n_groups=2))["unfreeze"]
       epoch                   weights
    0      2  select_prefix('0', '3')
    """
    module = bare(check_network("network", network))
    head = check_head(head)
    if n_groups is not None:
        n_groups = check_whole("n_groups", n_groups, "groups")
    level = check_choice("level", level, get_args(Level))
    blocks = make_blocks(module, X, head=head, n_groups=n_groups, level=level)
    names, sizes = list(named_parameters(module)), _sizes(module)
    rows = []
    for block in blocks:
        own = [sizes[name] for name in names if name in block.names and name in sizes]
        rows.append((name_of(block, names), selector_of(block, names), len(own), sum(own)))
    return BlockTable(rows, columns=["name", "holds", "tensors", "weights"])


def check_head(head: object) -> str | tuple[str, ...] | Select | None:
    """Return what was said about the head: a path, several, or a selector."""
    if head is None or isinstance(head, Select):
        return None if head is None else check_select("head", head)
    paths = check_names("head", head)
    if not paths or not all(path.strip(".") for path in paths):
        raise ValueError(f"`head` is {shown(head)}; give the paths of its modules, such as 'classifier', or a selector")
    return paths[0] if isinstance(head, str) else paths


def make_blocks(
    module: nn.Module, X: Any = None, *, head: Head = None, n_groups: int | None = None, level: Level = "layer"
) -> list[Block]:
    """Find the blocks of a bare network for arguments that have been checked.

    Raises
    ------
    ValueError
        If the network has no parameters, or does not have those of the head.
    """
    blocks = find_blocks(module, None if X is None else flow_of(module, X), level)
    if not blocks:
        raise ValueError("`network` has no parameters, and so no blocks; give one that has some")
    if head is not None:
        select = head if isinstance(head, Select) else select_prefix(*([head] if isinstance(head, str) else head))
        blocks = _with_head(blocks, select, module)
    return blocks if n_groups is None else _grouped(blocks, n_groups, _sizes(module))


def selector_of(block: Block, names: Sequence[str]) -> Select:
    """Return a selector of a block in a network with some names."""
    paths = cover(block.names, names)
    known = set(names)
    # select_prefix would read braces in a name as a pattern.
    modules = [path for path in paths if path not in known and expanded(path) == [path]]
    within = tuple(f"{path}." for path in modules)
    own = [name for name in names if name in block.names and not name.startswith(within)]
    return joined([*([select_name(own)] if own else []), *([select_prefix(*modules)] if modules else [])])


def name_of(block: Block, names: Sequence[str]) -> str:
    """Name a block by its modules, without norms and further names of tied tensors where there is something else."""
    paths = cover(block.names, names)
    main = [path for path in paths if any(f"{name}.".startswith(f"{path}.") for name in block.main)]
    modules = [path for path in main if path not in block.names]
    return listed(patterns(modules or main or paths), most=4)


def _with_head(blocks: list[Block], head: Select, module: nn.Module) -> list[Block]:
    tensors = named_parameters(module)
    names = tensors.keys()
    try:
        selected = frozenset(head.matches(names, module))
    except ValueError as error:
        raise ValueError(f"`head` is {shown(head)}, which does not fit the network: {error}") from error
    if unknown := [one for part in head.unmatched(names, module) for one in getattr(part, "prefixes", [repr(part)])]:
        paths = dict.fromkeys(path for name in names for path in [name, *ancestors(name)] if path)
        raise ValueError(f"`head` has {shown(unknown[0])}, which matches no weight; {nearest(unknown, paths)}")
    if not selected:
        raise ValueError(f"`head` is {head!r}, which selects nothing; give the paths of the head")
    selected = selected.union(*(group for group in sharing_names(tensors) if not selected.isdisjoint(group)))
    body = [Block(block.names - selected, block.main - selected) for block in blocks]
    return [*without_slight(block for block in body if block.names), Block(selected, selected)]


def _grouped(blocks: list[Block], n_groups: int, sizes: Mapping[str, int]) -> list[Block]:
    """Join neighbouring blocks so that the groups have about as many weights each; the head is one of them."""
    *body, head = blocks
    if n_groups == 1:
        return [reduce(Block.joined, blocks)]
    if len(body) < n_groups:
        return blocks
    weights = [sum(sizes.get(name, 0) for name in block.names) for block in body]
    cuts = _even_cuts(weights, n_groups - 1)
    return [*(reduce(Block.joined, body[start:end]) for start, end in pairwise([0, *cuts, len(body)])), head]


def _even_cuts(weights: Sequence[int], n: int) -> list[int]:
    """Return where to cut a sequence into `n` runs, so that the sum of the squares of their sums is least."""
    sums = [0, *accumulate(weights)]
    best: list[tuple[float, list[int]]] = [(float(total) ** 2, []) for total in sums]  # of one run up to each place
    for runs in range(2, n + 1):
        best = [
            min(
                (best[cut][0] + float(sums[end] - sums[cut]) ** 2, [*best[cut][1], cut]) for cut in range(runs - 1, end)
            )
            if end >= runs
            else (math.inf, [])
            for end in range(len(sums))
        ]
    return best[-1][1]


def _sizes(module: nn.Module) -> dict[str, int]:
    """Return the number of weights of each tensor under its first name."""
    tensors = named_parameters(module)
    firsts = {tied[0]: tensors[tied[0]] for tied in names_by_tensor(module)}
    return {name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in firsts.items()}
