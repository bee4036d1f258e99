"""Ready-made schedules: `starting_weights` and `unfreeze` of well-known ways of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from numbers import Real
from operator import or_
from typing import TypedDict, get_args

import pandas as pd
from torch import nn

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.network.evaluation import NORMALISATION
from mlr3torch_py.network.unwrap import bare, network_of
from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.table import Unit, as_select
from mlr3torch_py.select.algebra import Select
from mlr3torch_py.select.functions import select_name, select_prefix

__all__ = ["Schedule", "chain_thaw", "gradual_unfreezing", "head_first"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (*NORMALISATION, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Schedule(TypedDict):
    """The arguments of `CallbackSetUnfreeze`, to pass on by ``**``."""

    starting_weights: Select
    unfreeze: pd.DataFrame


def gradual_unfreezing(
    network: nn.Module | Net,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Sequence[Select] | None = None,
    lr_decay: float = 1.0,
    *,
    among: Select | None = None,
) -> Schedule:
    """Unfreeze block after block, from the head to the input.

    The head, which is the last block, is trainable from the start. The block below it joins at ``start + every``, the
    next one at ``start + 2 * every``, and so on, until all are trainable.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
        A network, or an initialized net. Its blocks are the direct children that hold parameters. Sequential
        containers, lists of modules, and children with a list of repeated layers are replaced by their own children. A
        normalization layer belongs to the block before it, and a replaced module's own parameters to its first block.
    every : int
        The number of epochs or batches between two blocks.
    start : int
        The epoch or batch to count from, at least 1.
    unit : {"epoch", "batch"}
        The unit of `every` and `start`.
    groups : sequence of Select, optional
        The blocks, from the input to the head, in place of those of the module tree.
    lr_decay : float
        The divisor of a block's learning rate for each block above it, such as 2.6.
    among : Select, optional
        What may be trained at all, such as `select_trainable`; blocks without any of it are left out.

    Returns
    -------
    dict
        ``starting_weights`` and ``unfreeze``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters.

    See Also
    --------
    chain_thaw, head_first

    References
    ----------
    J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018, sections 3.2, 3.3.

    Examples
    --------
    >>> from mlr3torch_py import MLP, t_clbk
    >>> schedule = gradual_unfreezing(MLP(4, 3, neurons=(8, 8)))
    >>> schedule["starting_weights"]
    select_prefix('6')
    >>> schedule["unfreeze"]
       epoch             weights
    0      2  select_prefix('3')
    1      3  select_prefix('0')
    >>> callback = t_clbk("unfreeze", **schedule)
    """
    *body, head = _blocks(network, groups, among)
    table = pd.DataFrame({unit: _times(start, every, unit, len(body)), "weights": body[::-1]})
    if isinstance(lr_decay, bool) or not isinstance(lr_decay, Real):
        raise TypeError(f"`lr_decay` is {lr_decay!r}; give a number, such as 2.6")
    if not 0 < lr_decay < math.inf:
        raise ValueError(f"`lr_decay` is {lr_decay!r}; give a number above 0, such as 2.6")
    if lr_decay != 1:
        table["lr_mult"] = [lr_decay**-i for i in range(1, len(body) + 1)]
    return {"starting_weights": head, "unfreeze": table}


def chain_thaw(
    network: nn.Module | Net,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Sequence[Select] | None = None,
    *,
    among: Select | None = None,
) -> Schedule:
    """Train the head, each other block alone, then all.

    The other blocks follow each other from the input to the head.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
    every, start : int
    unit : {"epoch", "batch"}
    groups : sequence of Select, optional
        As in `gradual_unfreezing`; groups must not share weights.
    among : Select, optional
        As in `gradual_unfreezing`.

    Returns
    -------
    dict
        ``starting_weights`` and ``unfreeze``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters.

    See Also
    --------
    gradual_unfreezing, head_first

    References
    ----------
    B. Felbo et al., Using millions of emoji occurrences to learn any-domain representations for detecting sentiment,
    emotion and sarcasm, EMNLP 2017, section 3.3.

    Examples
    --------
    >>> from mlr3torch_py import MLP
    >>> chain_thaw(MLP(4, 3, neurons=(8,)))["unfreeze"]
       epoch             weights    action
    0      2  select_prefix('0')  unfreeze
    1      2  select_prefix('3')    freeze
    2      3  select_prefix('3')  unfreeze
    """
    *body, head = _blocks(network, groups, among)
    *times, last_time = _times(start, every, unit, len(body) + 1)
    rows: list[tuple[int, Select, str]] = []
    for time, block, before in zip(times, body, [head, *body], strict=False):
        rows += [(time, block, "unfreeze"), (time, before, "freeze")]
    if body:
        rows.append((last_time, reduce(or_, [*body[:-1], head]), "unfreeze"))
    return {"starting_weights": head, "unfreeze": pd.DataFrame(rows, columns=[unit, "weights", "action"])}


def head_first(
    network: nn.Module | Net,
    epochs: int = 1,
    groups: Sequence[Select] | None = None,
    *,
    among: Select | None = None,
) -> Schedule:
    """Train the head alone, then the whole network.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
    epochs : int
        The number of epochs with the head alone.
    groups : sequence of Select, optional
    among : Select, optional
        As in `gradual_unfreezing`.

    Returns
    -------
    dict
        ``starting_weights`` and ``unfreeze``.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters.

    See Also
    --------
    gradual_unfreezing, chain_thaw

    References
    ----------
    A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR 2022,
    where it is called LP-FT.

    Examples
    --------
    >>> from mlr3torch_py import MLP
    >>> head_first(MLP(4, 3, neurons=(8, 8)), epochs=5)["unfreeze"]
       epoch                                  weights
    0      6  select_prefix('0') | select_prefix('3')
    """
    *body, head = _blocks(network, groups, among)
    start = 1 + check_whole("epochs", epochs, "epochs")
    rows = [(start, reduce(or_, body))] if body else []
    return {"starting_weights": head, "unfreeze": pd.DataFrame(rows, columns=["epoch", "weights"])}


def _blocks(network: nn.Module | Net, groups: Sequence[Select] | None, among: Select | None) -> list[Select]:
    if groups is not None:
        blocks = [as_select(f"`groups`: entry {i}", group) for i, group in enumerate(groups)]
    else:
        blocks = _blocks_of(network_of(network))
    if not blocks:
        raise ValueError("there are no blocks: `groups` is empty, or the network has no parameters")
    if among is None:
        return blocks
    as_select("`among`", among)
    blocks = [block & among for block in blocks if (block & among).expand(network)]
    if not blocks:
        raise ValueError(f"`among` is {among!r}, which selects nothing in any block; give one that does")
    return blocks


def _blocks_of(network: nn.Module) -> list[Select]:
    blocks = []
    for names, paths in _blocks_in(bare(network), ""):
        selects = [*([select_name(names)] if names else []), *([select_prefix(*paths)] if paths else [])]
        blocks.append(reduce(or_, selects))
    return blocks


def _blocks_in(module: nn.Module, prefix: str) -> list[tuple[list[str], list[str]]]:
    """List the blocks in a module, as names of parameters and paths of modules."""
    children = [(f"{prefix}{name}", bare(child)) for name, child in module.named_children() if _has_parameters(child)]
    blocks: list[tuple[list[str], list[str]]] = []
    for path, child in children:
        if isinstance(child, _NORMS) and blocks:
            blocks[-1][1].append(path)
        elif isinstance(child, _CONTAINERS) or (
            not isinstance(module, _CONTAINERS) and (_repeats(child) or (len(children) == 1 and _has_children(child)))
        ):
            blocks += _blocks_in(child, f"{path}.")
        else:
            blocks.append(([], [path]))
    own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    if own and not blocks:
        return [(own, [])]
    if own:
        blocks[0][0][:0] = own
    return blocks


def _repeats(module: nn.Module) -> bool:
    """Return whether a container in a module repeats a layer type."""
    for part in module.modules():
        if isinstance(part, _CONTAINERS):
            types = [type(child) for child in part.children() if _has_parameters(child)]
            if len(types) > len(set(types)):
                return True
    return False


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _times(start: int, every: int, unit: Unit, n: int) -> list[int]:
    """Return the `n` times after `start`."""
    if unit not in get_args(Unit):
        raise ValueError(f"`unit` is {unit!r}; give 'epoch' or 'batch'")
    what = "epochs" if unit == "epoch" else "batches"
    start, every = check_whole("start", start, what), check_whole("every", every, what)
    return [start + every * i for i in range(1, n + 1)]
