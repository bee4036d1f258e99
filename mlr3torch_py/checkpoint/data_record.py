"""Record which data a run was started with, as far as that is cheap."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import date, time, timedelta
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from skorch.dataset import get_len
from torch.utils.data import Dataset
from xxhash import xxh3_128

from mlr3torch_py.network.bits import as_bytes, has_bits

__all__ = ["record_of", "same_data", "split_of"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_METHOD: Final = "xxh3_128:"
_IN_MEMORY: Final = (np.ndarray, torch.Tensor, pd.DataFrame, pd.Series, Mapping, list, tuple)
_MOST_BYTES: Final = 2**28  # of one array, of which all rows are hashed


def record_of(X: Any, y: Any) -> dict[str, Any]:
    """Return the number of rows and hashes of the values of `X` and of the targets.

    Parameters
    ----------
    X : object
        The data, as ``fit`` takes it.
    y : object
        The targets, as ``fit`` takes them.

    Returns
    -------
    dict
        ``rows``, ``targets`` and ``values``, ready for JSON; None for what is not known. Values are those of arrays,
        tensors, tables, and dicts and lists of these, of large ones every n-th row. Without `y`, ``dataset`` is a hash
        of the targets that a Dataset holds, as far as it has attributes with one value per row.

    Examples
    --------
    >>> record_of(np.zeros((2, 1)), np.array([0, 1]))["targets"]
    'xxh3_128:43eaa054ef87661c929e26a3ee1e50dc'
    """
    is_dataset = isinstance(X, Dataset)
    is_read = not is_dataset and (y is None or isinstance(X, _IN_MEMORY) or hasattr(X, "tocoo"))
    record = {
        "rows": _number_of_rows(X),
        "targets": None if y is None else _hash_of_targets(y),
        "values": _hash_of_values(X, is_sampled=True) if is_read else None,
    }
    return record | ({"dataset": _hash_of_dataset(X)} if is_dataset and y is None else {})


def split_of(dataset_train: Any, dataset_valid: Any) -> dict[str, Any]:
    """Return which rows are for training and which for validation.

    Parameters
    ----------
    dataset_train, dataset_valid : torch.utils.data.Dataset or None
        As skorch gives them to callbacks.

    Returns
    -------
    dict
        The number of rows in each part, and hashes of their indices, or of the targets of another dataset, ready for
        JSON; None for what is not known.
    """
    parts = {"train": dataset_train, "valid": dataset_valid}
    return {name: None if part is None else _rows_of(part) for name, part in parts.items()}


def same_data(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Compare two records of data.

    Targets that an older version has hashed, with joblib, are not compared, nor what it has not recorded.

    Parameters
    ----------
    recorded : mapping
        The record in ``run.json``.
    current : mapping
        What `record_of` returned.
    """
    targets = recorded["targets"]
    if targets is not None and not targets.startswith(_METHOD):
        logger.info("only the number of rows is compared: an older version has hashed the targets of this run")
        return bool(recorded["rows"] == current["rows"])
    is_older = "values" not in recorded  # and None for targets that it could not read
    return all(
        recorded[key] == value
        for key, value in current.items()
        if key in recorded and (recorded[key] is not None or (key == "targets" and not is_older))
    )


def _number_of_rows(X: Any) -> int | None:
    try:
        return int(get_len(X))
    except (TypeError, ValueError, RuntimeError):
        return None


def _hash(array: np.ndarray[Any, Any]) -> str | None:
    """Hash type, shape and values; return None for objects that JSON cannot hold."""
    values: bytes | memoryview
    try:
        if array.dtype.hasobject:
            values = json.dumps(array.tolist(), default=_inside_json).encode()
        else:
            values = array.reshape(-1).view(np.uint8).data
    except (TypeError, ValueError):
        return None
    state = xxh3_128(f"{array.dtype.str} {array.shape} ".encode())
    state.update(values)
    return _METHOD + state.hexdigest()


