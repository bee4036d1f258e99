"""Reading tables: the rows of `unfreeze`, each with what it selects, when it comes and what it does."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal, TypeGuard, get_args

import numpy as np
import pandas as pd

from mlr3torch_py.names import nearest
from mlr3torch_py.schedule.plateau import Plateau, whole
from mlr3torch_py.select.functions import Select, select_none

__all__ = ["Action", "Row", "Unit", "as_select", "read_table"]

Action = Literal["unfreeze", "freeze"]
Unit = Literal["epoch", "batch"]

_PLURAL: Final[dict[Unit, str]] = {"epoch": "epochs", "batch": "batches"}
_COLUMNS: Final = ("weights", "when", "action", "lr_mult", *_PLURAL)
_FORM: Final = "a pandas DataFrame with a column `weights` of selectors and one column `epoch` or `batch`"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Parameters
    ----------
    position : int
        Where it stands, from 0, counted on through tables that are combined.
    time : int or Plateau
        The epoch, or the batch, from 1, or a condition. A row at 0 never comes.
    unit : {"epoch", "batch"}
        What `time` counts; for a condition it is "epoch", since it is looked at when an epoch begins.
    weights : Select
        What it is about.
    action : {"unfreeze", "freeze"}
        What it does.
    lr_mult : float, optional
        The factor on the learning rate of the weights.
    """

    position: int
    time: int | Plateau
    unit: Unit
    weights: Select
    action: Action = "unfreeze"
    lr_mult: float | None = None

    def __str__(self) -> str:
        time = f"when {self.time!r}" if isinstance(self.time, Plateau) else f"{self.unit} {self.time}"
        return f"row {self.position} ({time}: {'freeze ' if self.action == 'freeze' else ''}{self.weights!r})"


