"""Plans: what a table of unfreezing comes to for one network, as a pure function of epoch and batch."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from torch import nn

from mlr3torch_py.select import Select, select_none

__all__ = ["Event", "Plan", "Row", "as_select", "read_table"]

Unit = Literal["epoch", "batch"]

_PLURAL: Final[dict[Unit, str]] = {"epoch": "epochs", "batch": "batches"}
_FORM: Final = "a pandas DataFrame with a column `weights` of selectors and one column `epoch` or `batch`"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the `unfreeze` table.

    Parameters
    ----------
    position : int
        Where it stands in the table, from 0.
    unit : {"epoch", "batch"}
        What `at` counts.
    at : int
        The epoch, or the batch, from 1. A row at 0 never comes.
    weights : Select
        What it unfreezes.
    """

    position: int
    unit: Unit
    at: int
    weights: Select

    def __str__(self) -> str:
        return f"row {self.position} ({self.unit} {self.at}: {self.weights!r})"


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the table, resolved against the names of one network.

    Parameters
    ----------
    row : Row
    names : frozenset of str
        All that the row selects.
    new : frozenset of str
        What of it does not train yet when the row comes.
    """

    row: Row
    names: frozenset[str]
    new: frozenset[str]


@dataclass(frozen=True)
class Plan:
    """What trains when, for one network.

    Parameters
    ----------
    names : tuple of str
        The parameters of the network.
    starting : frozenset of str
        What trains from the start.
    events : tuple of Event
        The rows of the table by time. All have the same unit.

    Examples
    --------
    >>> from mlr3torch_py import select_name
    >>> table = {"epoch": [3], "weights": [select_name("0.bias")]}
    >>> plan = Plan.resolve(select_name("0.weight"), read_table(table), ["0.weight", "0.bias"])
    >>> sorted(plan.trainable(epoch=2, batch=20)), sorted(plan.trainable(epoch=3, batch=21))
    (['0.weight'], ['0.bias', '0.weight'])
    """

    names: tuple[str, ...]
    starting: frozenset[str]
    events: tuple[Event, ...]

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
            If a selector names what the network lacks; the message says which argument and row.
        """
        known = dict.fromkeys(names).keys()
        starting = _resolve("`starting_weights`", starting_weights, known, module)
        events, training = [], set(starting)
        for row in sorted(rows, key=lambda row: row.at):
            selected = _resolve(f"`unfreeze`: row {row.position}", row.weights, known, module)
            new = selected - training if row.at else frozenset[str]()
            training |= new
            events.append(Event(row, selected, new))
        return cls(tuple(known), starting, tuple(events))

    def trainable(self, epoch: int, batch: int) -> Set[str]:
        """Return the names that train at a moment.

        Parameters
        ----------
        epoch : int
            The epoch, from 1; 0 before the first.
        batch : int
            The training batch over the whole life of the net, from 1; 0 before the first.

        Returns
        -------
        set of str
        """
        return self.starting.union(*(event.new for event in self.events[: self._n_come(epoch, batch)]))

    def at(self, unit: Unit, moment: int) -> Event | None:
        """Return the event that comes at exactly this epoch or batch, if there is one.

        Parameters
        ----------
        unit : {"epoch", "batch"}
        moment : int

        Returns
        -------
        Event or None
        """
        if moment > 0 and self._unit == unit:
            i = bisect_right(self.events, moment, key=_time) - 1
            if i >= 0 and _time(self.events[i]) == moment:
                return self.events[i]
        return None

    def to_come(self, epoch: int, batch: int) -> tuple[Event, ...]:
        """Return the events that are still to come after a moment, the next one first.

        Parameters
        ----------
        epoch, batch : int
            As in `trainable`.

        Returns
        -------
        tuple of Event
        """
        return self.events[self._n_come(epoch, batch) :]

    def next_batch(self, batch: int) -> float:
        """Return the next batch after `batch` at which something changes within an epoch.

        Parameters
        ----------
        batch : int

        Returns
        -------
        float
            Infinity if nothing does.
        """
        coming = self.to_come(0, batch) if self._unit == "batch" else ()
        return _time(coming[0]) if coming else math.inf

    @property
    def _unit(self) -> Unit | None:
        return self.events[0].row.unit if self.events else None

    def _n_come(self, epoch: int, batch: int) -> int:
        return bisect_right(self.events, epoch if self._unit == "epoch" else batch, key=_time)


def _time(event: Event) -> int:
    return event.row.at