def _inside_json(value: Any) -> Any:
    if isinstance(value, bytes | date | time | timedelta):
        return repr(value)
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if not hasattr(value, "__array__"):
        raise TypeError(f"JSON cannot hold a {type(value).__name__}")
    return _hash_of_values(value)


def _rows_of(dataset: Any) -> list[Any]:
    indices = getattr(dataset, "indices", None)
    try:
        found = _hash_of_dataset(dataset) if indices is None else _hash(np.ascontiguousarray(indices))
        return [get_len(dataset), found]
    except (TypeError, ValueError, RuntimeError):
        return [None, None]


def _hash_of_targets(y: Any) -> str | None:
    """Hash targets as one array, dicts included, or else by their parts."""
    array = _as_array(y)
    return (None if array is None else _hash(array)) or _hash_of_values(y)


def _hash_of_values(value: Any, *, is_sampled: bool = False) -> str | None:
    """Hash arrays, tensors, tables, and dicts and lists of these; None if something in them has no hash."""
    value = _every_nth_row(value) if is_sampled else value
    has_columns = isinstance(value, Mapping) or (isinstance(value, pd.DataFrame) and value.dtypes.nunique() > 1)
    array = None if has_columns else _as_array(value)
    found = None if array is None else _hash(array)
    parts = _parts(value) if found is None else None
    if parts is None:
        return found
    hashes = [f"{key} {_hash_of_values(part, is_sampled=is_sampled)}" for key, part in parts]
    return None if any(one.endswith(" None") for one in hashes) else _hash(np.array(hashes))


def _every_nth_row(value: Any) -> Any:
    """Return the rows of a large array, tensor or table that are hashed."""
    is_table = isinstance(value, pd.DataFrame | pd.Series)
    is_tensor = isinstance(value, torch.Tensor) and not value.is_nested and has_bits(value)
    if not (is_table or is_tensor or isinstance(value, np.ndarray)) or not value.ndim:
        return value
    n_bytes = value.memory_usage().sum() if isinstance(value, pd.DataFrame) else value.nbytes
    rows = slice(None, None, 1 + int(n_bytes) // _MOST_BYTES)
    return value.iloc[rows] if is_table else value[rows]


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return what a value that is not one array of numpy consists of; None if that is not known."""
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, list | tuple):
        return enumerate(value)
    if isinstance(value, pd.DataFrame):
        return enumerate(column for _, column in value.items())
    if hasattr(value, "tocoo"):  # a sparse array of scipy
        entries = value.tocoo()
        return enumerate((entries.shape, entries.row, entries.col, entries.data))
    return enumerate(_parts_of_tensor(value.detach())) if isinstance(value, torch.Tensor) else None


def _parts_of_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout is not torch.strided:
        entries = tensor.to_sparse().coalesce()
        return tuple(entries.shape), entries.indices(), entries.values()
    return (str(tensor.dtype), tuple(tensor.shape), *((as_bytes(tensor),) if has_bits(tensor) else (None,)))


def _hash_of_dataset(dataset: Any) -> str | None:
    """Hash what a dataset holds with one value per row; without any, all that it holds with several values per row."""
    columns = list(_columns(dataset))
    flat = [one for one in columns if one.size == len(one)] or columns
    hashes = [found for one in flat if (found := _hash(one)) is not None]
    return _hash(np.array(hashes)) if hashes else None


def _columns(dataset: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Yield all arrays inside of a dataset that are as long as the dataset that holds them."""
    try:
        n_rows = len(dataset)
    except (TypeError, NotImplementedError):
        return
    for value in vars(dataset).values():
        for one in value if isinstance(value, tuple | list) and len(value) < 100 else (value,):
            if isinstance(one, Dataset):
                yield from _columns(one)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, np.ndarray | torch.Tensor | list) or hasattr(type(one), "__array__"):
                with_rows = _as_array(one)
                if with_rows is not None and with_rows.ndim and len(with_rows) == n_rows:
                    yield with_rows


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    try:
        return np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
