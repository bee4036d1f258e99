"""Reading tables: the rows of `unfreeze`, each with its time, its weights and its action."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple, cast, get_args

import pandas as pd

from mlr3torch_py.arguments import check_number, check_whole
from mlr3torch_py.names import listed, nearest
from mlr3torch_py.schedule.plateau import Plateau, as_whole
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.check import check_select
from mlr3torch_py.values import is_list, plain, shown

__all__ = ["COLUMNS", "TIMES", "Action", "Column", "From", "Row", "Table", "Unit", "read_table"]

Action = Literal["unfreeze", "freeze"]
From = Literal["start", "row"]
Unit = Literal["epoch", "batch"]

_Columns = Mapping[str, Any]
_Records = Sequence[Mapping[str, Any]]
Table = pd.DataFrame | _Columns | _Records | Sequence[pd.DataFrame | _Columns | _Records | None]
"""What `unfreeze` accepts: a table as a DataFrame, a mapping of columns or a list of records, or several of them."""

_PLURAL: Final[dict[Unit, str]] = {"epoch": "epochs", "batch": "batches"}
TIMES: Final = ("when", *_PLURAL)
_FORM: Final = "a pandas DataFrame with a column `weights` of selectors and one column `epoch` or `batch`"


class Column(NamedTuple):
    """A column of the table, other than those of times.

    Parameters
    ----------
    name : str
        The name of the column, and of the attribute of `Row`.
    read : callable
        Takes the place of the row, for messages, and a cell; returns the value in the row.
    default : object
        The value of an empty cell or a missing column; `dataclasses.MISSING` if it is required.
    """

    name: str
    read: Callable[[str, Any], Any]
    default: Any

    def value(self, place: str, cell: Any) -> Any:
        """Return the value of a cell."""
        return self.default if _is_missing(cell) and self.default is not MISSING else self.read(place, cell)


def _as_weights(place: str, cell: Any) -> Select:
    return check_select(f"{place}, column `weights`,", cell)


def _as_action(place: str, cell: Any) -> Action:
    if not isinstance(cell, str) or cell not in get_args(Action):
        raise ValueError(f"{place} has the action {shown(cell)}; {nearest([str(cell)], get_args(Action))}")
    return cast(Action, cell)


def _as_factor(place: str, cell: Any) -> float:
    factor = "a factor on the learning rate above 0, such as 0.1, or freeze the weights"
    return check_number(f"{place}, column `lr_mult`,", cell, factor, above=0)


def _as_from(place: str, cell: Any) -> From:
    if not isinstance(cell, str) or cell not in get_args(From):
        remedy = "give 'start', for a factor from the first step on, or 'row', for one from the time of the row on"
        kind = ValueError if isinstance(cell, str) else TypeError
        raise kind(f"{place}, column `lr_mult_from`, is {shown(cell)}; {remedy}")
    return cast(From, cell)


def _as_warmup(place: str, cell: Any) -> int:
    return check_whole(f"{place}, column `warmup`,", as_whole(cell), "batches", least=0)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    A new column of the table is one more field here, with its default and its reader.

    Parameters
    ----------
    position : int
        Its number, from 0; tables in a list are numbered through.
    time : int or Plateau
        The epoch or the batch, from 1, or a condition. A row at 0 never takes effect.
    unit : {"epoch", "batch"}
        The unit of `time`; for a condition "epoch", since it is checked when an epoch begins.
    weights : Select
        The weights to unfreeze or freeze.
    action : {"unfreeze", "freeze"}
    lr_mult : float, optional
        A factor on the learning rate of the weights.
    lr_mult_from : {"start", "row"}
        Whether the factor holds from the first step of training, or from the time of the row on.
    warmup : int
        The number of batches in which the learning rate of what the row has made trainable rises from zero.
    """

    position: int
    time: int | Plateau
    unit: Unit
    weights: Select = field(metadata={"read": _as_weights})
    action: Action = field(default="unfreeze", metadata={"read": _as_action})
    lr_mult: float | None = field(default=None, metadata={"read": _as_factor})
    lr_mult_from: From = field(default="start", metadata={"read": _as_from})
    warmup: int = field(default=0, metadata={"read": _as_warmup})

    def __post_init__(self) -> None:
        place = f"`unfreeze`: row {self.position}"
        for column, what in (("lr_mult", "factor"), ("warmup", "warm-up")):
            if self.action == "freeze" and (value := getattr(self, column)):
                raise ValueError(
                    f"{place} has the {column} {value!r}, but freezes; give the {what} in a row that unfreezes"
                )
        if self.lr_mult_from == "row" and self.lr_mult is None:
            raise ValueError(
                f"{place} has the lr_mult_from 'row', but no lr_mult; give the factor, or leave `lr_mult_from` empty"
            )

    def __str__(self) -> str:
        time = f"when {self.time!r}" if isinstance(self.time, Plateau) else f"{self.unit} {self.time}"
        return f"row {self.position} ({time}: {'freeze ' if self.action == 'freeze' else ''}{self.weights!r})"


