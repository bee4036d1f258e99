"""What schedulers set in the groups of an optimizer: keep it, set it, and carry it over to another optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import torch

from mlr3torch_py.protocols import Net

__all__ = ["copied", "kept_rates", "move_to", "rates_of", "reset_rates", "set_rates"]

_RATES: Final = ("lr", "initial_lr", "momentum", "betas")


def rates_of(net: Net, key: str = "lr") -> tuple[float, ...]:
    """Return the learning rate of each group."""
    return tuple(float(group[key]) for group in net.optimizer_.param_groups)


def kept_rates(optimizer: Any, *keys: str) -> list[dict[str, Any]]:
    """Return what schedulers set in the groups of an optimizer, by default all of it."""
    return [{key: copied(group[key]) for key in keys or _RATES if key in group} for group in optimizer.param_groups]


def set_rates(optimizer: Any, rates: Sequence[Mapping[str, Any]]) -> None:
    """Set what `kept_rates` returned."""
    for group, values in zip(optimizer.param_groups, rates, strict=True):
        for key, value in values.items():
            if isinstance(group.get(key), torch.Tensor):
                group[key].fill_(value)  # some optimizers keep the tensor itself
            else:
                group[key] = value


def reset_rates(optimizer: Any) -> None:
    """Set the rates from which schedules began, and let the next one begin from them."""
    set_rates(optimizer, [{"lr": group.pop("initial_lr", group["lr"])} for group in optimizer.param_groups])


def copied(value: Any) -> Any:
    """Return a rate that stays as it is: schedulers set tensors in place."""
    return value.clone() if isinstance(value, torch.Tensor) else value


def move_to(scheduler: Any, optimizer: Any, rates: Sequence[float], name: str) -> None:
    """Let a scheduler continue with another optimizer.

    Parameters
    ----------
    scheduler : torch.optim.lr_scheduler.LRScheduler
    optimizer : torch.optim.Optimizer
    rates : sequence of float
        Those of the groups before the schedule; empty if they are not known.
    name : str
        What the message calls the scheduler.

    Raises
    ------
    ValueError
        If the optimizers have different numbers of groups.
    """
    before = scheduler.optimizer
    if len(before.param_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"the net has replaced its optimizer, which had {len(before.param_groups)} param groups, by one with "
            f"{len(optimizer.param_groups)}, so {name} does not fit it; give it as many groups"
        )
    if getattr(optimizer, "optimizer", optimizer) is not getattr(before, "optimizer", before):  # else wrapped again
        for old, new, rate in zip_longest(before.param_groups, optimizer.param_groups, rates):
            _continue_group(old, new, rate)
    _point_at(scheduler, optimizer)


def _continue_group(old: dict[str, Any], new: dict[str, Any], rate: float | None) -> None:
    """Bring a group of a new optimizer to the same point of a schedule.

    Parameters
    ----------
    old, new : dict
        The groups of the two optimizers.
    rate : float, optional
        The rate of the old one before the schedule.
    """
    rate = old.get("initial_lr", old["lr"]) if rate is None else rate
    is_absolute = old.get("initial_lr", rate) != rate  # the schedule itself says where the rate begins
    factor = 1 if is_absolute or not rate else new["lr"] / rate
    new.update({key: value for key, value in old.items() if key not in new})
    new.update({key: old[key] * factor for key in ("lr", "initial_lr") if key in old})


def _point_at(scheduler: Any, optimizer: Any) -> None:
    """Let a scheduler, and those that it consists of, set the rates of another optimizer."""
    scheduler.optimizer = optimizer
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if getattr(scheduler, "_step_count", None) == 1:
        scheduler._step_count = 2  # at its first step torch would warn of an optimizer that it did not see before
    for part in getattr(scheduler, "_schedulers", ()):
        _point_at(part, optimizer)
