"""Plans: what tables come to for one network, as a pure function of what has happened so far."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from mlr3torch_py.names import listed
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import Row
from mlr3torch_py.select.functions import Select

__all__ = ["Moment", "Plan", "Step"]


@dataclass(frozen=True, slots=True)
class Moment:
    """How far the life of a net has come.

    Parameters
    ----------
    epoch : int
        The epoch, from 1; 0 before the first.
    batch : int
        The training batch over the whole life of the net, from 1; 0 before the first.
    firsts : tuple of int
        The first batch of each epoch so far. It matters only where epochs and batches come together.
    fired : mapping of int to int
        The conditions that came: the position of the row, and the epoch.
    loaded : tuple of (int, frozenset of str), optional
        A state that was loaded: the epoch before which, and what it unfreezes.
    """

    epoch: int = 0
    batch: int = 0
    firsts: tuple[int, ...] = ()
    fired: Mapping[int, int] = field(default_factory=dict)
    loaded: tuple[int, frozenset[str]] | None = None

    def first_batch(self, epoch: int) -> int:
        """Return the first batch of an epoch; of one that has not begun, the next batch."""
        return self.firsts[epoch - 1] if 0 < epoch <= len(self.firsts) else self.batch + 1


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the table, resolved against the names of one network."""

    row: Row
    names: frozenset[str]

    def act(self, trainable: set[str]) -> None:
        """Unfreeze or freeze the names in `trainable`."""
        if self.row.action == "unfreeze":
            trainable |= self.names
        else:
            trainable -= self.names

    @property
    def time(self) -> float:
        """When it comes; infinity for a condition."""
        return math.inf if isinstance(self.row.time, Plateau) else float(self.row.time)


@dataclass(frozen=True)
class Plan:
    """What trains when, of the parameters that a callback governs.

    Parameters
    ----------
    names : tuple of str
        The parameters that are governed, in the order of the network.
    starting : frozenset of str
        What of them trains from the start.
    steps : tuple of Step
        What comes later, in the order of the table.

    Examples
    --------
    >>> from mlr3torch_py import select_name
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
            message says which argument and row.
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

    def trainable(self, moment: Moment) -> Set[str]:
        """Return the names that train at a moment.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        set of str
        """
        trainable = set(self.starting)
        for act in self._past(moment):
            act.act(trainable)
        return trainable

    def held(self, moment: Moment) -> Set[str]:
        """Return the names that are held frozen at a moment.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        set of str
        """
        return self._governed - self.trainable(moment)

    def lr_factors(self) -> dict[str, float]:
        """Return the factors on the learning rates: for a name, that of the first row that selects it and has one.

        Returns
        -------
        dict of str to float
        """
        factors: dict[str, float] = {}
        for step in self.steps:
            if step.row.lr_mult is not None and step.time > 0:
                factors = dict.fromkeys(step.names, step.row.lr_mult) | factors
        return factors

    def to_come(self, moment: Moment) -> list[Step]:
        """Return the steps that are still to come after a moment, conditions last.

        Parameters
        ----------
        moment : Moment

        Returns
        -------
        list of Step
        """
        epochs = [step for step in self._by_epoch if step.time > moment.epoch]
        batches = [step for step in self._by_batch if step.time > moment.batch]
        return [*epochs, *batches, *(step for step in self.conditions if step.row.position not in moment.fired)]

    def next_batch(self, batch: int) -> float:
        """Return the next batch after `batch` at which something changes within an epoch, infinity if none."""
        i = bisect_right(self._by_batch, float(batch), key=_time)
        return self._by_batch[i].time if i < len(self._by_batch) else math.inf

    def idle(self) -> list[Step]:
        """Return the steps that select something and change nothing when they come.

        Where epochs, batches and conditions are mixed, that depends on the training, and none is returned.

        Returns
        -------
        list of Step
        """
        if (len(self._by_epoch) and len(self._by_batch)) or self.conditions:
            return []
        trainable, idle = set(self.starting), []
        for step in (*self._by_epoch, *self._by_batch):
            before = len(trainable)
            step.act(trainable)
            if step.names and len(trainable) == before and step.row.lr_mult is None:
                idle.append(step)
        return idle

    @cached_property
    def conditions(self) -> tuple[Step, ...]:
        """The steps that wait for a condition, in the order of the table."""
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

    def _past(self, moment: Moment) -> Iterator[Step | _Loaded]:
        """Yield what has come, in the order in which it acts."""
        epochs = self._by_epoch[: bisect_right(self._by_epoch, float(moment.epoch), key=_time)]
        batches = self._by_batch[: bisect_right(self._by_batch, float(moment.batch), key=_time)]
        fired = [
            (moment.fired[step.row.position], step)
            for step in self.conditions
            if moment.fired.get(step.row.position, math.inf) <= moment.epoch
        ]
        if not fired and moment.loaded is None and not (epochs and batches):
            yield from epochs or batches
            return
        # At one moment a state that was loaded comes first, then the rows of the epoch, then those of the batch.
        order: list[tuple[tuple[float, int, float], Step | _Loaded]] = []
        for epoch, step in [*((int(step.time), step) for step in epochs), *fired]:
            order.append(((moment.first_batch(epoch), 1, epoch), step))
        order += [((step.time, 2, 0), step) for step in batches]
        if moment.loaded is not None and moment.loaded[0] <= moment.epoch:
            epoch, names = moment.loaded
            order.append(((moment.first_batch(epoch), 0, epoch), _Loaded(names)))
        yield from (act for _, act in sorted(order, key=lambda item: item[0]))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A state that was loaded: it unfreezes as a row does."""

    names: frozenset[str]

    def act(self, trainable: set[str]) -> None:
        trainable |= self.names


def _time(step: Step) -> float:
    return step.time


def _resolve(place: str, select: Select, names: Set[str], module: nn.Module | None) -> frozenset[str]:
    try:
        return frozenset(select.matches(names, module))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
