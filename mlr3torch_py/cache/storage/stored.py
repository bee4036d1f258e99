"""What a store of cached rows holds: its parts, their rows, bytes and age; and how to drop some of them."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from mlr3torch_py.arguments import check_number, check_path, check_whole
from mlr3torch_py.cache.storage.disk import FILE, Disk, opened
from mlr3torch_py.cache.storage.shelf import KEY_BYTES, MARK, RECORDS, ROWS
from mlr3torch_py.frames import short_traceback

__all__ = ["FrozenStore", "frozen_store"]

_SECONDS_PER_DAY = 24 * 60 * 60


@dataclass
class _Part:
    """The rows that one frozen part has given."""

    name: str = "unknown"
    used: float = 0.0
    n_rows: int = 0
    n_bytes: int = 0


class FrozenStore:
    """A folder in which ``t_clbk("frozen_cache", store=...)`` keeps rows, as `frozen_store` opens it.

    Parameters
    ----------
    folder : pathlib.Path
        A folder that exists.

    See Also
    --------
    frozen_store : Opens a folder by its path.

    Examples
    --------
    >>> import tempfile
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from mlr3torch_py import select_last, t_clbk
    >>> cache = t_clbk("frozen_cache", store=(folder := tempfile.mkdtemp()))
    >>> unfreeze = t_clbk("unfreeze", starting_weights=select_last(1), frozen_mode="eval")
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> params = {"criterion": nn.CrossEntropyLoss, "max_epochs": 1, "train_split": None, "verbose": 0}
    >>> net = NeuralNetClassifier(network, **params, callbacks=[unfreeze, cache]).fit(X, y)
    >>> store = frozen_store(folder)
    >>> store.parts["rows"].tolist(), store.n_bytes > 149 * 8 * 4
    ([149], True)
    >>> store.prune(unused_days=0)["rows"].tolist(), len(store.parts)
    ([149], 0)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def parts(self) -> pd.DataFrame:
        """The frozen parts of networks, those that were used last first.

        Returns
        -------
        pandas.DataFrame
            The columns are `name`, `rows`, `bytes` and `last_used`, a time in UTC. Parts of the same name differ in
            their weights, settings or inputs.
        """
        return _table(_parts(self._disk).values())

    @property
    def n_bytes(self) -> int:
        """The bytes that the folder takes on disk."""
        return self._disk.n_bytes

    @short_traceback
    def prune(self, *, unused_days: float | None = None, max_bytes: int | None = None) -> pd.DataFrame:
        """Drop the rows of those parts that have not been used for the longest time.

        A training that uses the store at this time computes these rows again. The file stays as large as it is; the
        space is used for other rows.

        Parameters
        ----------
        unused_days : float, optional
            Drop parts that have not been used for so many days; 0 for all.
        max_bytes : int, optional
            Drop parts until the rows of the others take no more than these bytes.

        Returns
        -------
        pandas.DataFrame
            What was dropped, as `parts` shows it.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or both are missing.
        """
        if unused_days is None and max_bytes is None:
            raise ValueError("`unused_days` and `max_bytes` are missing; give at least one, such as unused_days=30")
        days = math.inf
        if unused_days is not None:
            days = check_number("unused_days", unused_days, "a number of days, at least 0", least=0)
        room: float = math.inf if max_bytes is None else check_whole("max_bytes", max_bytes, "bytes", least=0)
        now, dropped = time.time(), {}
        for key, part in sorted(_parts(self._disk).items(), key=lambda item: -item[1].used):
            room -= part.n_bytes
            if room < 0 or now - part.used >= days * _SECONDS_PER_DAY:
                dropped[key] = part
        self._disk.delete(name for key in dropped for kind in (RECORDS, ROWS) for name in self._disk.keys(kind + key))
        return _table(dropped.values())

    @property
    def _disk(self) -> Disk:
        return opened(self.folder)

    def __repr__(self) -> str:
        parts = self.parts
        held = f"{parts['rows'].sum():,} rows, {self.n_bytes:,} bytes on disk"
        head = f"frozen_store({os.fspath(self.folder)!r}): {held}"
        return head if parts.empty else f"{head}\n{parts.to_string(index=False)}"

    def _repr_html_(self) -> str:
        head = repr(self).partition("\n")[0]
        return f"<p><code>{escape(head)}</code></p>{self.parts.to_html(index=False)}"


@short_traceback
def frozen_store(folder: str | os.PathLike[str]) -> FrozenStore:
    """Open a folder in which ``t_clbk("frozen_cache", store=...)`` keeps rows, to look at it or to drop some of them.

    Parameters
    ----------
    folder : str or path-like

    Returns
    -------
    FrozenStore
        It prints as a table: for each frozen part of a network the rows, their bytes and when they were last used. Its
        method ``prune`` drops rows.

    Raises
    ------
    ImportError
        If lmdb is not installed; the message has the line that installs it.
    TypeError, ValueError
        If `folder` is no path, or no such folder.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from mlr3torch_py import select_last, t_clbk
    >>> folder = mkdtemp()
    >>> freezing = t_clbk("unfreeze", starting_weights=select_last(1), frozen_mode="eval")
    >>> callbacks = [freezing, t_clbk("frozen_cache", store=folder)]
    >>> net = iris_net(module__neurons=(8,), max_epochs=2, callbacks=callbacks).fit(X, y)
    >>> store = frozen_store(folder)
    >>> [int(n) for n in store.parts["rows"]]
    [149]
    >>> dropped = store.prune(unused_days=0)
    >>> len(store.parts)
    0
    """
    path = check_path("folder", folder)
    if not (path / FILE).is_file():
        raise ValueError(
            f"`folder` is {os.fspath(folder)!r}, which holds no rows; give the folder that was given to "
            "t_clbk('frozen_cache', store=...)"
        )
    return FrozenStore(path)


def _parts(disk: Disk) -> dict[bytes, _Part]:
    """Read what a store holds, by the hash of what computes it."""
    found: defaultdict[bytes, _Part] = defaultdict(_Part)
    n_rows: Counter[bytes] = Counter()  # by the hash, and the position of the tensor in the output
    for name, n_bytes in disk.sizes(ROWS):
        key = name[len(ROWS) :][: KEY_BYTES + 1]
        found[key[:KEY_BYTES]].n_bytes += len(name) + n_bytes
        n_rows[key] += key[KEY_BYTES] != MARK
    for key, n in n_rows.items():
        found[key[:KEY_BYTES]].n_rows = max(n, found[key[:KEY_BYTES]].n_rows)
    records = disk.keys(RECORDS)
    for name, value in zip(records, disk.get(records), strict=True):
        part, record = found[name[len(RECORDS) :][:KEY_BYTES]], json.loads(value or b"{}")
        part.name, part.used = record.get("name", part.name), max(part.used, record.get("used", 0.0))
        part.n_bytes += len(name) + len(value or b"")
    return dict(found)


def _table(parts: Iterable[_Part]) -> pd.DataFrame:
    """Show parts, but for those that only pass something on to the next one."""
    shown = sorted((part for part in parts if part.n_rows), key=lambda part: -part.used)
    return pd.DataFrame(
        {
            "name": pd.Series([part.name for part in shown], dtype="object"),
            "rows": pd.Series([part.n_rows for part in shown], dtype="int64"),
            "bytes": pd.Series([part.n_bytes for part in shown], dtype="int64"),
            "last_used": pd.to_datetime(
                pd.Series([part.used for part in shown], dtype="float64"), unit="s", utc=True
            ).dt.round("s"),
        }
    )
