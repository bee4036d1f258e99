"""Functions that make schedules: `starting_weights` and `unfreeze` of well-known ways of fine-tuning."""

from __future__ import annotations

from typing import overload

from torch import nn

from mlr3torch_py.frames import short_traceback
from mlr3torch_py.network.tree import Level
from mlr3torch_py.protocols import NetOfUser
from mlr3torch_py.schedule.blocks import Head
from mlr3torch_py.schedule.ready_made import ChainThaw, GradualUnfreezing, HeadFirst
from mlr3torch_py.schedule.table import Unit
from mlr3torch_py.schedule.value import ANY_NETWORK, AnyNetwork, Groups, Schedule, UnfreezeArguments
from mlr3torch_py.select.base import Select

__all__ = ["chain_thaw", "gradual_unfreezing", "head_first"]


@overload
def gradual_unfreezing(
    *,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    lr_decay: float = 1.0,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    warmup: int = 0,
) -> Schedule: ...
@overload
def gradual_unfreezing(
    network: nn.Module | NetOfUser,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    lr_decay: float = 1.0,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    warmup: int = 0,
) -> UnfreezeArguments: ...
@short_traceback
def gradual_unfreezing(
    network: nn.Module | NetOfUser | AnyNetwork = ANY_NETWORK,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    lr_decay: float = 1.0,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    warmup: int = 0,
) -> Schedule | UnfreezeArguments:
    """Unfreeze block after block, from the head to the input.

    The head, which is the last block, is trainable from the start. The block before it joins at ``start + every``, the
    next one at ``start + 2 * every``, and so on, until all are trainable.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet, optional
        A network, or an initialized net. Without one, the schedule is a value for any network, to pass on as
        ``t_clbk("unfreeze", schedule=...)``. The blocks are those of `network_blocks`.
    every : int
        The number of epochs or batches between two blocks.
    start : int
        The epoch or batch to count from, at least 1.
    unit : {"epoch", "batch"}
        The unit of `every` and `start`.
    groups : sequence of Select, or pandas.DataFrame, optional
        The blocks, from the input to the head, in place of those of the module tree. A table of `network_blocks` is
        taken by its column `holds`.
    lr_decay : float
        The divisor of a block's learning rate for each block between it and the output, such as 2.6.
    among : Select, optional
        What may be trained at all, such as `select_trainable`; blocks without any of it are left out.
    head : str, list of str, or Select, optional
    n_groups : int, optional
    level : {"layer", "stage"}
        As in `network_blocks`.
    warmup : int
        The number of batches in which the learning rate of a block rises from zero to its own, once the block is
        unfrozen.

    Returns
    -------
    dict or Schedule
        ``starting_weights`` and ``unfreeze`` for the network; without one, a value that prints as this call.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters, or not those of the head.

    See Also
    --------
    chain_thaw, head_first, network_blocks

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

    Without a network, for any net:

    >>> t_clbk("unfreeze", schedule=gradual_unfreezing(every=2, lr_decay=2.6)).callback
    CallbackSetUnfreeze(schedule=gradual_unfreezing(every=2, lr_decay=2.6))
    """
    schedule = GradualUnfreezing(every, start, unit, groups, lr_decay, among, head, n_groups, level, warmup)
    return schedule.for_network(network, first="every")


@overload
def chain_thaw(
    *,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
) -> Schedule: ...
@overload
def chain_thaw(
    network: nn.Module | NetOfUser,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
) -> UnfreezeArguments: ...
@short_traceback
def chain_thaw(
    network: nn.Module | NetOfUser | AnyNetwork = ANY_NETWORK,
    every: int = 1,
    start: int = 1,
    unit: Unit = "epoch",
    groups: Groups = None,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
) -> Schedule | UnfreezeArguments:
    """Train the head, each other block alone, then all.

    The other blocks follow each other from the input to the head.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet, optional
    every : int
        How many epochs or batches each block trains alone.
    start : int
        For how many epochs or batches the head trains alone.
    unit : {"epoch", "batch"}
        What `every` and `start` count.
    groups : sequence of Select, optional
        As in `gradual_unfreezing`; groups must not share weights.
    among : Select, optional
    head : str, list of str, or Select, optional
    n_groups : int, optional
    level : {"layer", "stage"}
        As in `gradual_unfreezing`.

    Returns
    -------
    dict or Schedule
        ``starting_weights`` and ``unfreeze`` for the network; without one, a value that prints as this call.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters, or not those of the head.

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
    schedule = ChainThaw(every, start, unit, groups, among, head, n_groups, level)
    return schedule.for_network(network, first="every")


@overload
def head_first(
    *,
    epochs: int = 1,
    groups: Groups = None,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    lr_mult: float = 1.0,
    warmup: int = 0,
) -> Schedule: ...
@overload
def head_first(
    network: nn.Module | NetOfUser,
    epochs: int = 1,
    groups: Groups = None,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    lr_mult: float = 1.0,
    warmup: int = 0,
) -> UnfreezeArguments: ...
@short_traceback
def head_first(
    network: nn.Module | NetOfUser | AnyNetwork = ANY_NETWORK,
    epochs: int = 1,
    groups: Groups = None,
    *,
    among: Select | None = None,
    head: Head = None,
    n_groups: int | None = None,
    level: Level = "layer",
    lr_mult: float = 1.0,
    warmup: int = 0,
) -> Schedule | UnfreezeArguments:
    """Train the head alone, then the whole network.

    Parameters
    ----------
    network : torch.nn.Module or skorch.NeuralNet, optional
    epochs : int
        The number of epochs with the head alone.
    groups : sequence of Select, optional
    among : Select, optional
    head : str, list of str, or Select, optional
    n_groups : int, optional
    level : {"layer", "stage"}
        As in `gradual_unfreezing`.
    lr_mult : float
        A factor on the learning rate of all blocks, the head as well, once the whole network is trained.
    warmup : int
        The number of batches in which the learning rate of the blocks before the head then rises from zero.

    Returns
    -------
    dict or Schedule
        ``starting_weights`` and ``unfreeze`` for the network; without one, a value that prints as this call.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the network has no parameters, or not those of the head.

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
       epoch                   weights
    0      6  select_prefix('0', '3')

    The whole network with a tenth of the learning rate:

    >>> head_first(MLP(4, 3, neurons=(8, 8)), epochs=5, lr_mult=0.1)["unfreeze"]
       epoch                        weights  lr_mult lr_mult_from
    0      6  select_prefix('0', '3', '6')      0.1          row
    """
    schedule = HeadFirst(epochs, groups, among, head, n_groups, level, lr_mult, warmup)
    return schedule.for_network(network, first="epochs")
