"""Ready-made schedules: `starting_weights` and `unfreeze` for well-known ways of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from numbers import Real
from operator import or_
from typing import Any, TypedDict, get_args

import pandas as pd
from torch import nn

from mlr3torch_py.network.unwrap import bare, network_of
from mlr3torch_py.schedule.table import Unit, as_select
from mlr3torch_py.select.functions import Select, select_name, select_prefix

__all__ = ["Schedule", "chain_thaw", "gradual_unfreezing", "head_first"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Schedule(TypedDict):
    """The arguments of `CallbackSetUnfreeze`, to be passed on by ``**``."""

    starting_weights: Select
    unfreeze: pd.DataFrame


def gradual_unfreezing(
    network: Any,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Sequence[Select] | None = None,
    lr_decay: float = 1.0,
) -> Schedule:
    """Unfreeze block after block, from the head to the input.

    The head, which is the last block, trains from the start. The block below it joins at ``start + every``, the next
    one at ``start + 2 * every``, and so on, until all train.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
        A network, or an initialized net. Its blocks are the direct children that hold parameters. Sequential
        containers and lists of modules are opened, and so is a child that holds a list of repeated layers; the
        elements of such a list are blocks. A normalisation layer belongs to the block before it, and parameters of an
        opened module belong to its first block.
    every : int
        How many epochs, or batches, lie between two blocks.
    start : int
        Where counting begins, from 1.
    unit : {"epoch", "batch"}
        What `every` and `start` count.
    groups : sequence of Select, optional
        The blocks from the input to the head, where those of the module tree do not fit.
    lr_decay : float
        By how much the learning rate of a block is divided for each block that lies above it, such as 2.6.

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
    *body, head = _blocks(network, groups)
    times = [_time(start, every, i, unit) for i in range(1, len(body) + 1)]
    table = pd.DataFrame({unit: times, "weights": body[::-1]})
    if isinstance(lr_decay, bool) or not isinstance(lr_decay, Real):
        raise TypeError(f"`lr_decay` is {lr_decay!r}; give a number, such as 2.6")
    if not 0 < lr_decay < math.inf:
        raise ValueError(f"`lr_decay` is {lr_decay!r}; give a number above 0, such as 2.6")
    if lr_decay != 1:
        table["lr_mult"] = [lr_decay**-i for i in range(1, len(body) + 1)]
    return {"starting_weights": head, "unfreeze": table}


def chain_thaw(
    network: Any, every: int = 1, start: int = 1, unit: Unit = "epoch", groups: Sequence[Select] | None = None
) -> Schedule:
    """Train the head, then every other block alone from the input on, then all together.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
    every, start : int
    unit : {"epoch", "batch"}
    groups : sequence of Select, optional
        As in `gradual_unfreezing`; groups must not share weights.

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
    *body, head = _blocks(network, groups)
    rows: list[tuple[int, Select, str]] = []
    alone = head
    for i, block in enumerate(body, start=1):
        time = _time(start, every, i, unit)
        rows += [(time, block, "unfreeze"), (time, alone, "freeze")]
        alone = block
    if body:
        others = [block for block in (*body, head) if block is not alone]
        rows.append((_time(start, every, len(body) + 1, unit), reduce(or_, others), "unfreeze"))
    return {"starting_weights": head, "unfreeze": pd.DataFrame(rows, columns=[unit, "weights", "action"])}


def head_first(network: Any, epochs: int = 1, groups: Sequence[Select] | None = None) -> Schedule:
    """Train the head alone for some epochs, then all.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet
    epochs : int
        For how many epochs the head trains alone.
    groups : sequence of Select, optional
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
    *body, head = _blocks(network, groups)
    times = [_time(1, epochs, 1, "epoch")] if body else []
    return {
        "starting_weights": head,
        "unfreeze": pd.DataFrame({"epoch": times, "weights": [reduce(or_, body)] if body else []}),
    }


def _blocks(network: Any, groups: Sequence[Select] | None) -> list[Select]:
    if groups is not None:
        blocks = [as_select(f"`groups`: entry {i}", group) for i, group in enumerate(groups)]
    else:
        blocks = _blocks_of(network_of(network))
    if not blocks:
        raise ValueError("there are no blocks: `groups` is empty, or the network has no parameters")
    return blocks


def _blocks_of(network: nn.Module) -> list[Select]:
    blocks = []
    for names, paths in _blocks_in(bare(network), ""):
        selects = [*([select_name(names)] if names else []), *([select_prefix(*paths)] if paths else [])]
        blocks.append(reduce(or_, selects))
    return blocks


def _blocks_in(module: nn.Module, prefix: str) -> list[tuple[list[str], list[str]]]:
    """Return the blocks in a module: the names of parameters, and the paths of modules, that each of them holds."""
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
    """Say whether a module holds, at any depth, a container with several layers of one type."""
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


def _time(start: int, every: int, i: int, unit: Unit) -> int:
    for argument, value in (("start", start), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{argument}` is {value!r}; give a whole number")
        if value < 1:
            raise ValueError(f"`{argument}` is {value!r}; it must be at least 1")
    if unit not in get_args(Unit):
        raise ValueError(f"`unit` is {unit!r}; it must be 'epoch' or 'batch'")
    return start + every * i
