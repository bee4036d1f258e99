"""Check the arguments of learning-rate schedulers before training, on an optimizer that is thrown away."""

from __future__ import annotations

import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mlr3torch_py.arguments import check_choice, check_flag, check_list, check_number, check_text, check_whole
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.schedule.plateau import as_whole
from mlr3torch_py.values import is_number, plain, shown

__all__ = [
    "ThrowAway",
    "Trial",
    "check_arguments",
    "copied",
    "described",
    "is_of_torch",
    "is_rate",
    "name_of",
    "with_attributes",
]

_LISTS: Final = (list, tuple, Sequence, Iterable, typing.Iterable)
_IMPORTED_FOR_TYPES: Final = {"Callable": Callable, "Iterable": Iterable, "Sequence": Sequence}
_LARGEST: Final = 1e38  # about the largest number in float32
_MAY_BE_ZERO: Final = ("cooldown", "patience", "total_iters")


class ThrowAway(Optimizer):
    """An optimizer with given groups that updates nothing.

    Parameters
    ----------
    groups : iterable of mapping
        The groups of another optimizer; their parameters are replaced.
    defaults : mapping
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        kept = [{key: deepcopy(group[key]) for key in group.keys() - {"params", "param_names"}} for group in groups]
        super().__init__([group | {"params": [nn.Parameter(torch.zeros(()))]} for group in kept], dict(defaults))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing, so that a scheduler may step after it."""

    @property
    def rates(self) -> list[float]:
        """The learning rate of each group."""
        return [float(group["lr"]) for group in self.param_groups]


def is_of_torch(scheduler: Any) -> bool:
    """Check whether a scheduler class is one of torch's own."""
    return isinstance(scheduler, type) and scheduler.__module__.startswith("torch.optim.")


def name_of(scheduler: Any) -> str:
    """Return the name of a scheduler class, or of a function that makes a scheduler, as part of an identifier.

    Examples
    --------
    >>> name_of(partial(check_arguments, given={}))
    'check_arguments'
    """
    while isinstance(scheduler, partial):
        scheduler = scheduler.func
    name = getattr(scheduler, "__name__", type(scheduler).__name__)
    return re.sub(r"_+", "_", re.sub(r"\W", "", name)).strip("_") or "function"


