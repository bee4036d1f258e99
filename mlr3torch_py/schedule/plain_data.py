"""Selectors and tables as plain data, for JSON and YAML, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Final

import pandas as pd
from torch import nn

from mlr3torch_py.names import as_names, nearest
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import read_table
from mlr3torch_py.select.functions import (
    select_all,
    select_first,
    select_glob,
    select_grep,
    select_invert,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_type,
)
from mlr3torch_py.select.nodes import (
    OPERATORS,
    All,
    Blocks,
    Combined,
    Glob,
    Grep,
    Invert,
    Name,
    Nothing,
    Prefix,
    Select,
    Type,
)
from mlr3torch_py.select.value import fields_of

__all__ = ["from_dict", "to_dict"]

_LEAVES: Final[dict[str, type[Select]]] = {
    "all": All,
    "none": Nothing,
    "name": Name,
    "grep": Grep,
    "glob": Glob,
    "prefix": Prefix,
}


def to_dict(value: Any) -> Any:
    """Write a selector, a condition or a table as plain data.

    Parameters
    ----------
    value : Select, Plateau, or what `CallbackSetUnfreeze` takes as `unfreeze`

    Returns
    -------
    dict or list
        Dictionaries, lists, strings, numbers, booleans and None only. A selector has a key ``fn``, a condition a key
        ``monitor``; a table maps its columns to lists, and several tables are a list.

    Raises
    ------
    TypeError, ValueError
        If the value is no such thing, or a selector names a type that is not in ``torch.nn``.

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
    tables: list[dict[str, list[Any]]] = []
    for row in read_table(value):
        is_condition = isinstance(row.time, Plateau)
        unit = "when" if is_condition else row.unit
        if not tables or unit not in tables[-1]:
            tables.append({unit: [], "weights": [], "action": [], "lr_mult": []})
        tables[-1][unit].append(to_dict(row.time) if is_condition else row.time)
        tables[-1]["weights"].append(to_dict(row.weights))
        tables[-1]["action"].append(row.action)
        tables[-1]["lr_mult"].append(row.lr_mult)
    for table in tables:
        if not any(table["lr_mult"]):
            del table["lr_mult"]
    return tables[0] if len(tables) == 1 else tables


def from_dict(data: Any) -> Any:
    """Read what `to_dict` wrote.

    Parameters
    ----------
    data : dict or list

    Returns
    -------
    Select, Plateau, pandas.DataFrame or list of pandas.DataFrame

    Raises
    ------
    TypeError, ValueError
        If the data has another form.

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
        return Plateau(**data)
    columns = {name: list(column) for name, column in data.items()}
    for name in ("weights", "when"):
        if name in columns:
            columns[name] = [from_dict(cell) if isinstance(cell, Mapping) else None for cell in columns[name]]
    table = pd.DataFrame(columns)
    read_table(table)
    return table


def _select_to_dict(select: Select) -> dict[str, Any]:
    match select:
        case Combined(sign, parts):
            return {"fn": sign, "parts": [to_dict(part) for part in parts]}
        case Invert(inner):
            return {"fn": "invert", "select": to_dict(inner)}
        case Blocks(n, end):
            return {"fn": end, "n": n}
        case Type(module_types):
            names = [module_type.__name__ for module_type in module_types]
            if any(getattr(nn, name, None) is not kind for name, kind in zip(names, module_types, strict=True)):
                raise ValueError(f"{select!r} names a type that is not in torch.nn; select its weights by name instead")
            return {"fn": "type", "module_types": names}
    fn = next(fn for fn, leaf in _LEAVES.items() if isinstance(select, leaf))
    fields = fields_of(select)
    return {"fn": fn} | {name: list(cell) if isinstance(cell, tuple) else cell for name, cell in fields.items()}


def _select_from_dict(data: Mapping[str, Any]) -> Select:
    arguments = {name: value for name, value in data.items() if name != "fn"}
    fn = data["fn"]
    if fn in OPERATORS:
        return reduce(OPERATORS[fn], map(from_dict, arguments["parts"]))  # type: ignore[no-any-return]
    if fn == "invert":
        return select_invert(from_dict(arguments["select"]))
    if fn == "prefix":
        return select_prefix(*as_names("prefixes", arguments["prefixes"]))
    if fn == "type":
        return select_type(*(getattr(nn, name) for name in as_names("module_types", arguments["module_types"])))
    makers = {
        "all": select_all,
        "none": select_none,
        "name": select_name,
        "grep": select_grep,
        "glob": select_glob,
        "first": select_first,
        "last": select_last,
    }
    if fn not in makers:
        raise ValueError(f"`fn` is {fn!r}; {nearest([str(fn)], [*makers, 'invert', 'prefix', 'type', *OPERATORS])}")
    try:
        select: Select = makers[fn](**arguments)  # type: ignore[operator]
    except TypeError as error:
        raise TypeError(f"`data` is {dict(data)!r}: {error}") from error
    return select
