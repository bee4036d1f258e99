"""Factors on the learning rates of single parameters of one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any, Final

import torch
from torch.optim import LBFGS, Optimizer

from mlr3torch_py.names import listed
from mlr3torch_py.schedule.rates import Factor

__all__ = ["RateFactors", "sample", "unscalable", "with_closure"]

# How many values of a tensor are compared to see whether it has been updated.
_SAMPLE: Final = 256

_NOT_SHARED: Final = ("params", "param_names", "lr")
_NONE: Final = Factor()

_UNEQUAL: Final = "keeps {} for each of its groups, which differs between parts of one"
_PASSED_OVER: Final = (
    "passes over some of its groups, of which it has one for each factor while it takes a step: it keeps rates or "
    "parameters beside them"
)
_UNREAD: Final = "updates weights without reading the learning rate of their group in that step"


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
    proven : dict of int to float, optional
        By the ``id`` of the parameter the factor that a step has used last. Steps add to it.

    Raises
    ------
    ValueError
        If the optimizer has no rates of its own to scale, as LBFGS, which has only one group; after a step, if it has
        not read the rates, or keeps something in its groups that depends on them, as it could not be kept for each
        factor.

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
        proven: dict[int, float] | None = None,
    ) -> None:
        if why := unscalable(optimizer, factor_of, column):
            raise ValueError(why)
        self.optimizer = optimizer
        self.factor_of = factor_of
        self.record = record
        self.name = name
        self.batch = batch
        self.column = column
        self.proven = {} if proven is None else proven
        self._own: list[dict[str, Any]] = []
        self._parts: list[_Part] = []
        self._asked: dict[str, set[object]] = {}  # what the step has asked of each part
        self._doubtful: dict[str, _Witness] = {}
        self._unequal: set[str] = set()  # the entries in which it has left parts of one group different
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def is_in_use(self) -> bool:
        """Whether the optimizer is in the middle of its step, or was when the step raised."""
        return bool(self._own)

    def in_use(self) -> Iterator[str]:
        """Yield the names under which the rates of trainable parameters are recorded."""
        for i, group in enumerate(self.optimizer.param_groups):
            for part in self._parts_of(i, group):
                if any(tensor.requires_grad for tensor in part.tensors):
                    yield part.name

    def remove(self) -> None:
        """Restore the optimizer."""
        self._restore()
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not self._own:  # otherwise a parent class takes its step within this one
            self._asked, self._doubtful, self._unequal = {}, {}, set()
        self._restore()
        # The closure is the forward and backward pass, in which callbacks may look at the groups.
        replaced = with_closure(args, kwargs, self._splitting_after)
        if replaced is None:
            self._split()
        return replaced

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        parts = self._parts
        self._restore()
        if fault := self._fault(parts):
            raise ValueError(_refusal(optimizer, self.column, fault))
        for part in parts:
            self.record(part.name, float(part.group["lr"]))

    def _fault(self, parts: list[_Part]) -> str | None:
        """Say how a step has missed the rates of parts; None if it has used them."""
        reached = {id(part.whole) for part in parts if self._asked[part.name]}
        for part in parts:
            asked, doubt = self._asked[part.name], self._doubtful.get(part.name)
            if doubt and "lr" in asked:
                # Some read the rate only for what they have not updated before.
                first = [tensor for tensor in doubt.tensors if id(tensor) not in self.proven]
                self.proven.update(dict.fromkeys(map(id, first or doubt.tensors), part.factor))
            elif self._doubtful and not asked and id(part.whole) in reached:
                return _PASSED_OVER
            elif doubt and part.factor != 1 and doubt.has_moved:
                return _UNREAD
        return _UNEQUAL.format(listed(map(repr, sorted(self._unequal)))) if self._unequal else None

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
        parts = [part for i, group in enumerate(groups) for part in self._parts_of(i, group)]
        for part in parts:
            if doubtful := self._without_proof(part):
                self._doubtful.setdefault(part.name, _Witness(doubtful))
        self._own, self._parts = groups, parts
        self.optimizer.param_groups[:] = [part.group for part in parts]

    def _restore(self) -> None:
        if self._own:
            for part in self._parts:
                self._asked.setdefault(part.name, set()).update(part.asked)
            self._unequal |= _differing(self._parts)
            for part in self._parts:
                # Some optimizers keep a count in their groups.
                part.whole.update({key: value for key, value in part.group.items() if key not in _NOT_SHARED})
            self.optimizer.param_groups[:] = self._own
            self._own, self._parts = [], []

    def _parts_of(self, i: int, group: dict[str, Any]) -> list[_Part]:
        batch = self.batch()
        members: dict[tuple[str, float], list[int]] = {}
        for at, tensor in enumerate(group["params"]):
            factor = self.factor_of.get(id(tensor), _NONE)
            members.setdefault((_label(factor, batch), factor.at(batch)), []).append(at)
        return [_Part(f"{self.name}_{i}{label}", group, factor, places) for (label, factor), places in members.items()]

    def _without_proof(self, part: _Part) -> list[torch.Tensor]:
        """List the tensors that are about to be updated by a factor that no step has used yet."""
        without = [tensor for tensor in part.tensors if self.proven.get(id(tensor)) != part.factor]
        for tensor in without:
            if tensor in self.optimizer.state:  # of steps that were taken before the factors were there
                self.proven.setdefault(id(tensor), part.factor)
        return [one for one in without if one.grad is not None and self.proven.get(id(one)) != part.factor]


class _Part:
    """The parameters of a group that have the same factor, as a group of their own for one step.

    Attributes
    ----------
    name : str
        As it is recorded.
    tensors : list of torch.Tensor
    whole : dict
        The group that it is a part of.
    factor : float
    group : dict
        What the optimizer sees.
    asked : set of str
        The keys that the step has asked for.
    """

    def __init__(self, name: str, whole: dict[str, Any], factor: float, places: list[int]) -> None:
        own = {key: [whole[key][at] for at in places] for key in ("params", "param_names") if key in whole}
        shown = whole | own | {"lr": whole["lr"] * factor}
        self.name = name
        self.tensors: list[torch.Tensor] = own["params"]
        self.whole = whole
        self.factor = factor
        self.asked: set[object] = {"lr"}
        self.group: dict[str, Any] = shown
        if not torch.compiler.is_compiling():  # which takes plain groups only
            self.group = _Observed(shown)
            self.asked = self.group.asked = set()


class _Observed(dict[str, Any]):
    """A group that takes note of what is asked of it."""

    asked: set[object]

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # without it, ``dict(group)`` and ``f(**group)`` ask for nothing
        return super().__iter__()

    def items(self) -> Any:
        self.asked.update(self)
        return super().items()

    def values(self) -> Any:
        self.asked.update(self)
        return super().values()

    def copy(self) -> dict[str, Any]:
        return dict(self)


class _Witness:
    """Tensors that are updated together, of which the smallest tells whether they have been."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self._smallest = sorted(tensors, key=lambda tensor: tensor.numel())[0]
        self._before = sample(self._smallest)

    @property
    def has_moved(self) -> bool:
        """Whether they have been updated since."""
        return not torch.equal(sample(self._smallest), self._before)