def as_select(argument: str, given: object) -> Select:
    """Return `given` if it is a selector.

    Parameters
    ----------
    argument : str
        What the message calls it.
    given : object

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
    if isinstance(given, Select):
        return given
    if isinstance(given, str) or (isinstance(given, Sequence) and all(isinstance(name, str) for name in given)):
        remedy = f"write select_name({given!r})"
    elif callable(given) and getattr(given, "__module__", None) == select_none.__module__:
        remedy = f"call it: {getattr(given, '__name__', given)}(...)"
    else:
        remedy = f"such as {select_none()!r} or select_name('0.weight')"
    raise TypeError(f"{argument} is {given!r} ({type(given).__name__}); it must be a selector: {remedy}")


def read_table(unfreeze: object) -> tuple[Row, ...]:
    """Check an `unfreeze` table, or several, and read the rows.

    Parameters
    ----------
    unfreeze : pandas.DataFrame, mapping, sequence of mappings, sequence of tables, or None
        The column `weights` holds selectors. Exactly one of the columns `epoch` and `batch` holds whole numbers from 1
        (0 is accepted and never comes). A column `action` says "unfreeze" (also where it is missing) or "freeze". A
        column `when` holds a `Plateau` in the rows that have no time. A column `lr_mult` holds factors on the learning
        rate, missing where there is none. A time may come once for each action. Other columns are left alone. None, and
        a table without rows and columns, have no rows. A mapping of columns and a list of records are made a DataFrame
        first; a list of tables is read one after the other.

    Returns
    -------
    tuple of Row
        In the order of the table.

    Raises
    ------
    TypeError, ValueError
        If a table breaks a rule. The message names column, row, value, rule and remedy.

    Examples
    --------
    >>> from mlr3torch_py import select_all
    >>> read_table({"epoch": [2], "weights": [select_all()]})
    (Row(position=0, time=2, unit='epoch', weights=select_all(), action='unfreeze', lr_mult=None),)
    >>> read_table({"epoch": [-1], "weights": [select_all()]})
    Traceback (most recent call last):
        ...
    ValueError: `unfreeze`: row 0 has epoch -1; epochs count from 1, so give a later one
    """
    rows: list[Row] = []
    for table in _tables(unfreeze):
        rows.extend(_read_frame(_as_frame(table), len(rows)))
    first: dict[object, int] = {}
    for row in rows:
        key = (row.unit, row.time, row.action)
        if not isinstance(row.time, Plateau) and first.setdefault(key, row.position) != row.position:
            raise ValueError(
                f"`unfreeze`: rows {first[key]} and {row.position} both have {row.unit} {row.time}; a time may come "
                f"once for each action, so join their selectors by `|` in one row"
            )
    return tuple(rows)


def _tables(unfreeze: object) -> Sequence[object]:
    if _is_list(unfreeze) and not all(_is_record(part) for part in unfreeze):
        return unfreeze
    return [unfreeze]


def _is_list(given: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes))


def _is_record(part: object) -> bool:
    return isinstance(part, Mapping) and not pd.api.types.is_list_like(part.get("weights"))


def _as_frame(table: object) -> pd.DataFrame:
    if table is None:
        return pd.DataFrame()
    if isinstance(table, pd.DataFrame):
        return table
    data: Any
    if isinstance(table, Mapping):
        data = {name: list(column) if isinstance(column, Sequence) else column for name, column in table.items()}
    elif _is_list(table) and all(isinstance(record, Mapping) for record in table):
        data = [dict(record) for record in table]
    else:
        raise TypeError(f"`unfreeze` is {table!r} ({type(table).__name__}); it must be {_FORM}")
    try:
        return pd.DataFrame(data)
    except ValueError as error:
        raise ValueError(
            f"`unfreeze` makes no table ({error}); give every column a list of the same length, "
            "as in {'epoch': [2], 'weights': [select_all()]}"
        ) from error


def _read_frame(frame: pd.DataFrame, start: int) -> Iterator[Row]:
    columns = list(frame.columns)
    if not columns:
        return
    for one, other in combinations(columns, 2):
        if one == other and one in _COLUMNS:
            raise ValueError(f"`unfreeze`: the column `{one}` is there more than once; keep one")
    for column_name in (name for name in columns if name not in _COLUMNS):
        meant = difflib.get_close_matches(str(column_name), _COLUMNS, n=1, cutoff=0.75)
        if meant and meant[0] not in columns:
            raise ValueError(f"`unfreeze` has the column {column_name!r}; did you mean {meant[0]!r}?")
    if "weights" not in columns:
        raise ValueError(f"`unfreeze` has the columns {columns} and no `weights`; it must be {_FORM}")
    units = [unit for unit in _PLURAL if unit in columns]
    if len(units) > 1:
        raise ValueError(
            f"`unfreeze` has both `epoch` and `batch`: drop one, or give two tables in a list; each must be {_FORM}"
        )
    if not units and "when" not in columns:
        raise ValueError(f"`unfreeze` has neither `epoch` nor `batch`, but {columns}: add one; it must be {_FORM}")
    unit: Unit = units[0] if units else "epoch"

    def column(name: str) -> list[Any]:
        return frame[name].tolist() if name in columns else [None] * len(frame)

    cells = zip(*map(column, (unit, "when", "weights", "action", "lr_mult")), strict=True)
    for position, (at, when, weights, action, lr_mult) in enumerate(cells, start):
        row_unit, time = _as_time(position, unit, at, when)
        select = as_select(f"`unfreeze`: row {position}, column `weights`,", weights)
        act = _as_action(position, action)
        yield Row(position, time, row_unit, select, act, _as_factor(position, lr_mult, act))


def _as_time(position: int, unit: Unit, at: Any, when: Any) -> tuple[Unit, int | Plateau]:
    place = f"`unfreeze`: row {position}"
    if not _is_missing(when):
        if not isinstance(when, Plateau):
            raise TypeError(f"{place}, column `when`, is {when!r}; it must be a Plateau, such as {Plateau()!r}")
        if not _is_missing(at):
            raise ValueError(f"{place} has {unit} {at!r} and the condition {when!r}; keep one of them")
        return "epoch", when
    if _is_missing(at):
        raise ValueError(f"{place} has no {unit}; every row needs one, so drop the row or fill in a whole number")
    if isinstance(at, bool) or not isinstance(at, (int, float, np.integer, np.floating)):
        raise TypeError(f"{place} has {unit} {at!r} ({type(at).__name__}); give a whole number, such as 2")
    time = whole(at)
    if time is None:
        raise ValueError(f"{place} has {unit} {at!r}; give a whole number, such as 2")
    if time < 0:
        raise ValueError(f"{place} has {unit} {at!r}; {_PLURAL[unit]} count from 1, so give a later one")
    return unit, time


def _as_action(position: int, action: Any) -> Action:
    if _is_missing(action):
        return "unfreeze"
    if action not in get_args(Action):
        known = nearest([str(action)], get_args(Action))
        raise ValueError(f"`unfreeze`: row {position} has the action {action!r}; {known}")
    return action  # type: ignore[no-any-return]


def _as_factor(position: int, lr_mult: Any, action: Action) -> float | None:
    place = f"`unfreeze`: row {position} has the lr_mult {lr_mult!r}"
    if _is_missing(lr_mult):
        return None
    if isinstance(lr_mult, bool) or not isinstance(lr_mult, (int, float, np.integer, np.floating)):
        raise TypeError(f"{place} ({type(lr_mult).__name__}); give a factor on the learning rate, such as 0.1")
    if not 0 < lr_mult < math.inf:
        raise ValueError(f"{place}; give a factor above 0, or freeze the weights")
    if action == "freeze":
        raise ValueError(f"{place}, but freezes; give the factor in a row that unfreezes")
    return float(lr_mult)


def _is_missing(cell: Any) -> bool:
    return (
        cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, (float, np.floating)) and math.isnan(cell))
    )