def check_arguments(scheduler: Any, parameters: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a scheduler as plain Python values; check those of torch's classes by their annotations.

    Parameters
    ----------
    scheduler : type or callable
    parameters : mapping of str to inspect.Parameter
    given : mapping

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
        If a value has the wrong type, or is a number out of range.
    """
    hints: dict[str, Any] = {}
    if is_of_torch(scheduler):
        with suppress(Exception):  # annotations of some versions of torch cannot be resolved
            hints = typing.get_type_hints(scheduler.__init__, localns=_IMPORTED_FOR_TYPES)
    checked = {}
    for name, value in given.items():
        default = parameters[name].default if name in parameters else None
        hint = hints.get(name, type(default) if is_of_torch(scheduler) and default is not None else None)
        checked[name] = None if value is None and default is None else _read(name, plain(value), hint, default)
    return checked


def _read(name: str, value: Any, hint: Any, default: Any) -> Any:
    """Return a value as its annotation wants it."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    lists = [kind for kind in kinds if (typing.get_origin(kind) or kind) in _LISTS]
    singles = [kind for kind in kinds if kind not in lists and kind is not types.NoneType]
    is_list = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
    if lists and is_list:
        (entry, *_) = typing.get_args(lists[0]) or (None,)
        return [_read(name, plain(one), entry, 0) for one in value]
    if lists and not singles:
        raise TypeError(f"`{name}` is {shown(value)}; give a list")
    return _single(name, value, singles[0], default, " or a list of them, one for each param group" if lists else "")


def _single(name: str, value: Any, kind: Any, default: Any, or_list: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return check_choice(name, value, typing.get_args(kind))
    if kind is bool:
        return check_flag(name, value)
    if kind is int:
        least = default if isinstance(default, int) and default < 1 else int(name not in _MAY_BE_ZERO)
        return check_whole(name, as_whole(value), "steps", least=least)
    if kind is float:
        return check_number(name, value, f"a number from 0 to {_LARGEST:.0e}{or_list}", least=0, most=_LARGEST)
    if kind is str:
        return check_text(name, value)
    if typing.get_origin(kind) in (Callable, typing.get_origin(Callable[..., Any])) and not callable(value):
        raise TypeError(f"`{name}` is {shown(value)}; give a function of the step{or_list}")
    return value


@dataclass(frozen=True)
class Trial:
    """Some steps of a scheduler on an optimizer that is thrown away.

    Parameters
    ----------
    make : callable
        Takes an optimizer and the arguments of the scheduler.
    optimizer : torch.optim.Optimizer
        Its groups are copied.
    steps : sequence of sequence of float
        The arguments of each step.
    is_whole : bool
        Whether training ends with the last step, so that the rates after it do not matter.
    """

    make: Callable[[Optimizer, dict[str, Any]], Any]
    optimizer: Any
    steps: Sequence[Sequence[float]]
    is_whole: bool = False

    def check(self, what: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Check that the scheduler can be made and stepped, and that its rates are possible.

        Parameters
        ----------
        what : str
            What makes the scheduler, for the message.
        arguments : mapping
        defaults : mapping
            The defaults of those that are not required.

        Raises
        ------
        TypeError, ValueError
            The message names the argument whose change helps, if there is one.
        """
        with kept_random_states(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = self._failure(arguments)
            if error is None:
                return
            kind = TypeError if isinstance(error, TypeError) else ValueError
            if (name := self._culprit(error, arguments, defaults)) is not None:
                value = shown(arguments[name])
                raise kind(f"`{name}` is {value}, with which {what} fails: {error}; give another one") from error
        raise kind(f"{what} fails with {described(arguments)}: {error}") from error

    def _culprit(self, error: Exception, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
        """Return the argument with another value of which there is no failure."""

        def by_suspicion(name: str) -> tuple[bool, bool, bool]:
            is_default = name in defaults and arguments[name] is defaults[name]
            return name not in str(error), is_default, name not in defaults

        for name in sorted(arguments, key=by_suspicion):
            others = (defaults.get(name), -1, 1, 0.5, False, None, lambda _: 1.0)
            if any(self._failure({**arguments, name: other}) is None for other in others):
                return name
        return None

    def _failure(self, arguments: Mapping[str, Any]) -> Exception | None:
        """Return the error of making a scheduler, or of a step."""
        optimizer = ThrowAway(self.optimizer.param_groups, getattr(self.optimizer, "defaults", {}))
        was_fine = all(map(is_rate, optimizer.rates))
        try:
            scheduler = self.make(optimizer, copied(arguments))
            if not callable(getattr(scheduler, "step", None)) or not hasattr(scheduler, "state_dict"):
                return TypeError(f"it returned {shown(scheduler)}, which is no scheduler")
            if getattr(scheduler, "optimizer", optimizer) is not optimizer:
                return ValueError("it returned a scheduler of another optimizer than the one that it was given")
            if isinstance(scheduler, ReduceLROnPlateau) and not all(self.steps):
                return TypeError("ReduceLROnPlateau needs a score; t_clbk('lr_reduce_on_plateau') gives it one")
            for step, scores in enumerate(self.steps, start=1):
                optimizer.step()
                scheduler.step(*scores)
                matters = was_fine and not (self.is_whole and step == len(self.steps))
                if matters and not all(map(is_rate, optimizer.rates)):
                    return ValueError(f"it sets the learning rates {optimizer.rates}")
            scheduler.state_dict()
        except Exception as error:
            return error
        return None


def is_rate(rate: float) -> bool:
    """Check whether a learning rate is one with which an optimizer can train."""
    return 0 <= rate <= _LARGEST


def check_scores(scores: object) -> list[float]:
    """Return the scores of the steps of a simulation; one number stands for all of them.

    Examples
    --------
    >>> check_scores(0.5), check_scores([1, 0.5])
    ([0.5], [1.0, 0.5])
    """
    what = "a number, or a list of numbers"
    values = [scores] if is_number(plain(scores)) else check_list("step_args", scores, what)
    if not values:
        raise ValueError(f"`step_args` is {shown(scores)}; give {what}")
    return [check_number("step_args", value, what, finite=False) for value in values]


def described(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a scheduler as a message shows them.

    Examples
    --------
    >>> described({"step_size": 2, "gamma": 0.5})
    '`step_size`=2, `gamma`=0.5'
    """
    return ", ".join(f"`{name}`={shown(value)}" for name, value in arguments.items()) or "no arguments"


def copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy arguments, as functions may count their calls."""
    try:
        return deepcopy(dict(arguments))
    except Exception:
        return dict(arguments)


def first_state_of(
    make: Callable[[Optimizer, dict[str, Any]], Any], optimizer: Any, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state in which a scheduler with some arguments starts."""
    groups = [group | {"lr": group.get("initial_lr", group["lr"])} for group in optimizer.param_groups]
    for group in groups:
        group.pop("initial_lr", None)
    with kept_random_states():
        scheduler = make(ThrowAway(groups, getattr(optimizer, "defaults", {})), copied(arguments))
        state: dict[str, Any] = scheduler.state_dict()
        return state


def with_attributes(value: Any) -> Any:
    """Give functions written in C attributes, which torch's schedulers read: alone, or in a list.

    Examples
    --------
    >>> with_attributes(abs)
    functools.partial(<built-in function abs>)
    """
    if isinstance(value, list):
        return [with_attributes(one) for one in value]
    return partial(value) if callable(value) and not hasattr(value, "__dict__") else value