COLUMNS: Final = tuple(
    Column(one.name, one.metadata["read"], one.default) for one in fields(Row) if "read" in one.metadata
)
_KNOWN: Final = (*TIMES, *(column.name for column in COLUMNS))


def read_table(unfreeze: object) -> tuple[Row, ...]:
    """Check and read an `unfreeze` table, or several.

    Parameters
    ----------
    unfreeze : pandas.DataFrame, mapping, sequence of mappings, sequence of tables, or None
        The column `weights` holds selectors. Exactly one of the columns `epoch` and `batch` holds whole numbers from 1;
        0 is accepted, but never takes effect. A column `action` holds "unfreeze", the default, or "freeze". A column
        `when` holds a `Plateau` in rows without a time. A column `lr_mult` holds factors on the learning rate, or
        nothing; a column `lr_mult_from` says whether they hold from the "start", the default, or from the time of the
        "row" on; a column `warmup` holds numbers of batches. Each time may appear once per action. Other columns are
        ignored. None and an empty table have no rows. A mapping of columns and a list of records are turned into a
        DataFrame; the tables in a list are read in turn.

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
    >>> (row,) = read_table({"epoch": [2], "weights": [select_all()]})
    >>> row.time, row.weights, row.action, row.lr_mult, row.warmup
    (2, select_all(), 'unfreeze', None, 0)
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
                f"`unfreeze`: rows {first[key]} and {row.position} both have {row.unit} {row.time}; each time may "
                f"appear once per action, so join their selectors by `|` in one row"
            )
    return tuple(rows)


def _tables(unfreeze: object) -> Sequence[object]:
    several = unfreeze if is_list(unfreeze) and not all(map(_is_record, unfreeze)) else [unfreeze]
    return [table for table in several if table is not None]


def _is_record(part: object) -> bool:
    return isinstance(part, Mapping) and not pd.api.types.is_list_like(part.get("weights"))


def _as_frame(table: object) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table
    data: Any
    if isinstance(table, Mapping):
        if "starting_weights" in table:
            raise TypeError("`unfreeze` is a whole schedule; give its parts: t_clbk('unfreeze', **schedule)")
        for name, column in table.items():
            if isinstance(column, Iterator):
                place = f"`unfreeze`: the column {name!r}"
                raise TypeError(f"{place} is {shown(column)}, which can be read only once; give a list: list(...)")
        data = {name: list(column) if isinstance(column, Sequence) else column for name, column in table.items()}
    elif is_list(table) and all(isinstance(record, Mapping) for record in table):
        data = [dict(record) for record in table]
    else:
        if hasattr(table, "to_pandas"):
            remedy = "give its columns: table.to_dict(as_series=False) in polars, table.to_pydict() in Arrow"
        else:
            remedy = f"it must be {_FORM}"
        raise TypeError(f"`unfreeze` is {shown(table)} ({type(table).__name__}); {remedy}")
    try:
        return pd.DataFrame(data)
    except OverflowError:  # pandas 2 has no whole numbers beyond 64 bits
        return pd.DataFrame(data, dtype=object)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"`unfreeze` is not a table ({error}); give every column a list of the same length, "
            "as in {'epoch': [2], 'weights': [select_all()]}"
        ) from error


def _read_frame(frame: pd.DataFrame, start: int) -> Iterator[Row]:
    present = list(frame.columns)
    if in_index := [name for name in frame.index.names if name in _KNOWN and name not in present]:
        raise ValueError(f"`unfreeze` has {listed(map(repr, in_index))} in its index; give table.reset_index()")
    if not present:
        return
    _check_columns(present)
    unit = _unit_of(present)

    def cells(name: str) -> list[Any]:
        return frame[name].tolist() if name in present else [None] * len(frame)

    rows = zip(cells(unit), cells("when"), *(cells(column.name) for column in COLUMNS), strict=True)
    for position, (at, when, *row) in enumerate(rows, start):
        place = f"`unfreeze`: row {position}"
        time = _as_time(place, unit, at, when)
        values = {column.name: column.value(place, cell) for column, cell in zip(COLUMNS, row, strict=True)}
        yield Row(position, time, "epoch" if isinstance(time, Plateau) else unit, **values)


def _check_columns(present: list[Any]) -> None:
    for one, other in combinations(present, 2):
        if one == other and one in _KNOWN:
            raise ValueError(f"`unfreeze` has the column `{one}` more than once; keep one")
    for name in present:
        meant = difflib.get_close_matches(str(name), _KNOWN, n=1, cutoff=0.75)
        if name not in _KNOWN and meant and meant[0] not in present:
            raise ValueError(f"`unfreeze` has the column {name!r}; did you mean {meant[0]!r}?")
    for column in COLUMNS:
        if column.default is MISSING and column.name not in present:
            raise ValueError(f"`unfreeze` has the columns {shown(present)} and no `{column.name}`; it must be {_FORM}")


def _unit_of(present: list[Any]) -> Unit:
    units = [unit for unit in _PLURAL if unit in present]
    if len(units) > 1:
        raise ValueError(
            f"`unfreeze` has both `epoch` and `batch`: drop one, or give two tables in a list; each must be {_FORM}"
        )
    if not units and "when" not in present:
        raise ValueError(
            f"`unfreeze` has neither `epoch` nor `batch`, but {shown(present)}: add one; it must be {_FORM}"
        )
    return units[0] if units else "epoch"


def _as_time(place: str, unit: Unit, at: Any, when: Any) -> int | Plateau:
    if not _is_missing(when):
        if not isinstance(when, Plateau):
            raise TypeError(f"{place}, column `when`, is {shown(when)}; it must be a Plateau, such as {Plateau()!r}")
        if not _is_missing(at):
            raise ValueError(f"{place} has {unit} {shown(at)} and the condition {when!r}; keep one of them")
        return when
    if _is_missing(at):
        raise ValueError(f"{place} has no {unit}; drop the row or fill in a whole number")
    time = as_whole(at)
    if isinstance(time, bool) or not isinstance(time, (int, float)):
        raise TypeError(f"{place} has {unit} {shown(at)} ({type(at).__name__}); give a whole number, such as 2")
    if not isinstance(time, int) or time > sys.maxsize:
        raise ValueError(f"{place} has {unit} {shown(at)}; give a whole number, such as 2")
    if time < 0:
        raise ValueError(f"{place} has {unit} {at!r}; {_PLURAL[unit]} count from 1, so give a later one")
    return time


def _is_missing(cell: Any) -> bool:
    cell = plain(cell)
    return cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell))
