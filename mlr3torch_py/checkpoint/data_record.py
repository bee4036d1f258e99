"""Record which data a run was started with, as far as that is cheap."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from skorch.dataset import get_len
from torch.utils.data import Dataset
from xxhash import xxh3_128

__all__ = ["record_of", "same_data", "split_of"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_METHOD: Final = "xxh3_128:"


def record_of(X: Any, y: Any) -> dict[str, Any]:
    """Return the number of rows and a hash of the targets, or of all values if there are no targets.

    Parameters
    ----------
    X : object
        The data, as ``fit`` takes it.
    y : object
        The targets, as ``fit`` takes them.

    Returns
    -------
    dict
        ``rows`` and ``targets``, ready for JSON; None for what is not known. Without `y`, ``dataset`` is a hash of
        the targets that a Dataset holds, as far as it has attributes with one value per row, or of any other `X`.

    Examples
    --------
    >>> record_of(np.zeros((2, 1)), np.array([0, 1]))
    {'rows': 2, 'targets': 'xxh3_128:43eaa054ef87661c929e26a3ee1e50dc'}
    """
    try:
        rows, targets = get_len(X), None if y is None else np.ascontiguousarray(y)
    except (TypeError, ValueError, RuntimeError):
        return {"rows": None, "targets": None}
    record = {"rows": rows, "targets": None if targets is None else _hash(targets)}
    if y is None:
        record["dataset"] = _hash_of_dataset(X) if isinstance(X, Dataset) else _hash_of_values(X)
    return record


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

    Targets that an older version has hashed, with joblib, are not compared.

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
    return all(recorded[key] == current.get(key) for key in recorded)


def _hash(array: np.ndarray[Any, Any]) -> str | None:
    """Hash type, shape and values; return None for objects that JSON cannot hold."""
    values: bytes | memoryview
    try:
        if array.dtype.hasobject:
            values = json.dumps(array.tolist(), default=_hash_inside_object).encode()
        else:
            values = array.reshape(-1).view(np.uint8).data
    except (TypeError, ValueError):
        return None
    state = xxh3_128(f"{array.dtype.str} {array.shape} ".encode())
    state.update(values)
    return _METHOD + state.hexdigest()


def _hash_inside_object(value: Any) -> str | None:
    if not hasattr(value, "__array__"):
        raise TypeError(f"JSON cannot hold a {type(value).__name__}")
    return _hash(np.ascontiguousarray(value))


def _rows_of(dataset: Any) -> list[Any]:
    indices = getattr(dataset, "indices", None)
    try:
        found = _hash_of_dataset(dataset) if indices is None else _hash(np.ascontiguousarray(indices))
        return [get_len(dataset), found]
    except (TypeError, ValueError, RuntimeError):
        return [None, None]


def _hash_of_values(X: Any) -> str | None:
    """Hash arrays, tensors, tables, and dicts and lists of these; None if something in them has no hash."""
    array = None if isinstance(X, Mapping) else _as_array(X)
    if array is not None:
        return _hash(array)
    if not isinstance(X, Mapping | list | tuple):
        return None
    items = sorted(X.items(), key=lambda item: str(item[0])) if isinstance(X, Mapping) else enumerate(X)
    hashes = [f"{key} {_hash_of_values(value)}" for key, value in items]
    return None if any(one.endswith(" None") for one in hashes) else _hash(np.array(hashes))


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
