"""Ready-made schedules: `starting_weights` and `unfreeze` of well-known ways of fine-tuning."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any, NoReturn, get_args

import pandas as pd
from torch import nn

from mlr3torch_py.arguments import check_choice, check_list, check_network, check_number, check_whole, shown
from mlr3torch_py.network.evaluation import NORMALISATION
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import NetOfUser
from mlr3torch_py.schedule.table import Unit
from mlr3torch_py.select.algebra import Select, check_select
from mlr3torch_py.select.functions import select_name, select_prefix

__all__ = ["Schedule", "chain_thaw", "gradual_unfreezing", "head_first"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (*NORMALISATION, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Schedule(dict[str, Any]):
    """The arguments of `CallbackSetUnfreeze`, to pass on by ``**``."""

    def __init__(self, starting_weights: Select, unfreeze: pd.DataFrame) -> None:
        super().__init__(starting_weights=starting_weights, unfreeze=unfreeze)

    def set_params(self, **params: Any) -> NoReturn:
        """Explain the mistake when the schedule is passed where skorch expects a callback.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError("`callbacks` has a schedule in place of a callback; write t_clbk('unfreeze', **schedule)")


def gradual_unfreezing(
    network: nn.Module | NetOfUser,
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
    if (factors := _factors(lr_decay, len(body))) is not None:
        table["lr_mult"] = factors
    return Schedule(head, table)


def chain_thaw(
    network: nn.Module | NetOfUser,
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
    return Schedule(head, pd.DataFrame(rows, columns=[unit, "weights", "action"]))


def head_first(
    network: nn.Module | NetOfUser,
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
    start = 1 + check_whole("epochs", epochs, "epochs", most=sys.maxsize - 1)
    rows = [(start, reduce(or_, body))] if body else []
    return Schedule(head, pd.DataFrame(rows, columns=["epoch", "weights"]))


def _blocks(network: nn.Module | NetOfUser, groups: Sequence[Select] | None, among: Select | None) -> list[Select]:
    if groups is not None:
        blocks = _given_blocks(groups)
    else:
        blocks = _blocks_of(check_network("network", network))
        if not blocks:
            raise ValueError("`network` has no parameters, and so no blocks; give one that has some")
    if among is None:
        return blocks
    check_select("among", among)
    module = check_network("network", network)
    try:
        blocks = [block & among for block in blocks if (block & among).expand(module)]
    except ValueError as error:
        raise ValueError(f"`among`, or `groups`, does not fit the network: {error}") from error
    if not blocks:
        raise ValueError(f"`among` is {among!r}, which selects nothing in any block; give one that does")
    return blocks


def _given_blocks(groups: object) -> list[Select]:
    given = check_list("groups", groups, "a list of selectors, from the input to the head")
    blocks = [check_select(f"`groups`: entry {i}", group) for i, group in enumerate(given)]
    if not blocks:
        raise ValueError("`groups` is empty; give one selector for each block, from the input to the head")
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
    unit = check_choice("unit", unit, get_args(Unit))
    what = "epochs" if unit == "epoch" else "batches"
    start, every = check_whole("start", start, what), check_whole("every", every, what)
    if start + every * n > sys.maxsize:
        raise ValueError(f"`every` is {every}, with which the last block comes after {what} 2**63; give a smaller one")
    return [start + every * i for i in range(1, n + 1)]


def _factors(lr_decay: float, n: int) -> list[float] | None:
    """Return the factors on the learning rates of the `n` blocks below the head; None if all are 1."""
    decay = check_number("lr_decay", lr_decay, "a number above 0, such as 2.6", above=0)
    if decay == 1:
        return None
    if not math.log(sys.float_info.min) < -n * math.log(decay) < math.log(sys.float_info.max):
        raise ValueError(f"`lr_decay` is {shown(lr_decay)}, too far from 1 for {n} blocks; give a number such as 2.6")
    return [decay**-i for i in range(1, n + 1)]
