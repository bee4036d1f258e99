"""Selectors, conditions and tables as plain data, for JSON and YAML, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import pandas as pd

from mlr3torch_py.names import nearest
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import COLUMNS, TIMES, Row, read_table
from mlr3torch_py.select.algebra import SELECTORS, Select, plain_name
from mlr3torch_py.select.value import fields_of

__all__ = ["from_dict", "to_dict"]


def to_dict(value: Any) -> Any:
    """Turn selectors, conditions and tables into plain data.

    Parameters
    ----------
    value : Select, Plateau, or what `CallbackSetUnfreeze` takes as `unfreeze`

    Returns
    -------
    dict or list
        Only dictionaries, lists, strings, numbers, booleans and None. A selector has a key ``fn``, a condition a key
        ``monitor``; a table maps its columns to lists, and several tables are a list.

    Raises
    ------
    TypeError, ValueError
        If the value is none of these, or a selector holds what is no plain data, such as a type outside of
        ``torch.nn``.

    See Also
    --------
    from_dict

    Examples
    --------
    >>> from mlr3torch_py import select_name
    >>> to_dict({"epoch": [2], "weights": [~select_name("0.bias")]})["weights"]
    [{'fn': 'invert', 'select': {'fn': 'name', 'param_names': ['0.bias'], 'assert_present': True}}]
    """
    if isinstance(value, Select):
        return _select_to_dict(value)
    if isinstance(value, Plateau):
        return fields_of(value)
    tables = [_table_to_dict(name, list(rows)) for name, rows in groupby(read_table(value), key=_time_column)]
    return tables[0] if len(tables) == 1 else tables


def from_dict(data: Any) -> Any:
    """Turn plain data into selectors, conditions and tables.

    Parameters
    ----------
    data : dict or list

    Returns
    -------
    Select, Plateau, pandas.DataFrame or list of pandas.DataFrame

    Raises
    ------
    TypeError, ValueError
        If the data is not what `to_dict` returns.

    See Also
    --------
    to_dict

    Examples
    --------
    >>> from_dict({"fn": "prefix", "prefixes": ["encoder"]})
    select_prefix('encoder')
    >>> from_dict({"epoch": [2], "weights": [{"fn": "all"}]})
       epoch       weights
    0      2  select_all()
    """
    if isinstance(data, Sequence) and not isinstance(data, str):
        is_records = data and all(isinstance(part, Mapping) and "fn" in part.get("weights", ()) for part in data)
        return from_dict(pd.DataFrame(list(data)).to_dict("list")) if is_records else [from_dict(part) for part in data]
    if not isinstance(data, Mapping):
        raise TypeError(f"`data` is {data!r}; it must be what to_dict() returns")
    try:
        return _from_mapping(data)
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"`data` is {data!r}, which lacks or misnames {error}; it must be what to_dict() returns"
        ) from error


def _from_mapping(data: Mapping[str, Any]) -> Any:
    if "fn" in data:
        return _select_from_dict(data)
    if "monitor" in data:
        return Plateau(**_fields(Plateau, data))
    known = (*TIMES, *(column.name for column in COLUMNS))
    table = pd.DataFrame(
        {name: list(map(_read, column)) if name in known else list(column) for name, column in data.items()}
    )
    read_table(table)
    return table


def _time_column(row: Row) -> str:
    return "when" if isinstance(row.time, Plateau) else row.unit


def _table_to_dict(time_column: str, rows: list[Row]) -> dict[str, list[Any]]:
    table = {time_column: [row.time for row in rows]}
    table |= {column.name: [getattr(row, column.name) for row in rows] for column in COLUMNS}
    return {
        name: [to_dict(cell) if isinstance(cell, (Select, Plateau)) else cell for cell in cells]
        for name, cells in table.items()
        if any(cell is not None for cell in cells)
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
    if fn not in SELECTORS:
        raise ValueError(
            f"`fn` is {fn!r}; {nearest([str(fn)], SELECTORS)} "
            "For a selector of your own, first import the module that defines it"
        )
    kind = SELECTORS[fn]
    fields = _fields(kind, data)
    try:
        return kind.from_plain(fields)
    except TypeError as error:
        raise TypeError(f"`data` is {dict(data)!r}: {error}") from error


def _fields(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the fields in plain data."""
    fields = {name: _read(cell) for name, cell in data.items() if name != "fn"}
    known = signature(kind).parameters
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise TypeError(
            f"`data` is {dict(data)!r} with the unexpected keyword argument {unknown[0]!r}; "
            f"{nearest(map(str, unknown), known)}"
        )
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in fields:
            raise KeyError(name)
    return fields


def _read(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        return from_dict(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return tuple(map(_read, cell))
    return cell
