"""Plans: tables resolved against one network, as a pure function of what has happened so far."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

from torch import nn

from mlr3torch_py.names import listed
from mlr3torch_py.schedule.steps import Act, Moment, Step
from mlr3torch_py.schedule.table import Row, Unit
from mlr3torch_py.select.functions import Select, select_name

__all__ = ["Held", "Plan", "in_order"]

Held = Set[str]
"""The names of the parameters that something holds frozen."""


@dataclass(frozen=True)
class Plan:
    """A table resolved against one network: what is trainable when.

    Parameters
    ----------
    names : tuple of str
        The governed parameters, in the order of the network.
    starting : frozenset of str
        Those that are trainable from the start.
    steps : tuple of Step
        The rows of the table, in its order.

    Examples
    --------
    >>> from mlr3torch_py import select_name
    >>> from mlr3torch_py.schedule.steps import Moment
    >>> from mlr3torch_py.schedule.table import read_table
    >>> table = {"epoch": [3], "weights": [select_name("0.bias")]}
    >>> plan = Plan.resolve(select_name("0.weight"), read_table(table), ["0.weight", "0.bias"])
    >>> sorted(plan.trainable(Moment(epoch=2))), sorted(plan.trainable(Moment(epoch=3)))
    (['0.weight'], ['0.bias', '0.weight'])
    """

    names: tuple[str, ...]
    starting: frozenset[str]
    steps: tuple[Step, ...]

    @classmethod
    def resolve(
        cls, starting_weights: Select, rows: Iterable[Row], names: Iterable[str], module: nn.Module | None = None
    ) -> Plan:
        """Resolve selectors against one network.

        Parameters
        ----------
        starting_weights : Select
        rows : iterable of Row
        names : iterable of str
            The parameter names of the network, in its order.
        module : torch.nn.Module, optional
            The network, for selectors that look at more than names.

        Returns
        -------
        Plan

        Raises
        ------
        ValueError
            If a selector names what the network lacks, or two rows of one time do opposite things to one name. The
            message gives the argument and the row.
        """
        known = dict.fromkeys(names).keys()
        starting = _resolve("`starting_weights`", starting_weights, known, module)
        steps = tuple(
            Step(row, _resolve(f"`unfreeze`: row {row.position}", row.weights, known, module)) for row in rows
        )
        by_time: dict[object, Step] = {}
        for step in steps:
            other = by_time.setdefault((step.row.unit, step.row.time), step)
            if step.time != math.inf and other is not step and step.names & other.names:
                raise ValueError(
                    f"`unfreeze`: {other.row} and {step.row} come at the same time and do opposite things to "
                    f"{listed(sorted(step.names & other.names))}; let only one of them select it"
                )
        return cls(tuple(known), starting, steps)

    def resolved(self, fired: Mapping[int, int], loaded: tuple[int, Held] | None = None) -> Plan:
        """Turn what has become known while training into rows of epochs.

        Parameters
        ----------
        fired : mapping of int to int
            The conditions that have been met: the position of the row, and the epoch.
        loaded : tuple of (int, set of str), optional
            A state that was loaded: the epoch at which it took effect, and what it unfreezes. At its epoch it acts
            before the rows of the table.

        Returns
        -------
        Plan

        Examples
        --------
        >>> from mlr3torch_py import Plateau, select_name
        >>> from mlr3torch_py.schedule.table import read_table
        >>> table = {"when": [Plateau()], "weights": [select_name("0.bias")]}
        >>> plan = Plan.resolve(select_name("0.weight"), read_table(table), ["0.weight", "0.bias"])
        >>> sorted(plan.resolved({0: 4}).trainable(Moment(epoch=4)))
        ['0.bias', '0.weight']
        """
        first: tuple[Step, ...] = ()
        if loaded is not None:
            epoch, names = loaded
            first = (Step(Row(-1, epoch, "epoch", select_name(sorted(names))), frozenset(names)),)
        has_fired = {step.row.position for step in self.conditions if step.row.position in fired}
        rest = (step for step in self.steps if step.row.position not in has_fired)
        met = (
            replace(step, row=replace(step.row, time=fired[step.row.position]))
            for step in self.conditions
            if step.row.position in has_fired
        )
        return Plan(self.names, self.starting, (*first, *rest, *met))

    def trainable(self, moment: Moment) -> Set[str]:
        """Return the names that are trainable at a moment.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        set of str
        """
        trainable = set(self.starting)
        for step in self._past(moment):
            step.act(trainable)
        return trainable

    def held(self, moment: Moment) -> Held:
        """Return the names that are held frozen at a moment.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        set of str
        """
        return self._governed - self.trainable(moment)

    @cached_property
    def scaling(self) -> tuple[Step, ...]:
        """The steps that ever scale the learning rate of something."""
        return tuple(step for step in self.steps if step.scales)

    def acts(self, moment: Moment, tensor_of: Mapping[str, Hashable] | None = None) -> Iterator[Act]:
        """Walk through the steps that have taken effect by a moment.

        Parameters
        ----------
        moment : Moment
        tensor_of : mapping of str to object, optional
            What stands for the tensor of each name, so that tied ones are seen as one. By default the name itself.

        Yields
        ------
        Act
            In the order in which they acted.
        """
        tensors = dict(zip(self.names, self.names, strict=True)) if tensor_of is None else tensor_of
        names = set(self.starting)
        before = {tensors[name] for name in names}
        for (batch, _), step in self._dated(moment):
            step.act(names)
            now = {tensors[name] for name in names}
            yield Act(int(batch), step, now - before, before - now)
            before = now

    def changed_at(self, moment: Moment, unit: Unit) -> bool:
        """Whether a row of epochs, or of batches, changes something just at a moment."""
        return any(act.changes and act.step.is_of(moment, unit) for act in self.acts(moment))

    def changed_last(self, moment: Moment, but: Unit | None = None) -> int:
        """Return the epoch in which a step has last changed something; 0 if none has.

        Parameters
        ----------
        moment : Moment
        but : {"epoch", "batch"}, optional
            The unit of steps that are left out if they take effect just at the moment.
        """
        acts = (act for act in self.acts(moment) if but is None or not act.step.is_of(moment, but))
        return max((moment.epoch_of(act.batch) for act in acts if act.changes), default=0)

    def settled_since(self, moment: Moment) -> float:
        """Return the epoch in which the last step of all has changed something; infinity if one still will."""
        trainable = self.trainable(moment)
        for step in self.pending(moment):
            will_change = step.names - trainable if step.row.action == "unfreeze" else step.names & trainable
            if will_change or step.sets_factor:
                return math.inf
        return self.changed_last(moment)

    def without(self, names: Held) -> Plan:
        """Return the same plan without some names.

        Parameters
        ----------
        names : set of str

        Returns
        -------
        Plan
        """
        if not names:
            return self
        steps = tuple(replace(step, names=step.names - names) for step in self.steps)
        return Plan(tuple(name for name in self.names if name not in names), self.starting - names, steps)

    def keeping(self, other: Plan, names: Held) -> Plan:
        """Return the same plan, in which another one, of the same table, says what happens to some names.

        Parameters
        ----------
        other : Plan
        names : set of str

        Returns
        -------
        Plan
        """
        steps = tuple(
            replace(step, names=(step.names - names) | (old.names & names))
            for step, old in zip(self.steps, other.steps, strict=True)
        )
        return Plan(self.names, (self.starting - names) | (other.starting & names), steps)

    def renamed(self, before: Mapping[str, str], names: Iterable[str]) -> Plan:
        """Return the same plan for parameters that have other names now.

        Parameters
        ----------
        before : mapping of str to str
            The name that a parameter had before, by its new name.
        names : iterable of str
            All names of the network now, in its order.

        Returns
        -------
        Plan
        """
        names = tuple(names)

        def now(some: Held) -> frozenset[str]:
            return frozenset(name for name in names if before.get(name, name) in some)

        governed = now(self._governed)
        steps = tuple(replace(step, names=now(step.names)) for step in self.steps)
        return Plan(tuple(name for name in names if name in governed), now(self.starting), steps)

    @property
    def ever_trainable(self) -> frozenset[str]:
        """The names that are trainable at some time."""
        rows = (step.names for step in self.steps if step.row.action == "unfreeze" and step.time > 0)
        return self.starting.union(*rows)

    @property
    def ever_held(self) -> frozenset[str]:
        """The names that are held frozen at some time."""
        rows = (step.names for step in self.steps if step.row.action == "freeze" and step.time > 0)
        return (self._governed - self.starting).union(*rows)

    def pending(self, moment: Moment) -> list[Step]:
        """Return the steps that have not taken effect by a moment, conditions last.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        list of Step
        """
        epochs = [step for step in self._by_epoch if step.time > moment.epoch]
        batches = [step for step in self._by_batch if step.time > moment.batch]
        return [*epochs, *batches, *self.conditions]

    def next_batch(self, batch: int) -> float:
        """Return the next batch after `batch` that a row names; infinity without one."""
        i = bisect_right(self._by_batch, float(batch), key=_time)
        return self._by_batch[i].time if i < len(self._by_batch) else math.inf

    def no_ops(self, sharing: Iterable[Collection[str]] = ()) -> list[Step]:
        """Return the steps that match weights but change nothing.

        Where epochs, batches and conditions are mixed, that depends on the training, and none is returned.

        Parameters
        ----------
        sharing : iterable of collections of str
            The groups of names that share weights, which are trainable as long as one of them is.

        Returns
        -------
        list of Step
        """
        tensor_of = {name: i for i, names in enumerate(sharing) for name in names}
        no_ops, before = [], {tensor_of.get(name, name) for name in self.starting}
        for step, trainable in self.in_turn():
            after = {tensor_of.get(name, name) for name in trainable}
            if step.names and after == before and step.row.lr_mult is None:
                no_ops.append(step)
            before = after
        return no_ops

    def last_steps(self) -> list[Step]:
        """Return the steps after which nothing is trainable, until the next one if there is one.

        Where epochs, batches and conditions are mixed, that depends on the training, and none is returned.

        Returns
        -------
        list of Step
        """
        left = {step.time: (step, bool(trainable)) for step, trainable in self.in_turn()}
        return [step for step, is_left in left.values() if not is_left and step.time and step.row.action == "freeze"]

    def in_turn(self) -> Iterator[tuple[Step, Held]]:
        """Yield the steps with what is trainable after each; nothing if their order depends on the training."""
        if (self._by_epoch and self._by_batch) or self.conditions:
            return
        trainable = set(self.starting)
        for step in (*self._by_epoch, *self._by_batch):
            step.act(trainable)
            yield step, frozenset(trainable)

    @cached_property
    def conditions(self) -> tuple[Step, ...]:
        """The steps whose condition has not been met, in the order of the table."""
        return tuple(step for step in self.steps if step.time == math.inf)

    @cached_property
    def _governed(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_epoch(self) -> tuple[Step, ...]:
        return self._sorted("epoch")

    @cached_property
    def _by_batch(self) -> tuple[Step, ...]:
        return self._sorted("batch")

    def _sorted(self, unit: str) -> tuple[Step, ...]:
        timed = (step for step in self.steps if step.row.unit == unit and 0 < step.time < math.inf)
        return tuple(sorted(timed, key=_time))

    def _past(self, moment: Moment) -> Sequence[Step]:
        """Return what has taken effect, in the order in which it acted."""
        epochs = self._by_epoch[: bisect_right(self._by_epoch, float(moment.epoch), key=_time)]
        batches = self._by_batch[: bisect_right(self._by_batch, float(moment.batch), key=_time)]
        if not (epochs and batches):
            return epochs or batches
        return [step for _, step in self._dated(moment)]

    def _dated(self, moment: Moment) -> list[tuple[tuple[float, bool], Step]]:
        """Return what has taken effect, with its first batch; rows of an epoch act before those of its first batch."""
        epochs = self._by_epoch[: bisect_right(self._by_epoch, float(moment.epoch), key=_time)]
        batches = self._by_batch[: bisect_right(self._by_batch, float(moment.batch), key=_time)]
        began = [((float(moment.first_batch(int(step.time))), False), step) for step in epochs]
        return sorted([*began, *(((step.time, True), step) for step in batches)], key=itemgetter(0))


def _time(step: Step) -> float:
    return step.time


def _resolve(place: str, select: Select, names: Set[str], module: nn.Module | None) -> frozenset[str]:
    try:
        return frozenset(select.matches(names, module))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def in_order(plans: Iterable[Plan], names: Held) -> Iterator[str]:
    """Yield names in the order of the network."""
    order = dict.fromkeys(name for plan in plans for name in plan.names)
    return (name for name in order if name in names)
