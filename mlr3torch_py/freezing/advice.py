"""What in a network or a schedule is probably a mistake: plans show it, and training warns of it when it begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from mlr3torch_py.names import listed
from mlr3torch_py.network.blocks import Block
from mlr3torch_py.network.parameters import frozen_before_us
from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.unwrap import named_modules, named_parameters
from mlr3torch_py.patterns import cover
from mlr3torch_py.schedule.plan import Held, Plan
from mlr3torch_py.schedule.rates import scaled_early
from mlr3torch_py.schedule.value import Schedule
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.nodes import Glob
from mlr3torch_py.warn import warn

__all__ = [
    "advise_on_epochs",
    "doubts_about",
    "doubts_about_frozen",
    "doubts_about_network",
    "frozen_again",
    "heads_left_out",
    "in_no_optimizer",
    "missing_from",
    "partly_selected",
    "shared_by",
]

_AND_SO_ON = 6

logger: logging.Logger = logging.getLogger("mlr3torch_py")


def heads_left_out(
    network: nn.Module, schedules: Sequence[Schedule | None], plans: Sequence[Plan], blocks: Sequence[Block]
) -> Iterator[str]:
    """Yield that the last block never trains, for each schedule with groups that leave it out."""
    will_train = frozenset[str]().union(*(plan.ever_trainable for plan in plans))
    if not blocks or not will_train.isdisjoint(blocks[-1].names):
        return
    head = [name for name in named_parameters(network) if name in blocks[-1].names]
    for schedule in schedules:
        if schedule is not None and schedule.groups is not None:
            are, train = ("are", "train") if len(head) > 1 else ("is", "trains")
            yield f"`groups`: {listed(head)} of the last block {are} in none of them, and never {train}"


def doubts_about_network(network: nn.Module, plans: Sequence[Plan]) -> Iterator[str]:
    """Yield which parameters schedules will not treat as one would expect.

    Parameters
    ----------
    network : torch.nn.Module
        As it is before anything is frozen.
    plans : sequence of Plan
        Those of all freezing callbacks.

    Yields
    ------
    str
        For parameters that required no gradient before any callback acted and will be trained, and for embeddings whose
        forward pass writes a weight that is frozen.
    """
    yield from doubts_about_frozen(network, plans)
    will_be_held = frozenset[str]().union(*(plan.ever_held for plan in plans))
    for path, module in named_modules(network):
        name = f"{path}.weight" if path else "weight"
        if getattr(module, "max_norm", None) is not None and name in will_be_held:
            yield (
                f"{name} will be frozen, but the {type(module).__name__} has max_norm={module.max_norm!r}, by "
                "which every forward pass rescales its weight; set max_norm to None to keep it as it is"
            )


def doubts_about_frozen(network: nn.Module, plans: Iterable[Plan], known: Held = frozenset()) -> Iterator[str]:
    """Yield which parameters required no gradient before any callback acted and will be trained.

    Parameters
    ----------
    network : torch.nn.Module
        As it is before anything is frozen.
    plans : iterable of Plan
        Those of all freezing callbacks.
    known : set of str
        Parameters of which that was known before.

    Yields
    ------
    str
    """
    will_train = frozenset[str]().union(*(plan.ever_trainable for plan in plans))
    before_us = (frozen_before_us(network) & will_train) - known
    fixed = [name for name, one in named_parameters(network).items() if name in before_us and not one.requires_grad]
    if fixed:
        yield (
            f"parameters that required no gradient before training will be trained by the schedule: "
            f"{_by_module(network, fixed)}; if that is not meant, select among the others by `& select_trainable()`, "
            "and if it is, set their requires_grad to True before"
        )


def shared_by(tensors: Mapping[str, torch.Tensor], place: str, theirs: Mapping[str, torch.Tensor], there: str) -> str:
    """Describe which tensors two networks share whose callbacks might not agree on them; empty if none is shared.

    Parameters
    ----------
    tensors, theirs : mapping of str to torch.Tensor
        The parameters of both.
    place, there : str
        What they are called.

    Returns
    -------
    str
    """
    known = set(map(id, theirs.values()))
    shared = [name for name, tensor in tensors.items() if id(tensor) in known]
    if not shared:
        return ""
    return (
        f"`module`: {listed(map(repr, shared), most=3)} of {place} are also in {there}, and callbacks govern both; let "
        "callbacks govern only one of the two"
    )


def missing_from(network: nn.Module, names: Held, optimizers: Iterable[Optimizer]) -> list[str]:
    """List the parameters that no optimizer holds.

    Parameters
    ----------
    network : torch.nn.Module
    names : set of str
        The parameters to look for.
    optimizers : iterable of torch.optim.Optimizer

    Returns
    -------
    list of str
        Empty if no optimizer of torch holds anything.
    """
    groups = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(tensor) for group in groups for tensor in group}
    tensors = named_parameters(network)
    return [name for name, tensor in tensors.items() if name in names and id(tensor) not in held] if held else []


def in_no_optimizer(network: nn.Module, names: Held, optimizers: Iterable[Optimizer]) -> str | None:
    """Describe which parameters no optimizer holds; None if none is missing.

    Parameters
    ----------
    network : torch.nn.Module
    names : set of str
    optimizers : iterable of torch.optim.Optimizer

    Returns
    -------
    str or None
    """
    missing = missing_from(network, names, optimizers)
    if not missing:
        return None
    return (
        "parameters will not be trained although the schedule makes them trainable, since no optimizer holds them: "
        f"{_by_module(network, missing)}; give the optimizer all parameters, without a filter on requires_grad, or add "
        "them by optimizer.add_param_group"
    )


def frozen_again(network: nn.Module, names: Sequence[str]) -> str:
    """Describe which parameters something else has frozen, although no callback holds them.

    Parameters
    ----------
    network : torch.nn.Module
    names : sequence of str

    Returns
    -------
    str
    """
    return (
        "parameters that the schedule makes trainable are not trained, since something else has frozen them again, "
        f"such as the network's own train(): {_by_module(network, names)}; switch that off, often by an argument of "
        "the network, or leave them out of the schedule"
    )


def doubts_about(plan: Plan, network: nn.Module, given: Select | Schedule) -> Iterator[str]:
    """Yield what is probably a mistake in a plan: rows without an effect or with one too early, and empty selectors.

    Parameters
    ----------
    plan : Plan
    network : torch.nn.Module
    given : Select or Schedule
        What the user has selected to train from the start, or the schedule that says it.

    Yields
    ------
    str
    """
    if isinstance(given, Schedule) and given.may_have_rows and not plan.steps:
        yield (
            f"`schedule`: {given!r} freezes nothing, since the network has one block, which trains from the start; "
            "give `groups`, or look at network_blocks(network)"
        )
    names = dict.fromkeys(plan.names).keys()
    sharing, empty = sharing_names(named_parameters(network)), [step for step in plan.steps if not step.names]
    braces = _on_braces(part for step in empty for part in step.row.weights.unmatched(names, network))
    for what, steps in {
        "{} never takes effect, since epochs and batches count from 1": [s for s in plan.steps if s.time == 0],
        f"{{}} matches no weight of the network{braces}": empty,
        "{} changes nothing: its weights are already trainable (or already frozen)": plan.no_ops(sharing),
    }.items():
        if steps:
            yield f"`unfreeze`: {what.format(listed((step.row for step in steps), most=3))}"
    for step, slowed in scaled_early(plan):
        early = _by_module(network, [name for name in plan.names if name in slowed])
        yield (
            f"`unfreeze`: {step.row} has the lr_mult {step.row.lr_mult:g}, which from the first step on also holds for "
            f"{early}, trained before; leave that out of its `weights`, or write 'row' in a column `lr_mult_from`"
        )
    selections = [] if isinstance(given, Schedule) else [("`starting_weights`", given, plan.starting)]
    selections += [(f"`unfreeze`: {step.row}", step.row.weights, step.names) for step in plan.steps if step.names]
    for place, select, selected in selections:
        for part in select.unmatched(names, network):
            yield f"{place}: {part!r} matches no weight of the network{_on_braces([part])}"
        yield from (f"{place}: {sentence}" for sentence in partly_selected(sharing, selected))


def advise_on_epochs(plan: Plan, now: int, last_epoch: int, asked_by: str, *, trains_alone: bool) -> None:
    """Say which rows come after the last epoch of a call of ``fit``, and which one would leave nothing to train.

    Parameters
    ----------
    plan : Plan
    now, last_epoch : int
        The epoch before the call, and its last one.
    asked_by : str
        What has set the last one.
    trains_alone : bool
        Whether the net learns nothing else than the parameters of the plan.

    Warns
    -----
    UserWarning
        If a row will certainly leave nothing to train. The log has the rest.
    """
    too_late = [step for step in plan.steps if step.row.unit == "epoch" and last_epoch < step.time < math.inf]
    for step in too_late:
        logger.info("`unfreeze`: %s is beyond epoch %d, the last one by `%s`", step.row, last_epoch, asked_by)
    for step in plan.last_steps():
        if step.row.unit == "epoch" and now < step.time <= last_epoch and trains_alone:
            warn(f"`unfreeze`: {step.row} leaves nothing trainable, so that `fit` will fail there; freeze less")
        elif step not in too_late:
            what = "leaves nothing trainable, so that `fit` fails there unless other modules train"
            logger.info("`unfreeze`: %s %s", step.row, what)


def partly_selected(sharing: Iterable[Collection[str]], selected: Held) -> Iterator[str]:
    """Yield a sentence for each group of names that share weights if only some of them are selected.

    Parameters
    ----------
    sharing : iterable of collections of str
        The groups of names that share weights.
    selected : set of str

    Yields
    ------
    str
    """
    for names in sharing:
        ours, others = ([name for name in names if (name in selected) is flag] for flag in (True, False))
        if ours and others:
            yield (
                f"{listed(map(repr, ours))} and {listed(map(repr, others))} share weights, which are trainable "
                "as long as one of these names is; select all tied names, or none"
            )


def _on_braces(parts: Iterable[Select]) -> str:
    """Say who reads braces, if a shell pattern has some."""
    are_meant = any(isinstance(part, Glob) and set("{}") <= set(part.pattern) for part in parts)
    return "; of braces only select_prefix makes alternatives" if are_meant else ""


def _by_module(network: nn.Module, names: Sequence[str]) -> str:
    """Shorten a list of names: a module all of whose parameters are in it stands for them."""
    return listed(cover(names, named_parameters(network)), most=_AND_SO_ON)