def _differing(parts: Iterable[_Part]) -> set[str]:
    """Return the entries in which parts of one group differ."""
    first: dict[int, dict[str, Any]] = {}
    found = set[str]()
    for part in parts:
        one, other = part.group, first.setdefault(id(part.whole), part.group)
        if one is not other:
            keys = (key for key in one.keys() | other.keys() if key not in _NOT_SHARED)
            found.update(key for key in keys if not _are_equal(one.get(key), other.get(key)))
    return found


def _are_equal(one: Any, other: Any) -> bool:
    """Compare entries of groups; those that cannot be compared pass."""
    if one is other:
        return True
    with suppress(Exception):  # of whatever kind, such as an array, which has no single truth value
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            return torch.equal(one, other)
        return bool(one == other) or bool(one != one and other != other)  # NaN
    return True


def _label(factor: Factor, batch: int) -> str:
    mult = "" if factor.mult == 1 else f"_x{factor.mult:g}"
    return mult + (f"_warmup{factor.warmup}_from{factor.first}" if factor.is_rising(batch) else "")


def with_closure(args: Any, kwargs: Any, wrap: Callable[[Callable[[], Any]], Callable[[], Any]]) -> Any:
    """Return the arguments of a step with its closure wrapped; None if it has none."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return None
    rest = {key: value for key, value in kwargs.items() if key != "closure"}
    return (args[0], wrap(closure), *args[2:]), rest


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of some values of a tensor, by which an update is noticed."""
    values = tensor.detach().reshape(-1)
    return values[:: max(1, len(values) // _SAMPLE)].clone()


def unscalable(optimizer: Optimizer, scaled: Container[int], column: str) -> str | None:
    """Describe why the rates of an optimizer cannot be scaled; None if they can.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    scaled : container of int
        The ``id`` of the parameters whose rates are to be scaled.
    column : str
        The column of the table that says so.

    Returns
    -------
    str or None
    """
    unfit = _unfit(optimizer, scaled)
    return None if unfit is None else _refusal(optimizer, column, unfit)


def _refusal(optimizer: Optimizer, column: str, why: str) -> str:
    return (
        f"`unfreeze` has a column `{column}`, but {type(optimizer).__name__} {why}; leave the column out, or use "
        "another optimizer"
    )


def _unfit(optimizer: Optimizer, scaled: Container[int]) -> str | None:
    if isinstance(optimizer, LBFGS):
        return "has one learning rate for all"
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return "does not call Optimizer.__init__, so its step() has no hooks"
    groups = optimizer.param_groups
    if not all(isinstance(group.get("lr"), (Real, torch.Tensor)) for group in groups):
        return "has no learning rate in its groups"
    for inner in _optimizers_in([*vars(optimizer).values()]):
        if inner.param_groups is not groups and any(
            id(tensor) in scaled for group in inner.param_groups for tensor in group["params"]
        ):
            return f"updates by an inner {type(inner).__name__}, which has groups of its own"
    return None


def _optimizers_in(values: Iterable[object]) -> Iterator[Optimizer]:
    """Yield the optimizers among values, and in lists and mappings among them."""
    for value in values:
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, list | tuple | Mapping):
            inside = value.values() if isinstance(value, Mapping) else value
            yield from (one for one in inside if isinstance(one, Optimizer))
