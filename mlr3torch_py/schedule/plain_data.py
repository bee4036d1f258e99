"""Selectors, conditions, schedules and tables as plain data, for JSON and YAML, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import signature
from itertools import groupby
from typing import Any, Final

import pandas as pd

from mlr3torch_py.names import nearest
from mlr3torch_py.nesting import is_nested_beyond
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.ready_made import READY_MADE
from mlr3torch_py.schedule.table import COLUMNS, TIMES, Row, read_table
from mlr3torch_py.schedule.value import Schedule
from mlr3torch_py.select.base import SELECTORS, Select, check_nesting, plain_name
from mlr3torch_py.select.value import fields_of
from mlr3torch_py.values import is_list, shown

__all__ = ["check_depth", "from_dict", "to_dict"]

_DEEPEST: Final = 200

# Columns that hold nothing but this are not written.
_LEFT_OUT: Final = {column.name: column.default for column in COLUMNS if column.name.startswith(("lr_", "warmup"))}


def to_dict(value: Any) -> Any:
    """Turn selectors, conditions, schedules and tables into plain data.

    Parameters
    ----------
    value : Select, Plateau, Schedule, or what `CallbackSetUnfreeze` takes as `unfreeze`

    Returns
    -------
    dict or list

    Raises
    ------
    TypeError, ValueError
        If the value is none of these, or a selector holds what is no plain data.
    """
    if isinstance(value, Select):
        check_nesting("value", value)
        return _select_to_dict(value)
    if isinstance(value, Plateau):
        return fields_of(value)
    if isinstance(value, Schedule):
        return _schedule_to_dict(value)
    try:
        read = read_table(value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`unfreeze`", "`value`")) from error
    tables = [_table_to_dict(name, list(rows)) for name, rows in groupby(read, key=_time_column)]
    return tables[0] if len(tables) == 1 else tables


def from_dict(data: Any) -> Any:
    """Turn plain data into selectors, conditions, schedules and tables.

    Parameters
    ----------
    data : dict or list

    Returns
    -------
    Select, Plateau, Schedule, pandas.DataFrame or list of pandas.DataFrame

    Raises
    ------
    TypeError, ValueError
        If the data is not what `to_dict` returns.
    """
    check_depth("data", data)
    try:
        return _from_plain(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if "`data`" in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`data` is {shown(data)}, which cannot be read: {error}") from error


def check_depth(argument: str, data: object) -> None:
    """Check that data is not nested too deeply to be read.

    Parameters
    ----------
    argument : str
        What the message calls it.
    data : object
        Of mappings and sequences, which may contain themselves.

    Raises
    ------
    ValueError
        If more than 200 of them are nested in each other, or there are more than a million.
    """
    if is_nested_beyond(_DEEPEST, data, _parts_of):
        raise ValueError(f"`{argument}` is nested more than {_DEEPEST} deep, or endless; give what to_dict() returns")


def _parts_of(data: object) -> Collection[Any]:
    return data.values() if isinstance(data, Mapping) else data if is_list(data) else ()


def _from_plain(data: Any) -> Any:
    if is_list(data):
        is_records = data and all(isinstance(part, Mapping) and _is_select(part.get("weights")) for part in data)
        return _from_plain(pd.DataFrame(list(data)).to_dict("list")) if is_records else list(map(_from_plain, data))
    if not isinstance(data, Mapping):
        raise TypeError(f"`data` is {shown(data)}; give what to_dict() returns")
    try:
        return _from_mapping(data)
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"`data` is {shown(data)}, which lacks or misnames {error}; give what to_dict() returns"
        ) from error


def _is_select(data: object) -> bool:
    return isinstance(data, Mapping) and "fn" in data


def _from_mapping(data: Mapping[str, Any]) -> Any:
    if "fn" in data:
        return _select_from_dict(data)
    if isinstance(data.get("schedule"), str):
        return _schedule_from_dict(data)
    if "monitor" in data:
        return Plateau(**_fields(Plateau, data))
    known = (*TIMES, *(column.name for column in COLUMNS))
    for name, column in data.items():
        if not is_list(column):
            raise TypeError(f"`data` has the column {shown(name)}, which is {shown(column)}; give a list")
    table = pd.DataFrame(
        {name: list(map(_read, column)) if name in known else list(column) for name, column in data.items()}
    )
    try:
        read_table(table)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`unfreeze`", "`data`")) from error
    return table


def _schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    if READY_MADE.get(schedule.fn) is not type(schedule):
        raise TypeError(f"{schedule!r} cannot be written as plain data; only the ready-made schedules can")
    return {"schedule": schedule.fn} | {name: _cell_to_plain(cell) for name, cell in schedule.given.items()}


def _cell_to_plain(cell: Any) -> Any:
    if isinstance(cell, Select):
        return to_dict(cell)
    return list(map(_cell_to_plain, cell)) if isinstance(cell, tuple) else cell


def _schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    fn = data["schedule"]
    if fn not in READY_MADE:
        raise ValueError(f"`data`: `schedule` is {shown(fn)}; {nearest([fn], READY_MADE)}")
    fields = _fields(READY_MADE[fn], {name: cell for name, cell in data.items() if name != "schedule"})
    return READY_MADE[fn](**fields)


def _time_column(row: Row) -> str:
    return "when" if isinstance(row.time, Plateau) else row.unit


def _table_to_dict(time_column: str, rows: list[Row]) -> dict[str, list[Any]]:
    table = {time_column: [row.time for row in rows]}
    table |= {column.name: [getattr(row, column.name) for row in rows] for column in COLUMNS}
    return {
        name: [to_dict(cell) if isinstance(cell, (Select, Plateau)) else cell for cell in cells]
        for name, cells in table.items()
        if any(cell != _LEFT_OUT.get(name) for cell in cells)
    }


def _select_to_dict(select: Select) -> dict[str, Any]:
    kind = type(select)
    fn = plain_name(kind.fn)
    known = SELECTORS.get(fn)
    if known is not kind:
        reason = (
            "its class is not decorated; decorate it with mlr3torch_py.select.selector"
            if known is None
            else f"{known.__module__}.{known.__qualname__} has the same `fn`, {kind.fn!r}; give its class another one"
        )
        raise TypeError(f"{select!r} cannot be written as plain data, since {reason}")
    return {"fn": fn} | {name: _write(select, name, cell) for name, cell in select.to_plain().items()}


def _write(select: Select, name: str, cell: Any) -> Any:
    if isinstance(cell, Select):
        return _select_to_dict(cell)
    if isinstance(cell, (tuple, list)):
        return [_write(select, name, one) for one in cell]
    if cell is None or isinstance(cell, (str, bool, int, float)):
        return cell
    raise TypeError(
        f"{select!r} cannot be written as plain data, since its `{name}` is {cell!r}; "
        f"define to_plain and from_plain in {type(select).__qualname__}"
    )


def _select_from_dict(data: Mapping[str, Any]) -> Select:
    fn = data["fn"]
    if not isinstance(fn, str) or fn not in SELECTORS:
        raise ValueError(
            f"`data`: `fn` is {shown(fn)}; {nearest([str(fn)], SELECTORS)} "
            "For a selector of your own, first import the module that defines it"
        )
    kind = SELECTORS[fn]
    fields = _fields(kind, data)
    try:
        return kind.from_plain(fields)
    except TypeError as error:
        raise TypeError(f"`data` is {shown(dict(data))}: {error}") from error


def _fields(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the fields in plain data."""
    fields = {name: _read(cell) for name, cell in data.items() if name != "fn"}
    known = signature(kind).parameters
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise TypeError(
            f"`data` is {shown(dict(data))} with the unexpected keyword argument {unknown[0]!r}; "
            f"{nearest(map(str, unknown), known)}"
        )
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in fields:
            raise KeyError(name)
    return fields


def _read(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        return _from_plain(cell)
    if is_list(cell):
        return tuple(map(_read, cell))
    return cell
