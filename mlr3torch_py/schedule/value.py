"""Schedules as values: small immutable objects that become the arguments of a callback when the network is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from inspect import signature
from numbers import Real
from typing import Any, ClassVar, Final, NoReturn, get_args

import pandas as pd
from torch import nn

from mlr3torch_py.arguments import check_choice, check_list, check_network, check_whole
from mlr3torch_py.network.tree import Level
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.protocols import NetOfUser
from mlr3torch_py.schedule.blocks import Head, check_head, make_blocks, selector_of
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.check import check_select
from mlr3torch_py.select.value import fields_of
from mlr3torch_py.values import shown

__all__ = ["ANY_NETWORK", "AnyNetwork", "Groups", "Schedule", "UnfreezeArguments", "check_schedule"]

Groups = Sequence[Select] | pd.DataFrame | None


class AnyNetwork:
    """Stands for a network that is not given; None is a mistake."""

    def __repr__(self) -> str:
        return "any network"


ANY_NETWORK: Final = AnyNetwork()


class UnfreezeArguments(dict[str, Any]):
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


class Schedule(ABC):
    """A ready-made schedule for any network.

    It is immutable, comparable and picklable, and prints as the call that makes it. `CallbackSetUnfreeze` takes it as
    `schedule` and resolves it for its network when training begins.

    Attributes
    ----------
    fn : str
        The name of the function that makes it.

    See Also
    --------
    gradual_unfreezing, chain_thaw, head_first

    Examples
    --------
    >>> from mlr3torch_py import MLP, gradual_unfreezing
    >>> schedule = gradual_unfreezing(every=2, lr_decay=2.6)
    >>> schedule
    gradual_unfreezing(every=2, lr_decay=2.6)
    >>> schedule.resolve(MLP(4, 3, neurons=(8,)))["unfreeze"]
       epoch             weights   lr_mult
    0      3  select_prefix('0')  0.384615
    """

    __slots__ = ()

    fn: ClassVar[str]

    groups: Groups
    among: Select | None
    head: Head
    n_groups: int | None
    level: Level

    def __post_init__(self) -> None:
        if self.groups is not None:
            object.__setattr__(self, "groups", _given_blocks(self.groups))
            if self.head is not None or self.n_groups is not None:
                name = "head" if self.head is not None else "n_groups"
                raise ValueError(
                    f"`groups` and `{name}` are given, but groups are the blocks; give only one of the two"
                )
        if self.among is not None:
            check_select("among", self.among)
        object.__setattr__(self, "head", check_head(self.head))
        if self.n_groups is not None:
            object.__setattr__(self, "n_groups", check_whole("n_groups", self.n_groups, "groups"))
        check_choice("level", self.level, get_args(Level))

    def resolve(self, network: nn.Module | NetOfUser) -> UnfreezeArguments:
        """Make the arguments of `CallbackSetUnfreeze` for a network.

        Parameters
        ----------
        network : torch.nn.Module or skorch.NeuralNet
            A network, or an initialized net.

        Returns
        -------
        dict
            ``starting_weights`` and ``unfreeze``.

        Raises
        ------
        TypeError, ValueError
            If the schedule does not fit the network.
        """
        return self._arguments(self._blocks(network))

    @property
    def may_have_rows(self) -> bool:
        """Whether a network with enough blocks gets a table with rows."""
        return self.n_groups != 1 and (self.groups is None or len(self.groups) > 1)

    def for_network(self, network: nn.Module | NetOfUser | AnyNetwork, *, first: str) -> Schedule | UnfreezeArguments:
        """Return the arguments for a network, or the schedule itself without one; a number was meant as `first`."""
        if isinstance(network, AnyNetwork):
            return self
        if isinstance(network, Real):
            raise TypeError(f"`network` is {shown(network)}; write `{first}={network}`, since the network comes first")
        return self.resolve(network)

    @abstractmethod
    def _arguments(self, blocks: list[Select]) -> UnfreezeArguments:
        """Make the arguments for blocks, from the input to the head."""

    def _blocks(self, network: nn.Module | NetOfUser) -> list[Select]:
        groups = None if self.groups is None else _given_blocks(self.groups)
        if groups is not None and self.among is None:
            return list(groups)
        module = bare(check_network("network", network))
        if groups is not None:
            blocks = list(groups)
        else:
            names = list(named_parameters(module))
            found = make_blocks(module, head=self.head, n_groups=self.n_groups, level=self.level)
            blocks = [selector_of(block, names) for block in found]
        return blocks if self.among is None else _those_among(self.among, blocks, module)

    def set_params(self, **params: Any) -> NoReturn:
        """Explain the mistake when the schedule is passed where skorch expects a callback.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            f"`callbacks` has a schedule in place of a callback; write t_clbk('unfreeze', schedule={self!r})"
        )

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that are not the defaults."""
        defaults = signature(type(self)).parameters
        return {name: cell for name, cell in fields_of(self).items() if cell != defaults[name].default}

    def __lt__(self, other: object) -> bool:
        """Order schedules by their code, since pandas sorts what a table is grouped by."""
        return repr(self) < repr(other) if isinstance(other, Schedule) else NotImplemented

    def __repr__(self) -> str:
        return f"{self.fn}({', '.join(f'{name}={_code(cell)}' for name, cell in self.given.items())})"


def check_schedule(schedule: object, starting_weights: object, given: Sequence[str]) -> None:
    """Check that a schedule is one, and that what it stands for is not given beside it.

    Parameters
    ----------
    schedule : object
        None without any.
    starting_weights : object
        What was given as such.
    given : sequence of str
        Which of ``starting_weights`` and ``unfreeze`` were given.

    Raises
    ------
    TypeError, ValueError
        If it is none, or stands in the place of `starting_weights`; if both are given.
    """
    if isinstance(starting_weights, Schedule):
        schedule = starting_weights
        raise TypeError(f"`starting_weights` is the schedule {schedule!r}; give it as schedule={schedule!r}")
    if schedule is None:
        return
    if not isinstance(schedule, Schedule):
        remedy = "give one made without a network, such as gradual_unfreezing(every=2)"
        if isinstance(schedule, Mapping):
            remedy = f"{remedy}, or pass its parts on by **"
        raise TypeError(f"`schedule` is {shown(schedule)}; {remedy}")
    for name in given:
        raise ValueError(f"`schedule` and `{name}` are given, but a schedule is both; give only one of the two")


def _given_blocks(groups: object) -> tuple[Select, ...]:
    if isinstance(groups, pd.DataFrame) and "holds" in groups:  # what network_blocks returns
        groups = groups["holds"].tolist()
    given = check_list("groups", groups, "a list of selectors, from the input to the head")
    blocks = tuple(check_select(f"`groups`: entry {i}", group) for i, group in enumerate(given))
    if not blocks:
        raise ValueError("`groups` is empty; give one selector for each block, from the input to the head")
    return blocks


def _those_among(among: Select, blocks: list[Select], module: nn.Module) -> list[Select]:
    try:
        blocks = [block & among for block in blocks if (block & among).expand(module)]
    except ValueError as error:
        raise ValueError(f"`among`, or `groups`, does not fit the network: {error}") from error
    if not blocks:
        raise ValueError(f"`among` is {among!r}, which selects nothing in any block; give one that does")
    return blocks


def _code(cell: Any) -> str:
    return repr(list(cell)) if isinstance(cell, tuple) else repr(cell)
