"""Record which data a run was started with, as far as that is cheap."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from skorch.dataset import get_len
from xxhash import xxh3_128

__all__ = ["record_of", "same_data"]

logger = logging.getLogger("mlr3torch_py")

_METHOD: Final = "xxh3_128:"


def record_of(X: Any, y: Any) -> dict[str, Any]:
    """Return the number of rows and a hash of the targets.

    Parameters
    ----------
    X : object
        The data, as ``fit`` takes it.
    y : object
        The targets, as ``fit`` takes them.

    Returns
    -------
    dict
        ``rows`` and ``targets``, ready for JSON; None for what is not known.

    Examples
    --------
    >>> record_of(np.zeros((2, 1)), np.array([0, 1]))
    {'rows': 2, 'targets': 'xxh3_128:43eaa054ef87661c929e26a3ee1e50dc'}
    """
    try:
        rows, targets = get_len(X), None if y is None else np.ascontiguousarray(y)
    except (TypeError, ValueError, RuntimeError):
        return {"rows": None, "targets": None}
    return {"rows": rows, "targets": None if targets is None else _hash(targets)}


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
    return recorded == current


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