def as_select(argument: str, value: object) -> Select:
    """Return `value` if it is a selector.

    Parameters
    ----------
    argument : str
        What the message calls it.
    value : object

    Returns
    -------
    Select

    Raises
    ------
    TypeError
        If it is not one; the message says how to make one of it.

    Examples
    --------
    >>> as_select("`starting_weights`", "0.weight")
    Traceback (most recent call last):
        ...
    TypeError: `starting_weights` is '0.weight' (str); it must be a selector: write select_name('0.weight')
    """
    if isinstance(value, Select):
        return value
    if isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(name, str) for name in value)):
        remedy = f"write select_name({value!r})"
    elif callable(value) and getattr(value, "__module__", None) == select_none.__module__:
        remedy = f"call it: {getattr(value, '__name__', value)}(...)"
    else:
        remedy = f"such as {select_none()!r} or select_name('0.weight')"
    raise TypeError(f"{argument} is {value!r} ({type(value).__name__}); it must be a selector: {remedy}")


def read_table(unfreeze: object) -> tuple[Row, ...]:
    """Check an `unfreeze` table and read its rows.

    Parameters
    ----------
    unfreeze : pandas.DataFrame, mapping, sequence of mappings, or None
        The column `weights` holds selectors; exactly one of the columns `epoch` and `batch` holds whole numbers, each
        at most once, from 1 (0 is accepted and never comes). Other columns are left alone. None, and a table without
        rows and columns, have no rows. A mapping of columns and a list of records are made a DataFrame first.

    Returns
    -------
    tuple of Row
        In the order of the table.

    Raises
    ------
    TypeError, ValueError
        If the table breaks a rule. The message names column, row, value, rule and remedy.

    Examples
    --------
    >>> from mlr3torch_py import select_all
    >>> read_table({"epoch": [2], "weights": [select_all()]})
    (Row(position=0, unit='epoch', at=2, weights=select_all()),)
    >>> read_table({"epoch": [-1], "weights": [select_all()]})
    Traceback (most recent call last):
        ...
    ValueError: `unfreeze`: row 0 has epoch -1; epochs count from 1, so give a later one
    """
    frame = _as_frame(unfreeze)
    if frame.columns.empty:
        return ()
    columns = list(frame.columns)
    for column in ("weights", *_PLURAL):
        if columns.count(column) > 1:
            raise ValueError(f"`unfreeze`: the column `{column}` is there {columns.count(column)} times; keep one")
    if "weights" not in columns:
        raise ValueError(f"`unfreeze` has the columns {columns} and no `weights`; it must be {_FORM}")
    units = [unit for unit in _PLURAL if unit in columns]
    if len(units) != 1:
        have = "both `epoch` and `batch`: drop one" if units else "neither `epoch` nor `batch`: add one"
        raise ValueError(f"`unfreeze` has {have}; it must be {_FORM}")
    unit = units[0]
    rows = [
        Row(i, unit, _as_time(i, unit, at), as_select(f"`unfreeze`: row {i}, column `weights`,", weights))
        for i, (at, weights) in enumerate(zip(frame[unit].tolist(), frame["weights"].tolist(), strict=True))
    ]
    first: dict[int, int] = {}
    for row in rows:
        if first.setdefault(row.at, row.position) != row.position:
            raise ValueError(
                f"`unfreeze`: rows {first[row.at]} and {row.position} both have {unit} {row.at}; a time may come once, "
                f"so join their selectors by `|` in one row"
            )
    return tuple(rows)


def _as_frame(unfreeze: object) -> pd.DataFrame:
    if unfreeze is None:
        return pd.DataFrame()
    if isinstance(unfreeze, pd.DataFrame):
        return unfreeze
    records: Any
    if isinstance(unfreeze, Mapping):
        records = dict(unfreeze)
    elif isinstance(unfreeze, Sequence) and all(isinstance(record, Mapping) for record in unfreeze):
        records = [dict(record) for record in unfreeze]
    else:
        raise TypeError(f"`unfreeze` is {unfreeze!r} ({type(unfreeze).__name__}); it must be {_FORM}")
    try:
        return pd.DataFrame(records)
    except ValueError as error:
        raise ValueError(
            f"`unfreeze` makes no table ({error}); give every column a list of the same length, "
            "as in {'epoch': [2], 'weights': [select_all()]}"
        ) from error


def _as_time(position: int, unit: Unit, value: Any) -> int:
    place = f"`unfreeze`: row {position}"
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{place} has no {unit}; every row needs one, so drop the row or fill in a whole number")
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{place} has {unit} {value!r} ({type(value).__name__}); give a whole number, such as 2")
    if not float(value).is_integer():
        raise ValueError(f"{place} has {unit} {value!r}; give a whole number, such as 2")
    if value < 0:
        raise ValueError(f"{place} has {unit} {value!r}; {_PLURAL[unit]} count from 1, so give a later one")
    return int(value)


def _resolve(place: str, select: Select, names: Set[str], module: nn.Module | None) -> frozenset[str]:
    try:
        return frozenset(select.matches(names, module))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
