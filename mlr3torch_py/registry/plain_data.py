"""Selectors, conditions, tables and callbacks as plain data, for JSON and YAML, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard, overload

import pandas as pd

from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import nearest
from mlr3torch_py.registry.dictionary import mlr3torch_callbacks
from mlr3torch_py.registry.torch_callback import TorchCallback, check_id, parameters_of
from mlr3torch_py.schedule import plain_data
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.table import Table
from mlr3torch_py.schedule.value import Schedule
from mlr3torch_py.select.base import Select
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.values import plain, shown

__all__ = ["from_dict", "to_dict"]

_KEYS: Final = ("callback", "id", "weight", "params")


@overload
def to_dict(  # type: ignore[overload-overlap] # nothing is a callback and a sequence
    value: Select | Plateau | TorchCallback | CallbackSet | pd.DataFrame,
) -> dict[str, Any]: ...
@overload
def to_dict(value: Sequence[TorchCallback | CallbackSet]) -> list[dict[str, Any]]: ...
@overload
def to_dict(value: Mapping[str, Any]) -> dict[str, Any]: ...
@overload
def to_dict(value: Table | None) -> dict[str, Any] | list[dict[str, Any]]: ...
@short_traceback
def to_dict(value: Any) -> Any:
    """Turn selectors, conditions, tables and callbacks into plain data.

    Parameters
    ----------
    value : Select, Plateau, Schedule, table of `CallbackSetUnfreeze`, a callback, or a list of callbacks

    Returns
    -------
    dict or list
        Only dictionaries, lists, strings, numbers, booleans and None. A selector has a key ``fn``, a condition a key
        ``monitor``, a schedule a key ``schedule``, a callback a key ``callback`` and its parameters under ``params``; a
        table maps its columns to lists. Several tables or callbacks are a list.

    Raises
    ------
    TypeError, ValueError
        If the value is none of these, or holds what is no plain data, such as a type outside of ``torch.nn`` or a
        function.

    See Also
    --------
    from_dict

    Examples
    --------
    >>> from mlr3torch_py import Freezer, select_name
    >>> to_dict({"epoch": [2], "weights": [~select_name("0.bias")]})["weights"]
    [{'fn': 'invert', 'select': {'fn': 'name', 'param_names': ['0.bias'], 'assert_present': True}}]
    >>> to_dict(Freezer("0.weight", until_epoch=5))
    {'callback': 'freezer', 'params': {'names': '0.weight', 'until_epoch': 5}}
    """
    if isinstance(value, (TorchCallback, CallbackSet)):
        return _callback_to_dict(value)
    if isinstance(value, Sequence) and value and all(isinstance(one, (TorchCallback, CallbackSet)) for one in value):
        return [_callback_to_dict(one) for one in value]
    return plain_data.to_dict(value)


@short_traceback
def from_dict(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
    """Turn plain data into selectors, conditions, tables and callbacks.

    Parameters
    ----------
    data : dict or list

    Returns
    -------
    Select, Plateau, Schedule, pandas.DataFrame, CallbackSet, TorchCallback, or list of these

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
    >>> from_dict({"callback": "freezer", "params": {"names": "0.weight", "until_epoch": 5}})
    Freezer(names='0.weight', until_epoch=5)
    """
    plain_data.check_depth("data", data)
    if _is_callback(data):
        return _callback_from_dict(data)
    if isinstance(data, Sequence) and data and all(map(_is_callback, data)):
        return [_callback_from_dict(one) for one in data]
    return plain_data.from_dict(data)


def _is_callback(data: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(data, Mapping) and "callback" in data


def _callback_to_dict(value: TorchCallback | CallbackSet) -> dict[str, Any]:
    callback = value.callback if isinstance(value, TorchCallback) else value
    key = mlr3torch_callbacks.key_of(type(callback))
    if key not in mlr3torch_callbacks:
        raise TypeError(
            f"`value` is a {type(callback).__name__}, which has no key; add its class to mlr3torch_callbacks first"
        )
    data: dict[str, Any] = {"callback": key}
    if isinstance(value, TorchCallback):
        data["id"] = value.id
    if callback.weight_ is not None:
        data["weight"] = callback.weight_
    defaults = parameters_of(type(callback))
    given = callback.get_params(deep=False).items()
    return data | {
        "params": {
            name: _write(f"`value`: the parameter `{name}`", cell)
            for name, cell in given
            if cell is not REQUIRED and cell is not defaults.get(name, REQUIRED)
        }
    }


def _write(place: str, cell: Any) -> Any:
    cell = plain(cell)
    if cell is None or isinstance(cell, (str, bool, int, float)):
        return cell
    if isinstance(cell, os.PathLike):
        return os.fspath(cell)
    is_table = isinstance(cell, (pd.DataFrame, Mapping)) or (isinstance(cell, Sequence) and any(map(_is_table, cell)))
    if is_table or isinstance(cell, (Select, Plateau, Schedule)):
        return plain_data.to_dict(cell)
    if isinstance(cell, Sequence):
        return [_write(place, one) for one in cell]
    raise TypeError(f"{place} is {shown(cell)}, which is no plain data; give a string, a number, a selector or a table")


def _is_table(cell: object) -> bool:
    return isinstance(cell, (pd.DataFrame, Mapping))


def _callback_from_dict(data: Mapping[str, Any]) -> TorchCallback | CallbackSet:
    unknown = [name for name in data if name not in _KEYS]
    if unknown:
        raise ValueError(f"`data` has the key {shown(unknown[0])}; {nearest(map(str, unknown), _KEYS)}")
    params = data.get("params", {})
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise TypeError(f"`data`: `params` is {shown(params)}; give a mapping of names to parameters")
    try:
        read = {name: _read(cell) for name, cell in params.items()}
        made = mlr3torch_callbacks.get(data["callback"], weight=data.get("weight"), **read)
        if "id" not in data:
            return made.callback
        check_id("id", data["id"])
        return TorchCallback(data["id"], made.callback)
    except (TypeError, ValueError, KeyError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`data` is {shown(dict(data))}, which cannot be read: {error.args[0]}") from error


def _read(cell: Any) -> Any:
    is_tables = isinstance(cell, Sequence) and not isinstance(cell, str) and cell and all(map(_is_table, cell))
    return plain_data.from_dict(cell) if isinstance(cell, Mapping) or is_tables else cell
