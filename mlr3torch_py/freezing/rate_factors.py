"""Factors on the learning rates of single parameters of one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from numbers import Real
from typing import Any, Final

import torch
from torch.optim import LBFGS, Optimizer

from mlr3torch_py.names import listed
from mlr3torch_py.schedule.rates import Factor

__all__ = ["RateFactors"]

# The key under which a part keeps its name and the group that it is of.
_PART: Final = "_part_by_mlr3torch_py"
_NOT_SHARED: Final = ("params", "param_names", "lr", _PART)
_NONE: Final = Factor()


class RateFactors:
    """Factors on the learning rates of single parameters of an optimizer.

    Each group of the optimizer is split into one group per factor, with the rate times the factor, for the duration of
    ``step()`` only. At all other times everybody sees the user's own groups and rates: schedulers of any kind,
    ``set_params(lr=...)``, and whatever saves and loads the optimizer. Its state belongs to the parameters and stays.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    factor_of : mapping of int to Factor
        The factors by the ``id`` of the parameter; 1 where it lacks one.
    record : callable
        Takes, after every step, the name of each group and its rate. The names are ``lr_0``, ``lr_1`` and so on for the
        user's groups, and ``lr_0_x0.1`` for the part of the first one that has the factor 0.1; a part that is in a
        warm-up of 50 batches since batch 13 has ``_warmup50_from13`` behind its name.
    name : str
        The prefix of the names of the groups.
    batch : callable, optional
        Returns the current training batch, which matters to factors with a warm-up.
    column : str
        The column of the table that the factors are from, for messages.

    Raises
    ------
    ValueError
        If the optimizer has no rates of its own to scale, as LBFGS, which has only one group; after a step, if it keeps
        something in its groups that depends on their rates, as it could not be kept for each factor.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> rates = {}
    >>> factors = RateFactors(optimizer, {id(layer.bias): Factor(0.1)}, rates.__setitem__)
    >>> layer(torch.ones(2)).backward()
    >>> before = layer.bias.item()
    >>> optimizer.step()
    >>> round(before - layer.bias.item(), 6), rates, len(optimizer.param_groups)
    (0.1, {'lr_0': 1.0, 'lr_0_x0.1': 0.1}, 1)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor_of: Mapping[int, Factor],
        record: Callable[[str, float], None],
        name: str = "lr",
        *,
        batch: Callable[[], int] = int,
        column: str = "lr_mult",
    ) -> None:
        if unfit := _unfit(optimizer, factor_of):
            raise self._refused(optimizer, column, unfit)
        self.optimizer = optimizer
        self.factor_of = factor_of
        self.record = record
        self.name = name
        self.batch = batch
        self.column = column
        self._own: list[dict[str, Any]] = []
        self._checked: Set[str] = frozenset()  # the parts after whose first step the entries of groups were compared
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @staticmethod
    def _refused(optimizer: Optimizer, column: str, unfit: str) -> ValueError:
        return ValueError(
            f"`unfreeze` has a column `{column}`, but {type(optimizer).__name__} {unfit}; leave the column out, or "
            "use another optimizer"
        )

    @property
    def is_in_use(self) -> bool:
        """Whether the optimizer is in the middle of its step, or was when the step raised."""
        return bool(self._own)

    def remove(self) -> None:
        """Restore the optimizer."""
        self._restore()
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._restore()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._split()
            return None
        # The closure is the forward and backward pass, in which callbacks may look at the groups.
        rest = {key: value for key, value in kwargs.items() if key != "closure"}
        return (optimizer, self._splitting_after(closure), *args[2:]), rest

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        rates = {part[_PART][0]: float(part["lr"]) for part in optimizer.param_groups if self._own}
        differing = _differing(optimizer.param_groups) if self._own and rates.keys() != self._checked else []
        self._checked = rates.keys()
        self._restore()
        if differing:
            kept = f"keeps {listed(map(repr, differing))} for each of its groups, which differs between parts of one"
            raise self._refused(optimizer, self.column, kept)
        for name, rate in rates.items():
            self.record(name, rate)

    def _splitting_after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def computed() -> Any:
            self._restore()
            loss = closure()
            self._split()
            return loss

        return computed

    def _split(self) -> None:
        if self._own:  # by the step of a parent class, within this one
            return
        groups = list(self.optimizer.param_groups)
        parts = [part for i, group in enumerate(groups) for part in self._parts(i, group)]
        self._own = groups
        self.optimizer.param_groups[:] = parts

    def _restore(self) -> None:
        if self._own:
            for part in self.optimizer.param_groups:
                # Some optimizers keep a count in their groups.
                _, group = part[_PART]
                group.update({key: value for key, value in part.items() if key not in _NOT_SHARED})
            self.optimizer.param_groups[:] = self._own
            self._own = []

    def _parts(self, i: int, group: dict[str, Any]) -> list[dict[str, Any]]:
        batch = self.batch()
        members: dict[tuple[str, float], list[Any]] = {}
        for tensor in group["params"]:
            factor = self.factor_of.get(id(tensor), _NONE)
            members.setdefault((_label(factor, batch), factor.at(batch)), []).append(tensor)
        return [
            {**group, "params": tensors, "lr": group["lr"] * factor, _PART: (f"{self.name}_{i}{label}", group)}
            for (label, factor), tensors in members.items()
        ]


def _differing(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the entries in which a step has left parts of one group different."""
    first: dict[int, Mapping[str, Any]] = {}
    found: dict[str, None] = {}
    for part in parts:
        other = first.setdefault(id(part[_PART][1]), part)
        if other is not part:
            keys = (key for key in part.keys() | other.keys() if key not in _NOT_SHARED)
            found |= dict.fromkeys(key for key in keys if not _are_equal(part.get(key), other.get(key)))
    return sorted(found)


def _are_equal(one: Any, other: Any) -> bool:
    """Compare entries of groups; those that cannot be compared pass."""
    with suppress(Exception):  # of whatever kind, such as an array, which has no single truth value
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        return one is other or bool(one == other) or bool(one != one and other != other)  # NaN
    return True


def _label(factor: Factor, batch: int) -> str:
    mult = "" if factor.mult == 1 else f"_x{factor.mult:g}"
    return mult + (f"_warmup{factor.warmup}_from{factor.first}" if factor.is_rising(batch) else "")


def _unfit(optimizer: Optimizer, factor_of: Mapping[int, Factor]) -> str | None:
    """Say why the rates of an optimizer cannot be scaled; None if they can."""
    if isinstance(optimizer, LBFGS):
        return "has one learning rate for all"
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return "does not call Optimizer.__init__, so its step() has no hooks"
    groups = optimizer.param_groups
    if not all(isinstance(group.get("lr"), (Real, torch.Tensor)) for group in groups):
        return "has no learning rate in its groups"
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner.param_groups is not groups:
            tensors = (tensor for group in inner.param_groups for tensor in group["params"])
            if any(id(tensor) in factor_of for tensor in tensors):
                return f"updates by an inner {type(inner).__name__}, which has groups of its own"
    return None
