"""Values by key in a folder, which all threads and processes of a machine share."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from xxhash import xxh3_64_digest

from mlr3torch_py.cache.storage.mounts import network_file_system
from mlr3torch_py.warn import warn

__all__ = ["FILE", "Disk", "opened"]

T = TypeVar("T")

FILE: Final = "rows.lmdb"
_N_CHECK: Final = 8
_MAX_READERS: Final = 1024
_PAGE: Final = 4096
_N_META_PAGES: Final = 2
_PORTION: Final = 2**22
_SPARE: Final = 2**24
_lock = threading.Lock()
_open: Final[dict[str, Disk]] = {}
_warned_of: Final[set[str]] = set()


class Disk:
    """Values by key in one file of LMDB, read by memory map.

    Values are written whole or not at all, and each with a checksum, so that whatever was killed while it wrote leaves
    a file that opens, without a wrong value.

    Parameters
    ----------
    folder : Path
    max_bytes : int or None
        The bytes that the file may take; None to leave it as it is.

    Raises
    ------
    ImportError
        If lmdb is not installed.
    ValueError
        If the file cannot be opened, or much of it is missing.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self._lmdb = _lmdb()
        self._lock = threading.Lock()  # no transaction may be open while the map grows
        self.path: Path = folder / FILE
        self._max_bytes = -_PAGE * (-(max_bytes or 0) // _PAGE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._environment = self._lmdb.open(
                os.fspath(self.path),
                subdir=False,
                map_size=max(self._max_bytes, _PAGE),
                metasync=False,  # a crash of the machine may cost the last write, not more
                max_readers=_MAX_READERS,
                readahead=False,
            )
            self._environment.reader_check()
        except (self._lmdb.Error, OSError) as error:
            raise ValueError(
                f"frozen_cache: the store {folder} cannot be opened: {error}; name another folder"
            ) from error
        self._process = os.getpid()
        self._inode = self.path.stat().st_ino
        self._check_size()

    def _check_size(self) -> None:
        """Check that the file has room for the pages in use, since to read one beyond its end would end the process.

        It may be shorter than the last page that was ever used, which is not written if it is free by then.
        """
        stat = self._environment.stat()
        n_pages = _N_META_PAGES + sum(stat[f"{kind}_pages"] for kind in ("branch", "leaf", "overflow"))
        missing = n_pages * stat["psize"] - self.path.stat().st_size
        if missing > 0:
            self.close()
            raise ValueError(
                f"frozen_cache: the store {self.path.parent} is damaged: {missing:,} bytes or more are missing at the "
                "end of its file; delete it or name another folder"
            )

    @property
    def is_ours(self) -> bool:
        """Whether its file still is what was opened, by this process."""
        try:
            return self.path.stat().st_ino == self._inode and self._process == os.getpid()
        except OSError:
            return False

    @property
    def n_bytes(self) -> int:
        """The bytes that the file takes."""
        try:
            status = self.path.stat()
        except OSError:
            return 0
        return min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))

    def allow(self, max_bytes: int) -> None:
        """Let the file take more bytes."""
        with self._lock:
            if max_bytes > self._max_bytes:
                self._max_bytes = -_PAGE * (-max_bytes // _PAGE)
                self._environment.set_mapsize(self._max_bytes)

    def close(self) -> None:
        """Close the file; a process that was forked closes what it has inherited before it opens it again."""
        with self._lock if self._process == os.getpid() else nullcontext():
            self._environment.close()

    def get(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """Return the values of some keys; None for those that are unknown or damaged."""

        def read(transaction: Any) -> list[bytes | None]:
            return [_checked(key, transaction.get(key)) for key in keys]

        keys = list(keys)
        try:
            return self._within(read)
        except self._lmdb.Error:
            return [None] * len(keys)

    def put(self, values: Mapping[bytes, bytes]) -> str:
        """Write values, in the order in which they are given, until they do not fit.

        Returns
        -------
        str
            Why they could not be written; empty if they were.
        """
        try:
            for portion in _portions(values):
                self._within(partial(_write, values=portion), write=True)
        except self._lmdb.MapFullError:
            return f"it takes the {self._max_bytes:,} bytes that it may"
        except (self._lmdb.Error, OSError) as error:
            return str(error)
        return ""

    def delete(self, keys: Iterable[bytes]) -> None:
        """Delete values; their space is used for others."""
        keys = list(keys)

        def delete(transaction: Any) -> None:
            for key in keys:
                transaction.delete(key)

        try:
            self._within(delete, write=True)
        except self._lmdb.MapFullError:  # pages are copied before they are changed
            self._environment.set_mapsize(self._environment.info()["map_size"] + _SPARE)
            self._within(delete, write=True)

    def keys(self, prefix: bytes) -> list[bytes]:
        """List the keys that begin with some bytes."""
        return [key for key, _ in self.sizes(prefix)]

    def sizes(self, prefix: bytes) -> Sequence[tuple[bytes, int]]:
        """List the keys that begin with some bytes, each with the bytes of its value."""

        def read(transaction: Any) -> list[tuple[bytes, int]]:
            return [(bytes(key), len(value) - _N_CHECK) for key, value in _items(transaction, prefix)]

        return self._within(read)

    def _within(self, work: Callable[[Any], T], write: bool = False) -> T:
        """Do something in a transaction, once more if another process has let the file grow."""
        with self._lock:
            try:
                with self._environment.begin(write=write, buffers=not write) as transaction:
                    return work(transaction)
            except self._lmdb.MapResizedError:
                self._environment.set_mapsize(0)
            with self._environment.begin(write=write, buffers=not write) as transaction:
                return work(transaction)


def _forget_locks() -> None:
    """Leave behind a lock that another thread held when the process was forked."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def opened(folder: Path, max_bytes: int | None = None) -> Disk:
    """Open a folder, or return what this process has opened before.

    Parameters
    ----------
    folder : Path
    max_bytes : int, optional
        The bytes that its file may take.

    Warns
    -----
    UserWarning
        Once, if the folder lies on a network file system.
    """
    place = os.path.realpath(folder)
    _warn_of_network(place)
    with _lock:
        disk = _open.get(place)
        if disk is not None and not disk.is_ours:
            disk.close()
            disk = None
        if disk is None:
            disk = _open[place] = Disk(Path(place), max_bytes)
        elif max_bytes is not None:
            disk.allow(max_bytes)
        return disk


def _warn_of_network(place: str) -> None:
    if place not in _warned_of:
        _warned_of.add(place)
        if kind := network_file_system(Path(place)):
            warn(
                f"frozen_cache: the store {place} lies on a network file system ({kind}), where several machines may "
                "damage it; name a folder on a local disk of each machine, such as store='/var/tmp/features'"
            )


def _lmdb() -> Any:
    try:
        return importlib.import_module("lmdb")
    except ImportError as error:
        raise ImportError(
            "frozen_cache: `store` needs lmdb, which is not installed; pip install 'mlr3torch_py[store]'"
        ) from error


def _portions(values: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """Split values into those that are written at a time."""
    portion: dict[bytes, bytes] = {}
    n_bytes = 0
    for key, value in values.items():
        portion[key] = value
        n_bytes += len(value)
        if n_bytes > _PORTION:
            yield portion
            portion, n_bytes = {}, 0
    yield portion


def _write(transaction: Any, values: Mapping[bytes, bytes]) -> None:
    for key, value in values.items():
        transaction.put(key, xxh3_64_digest(key + value) + value)


def _checked(key: bytes, value: Any) -> bytes | None:
    """Return a value without its checksum; None if that does not fit."""
    if value is None or len(value) < _N_CHECK:
        return None
    content = bytes(value[_N_CHECK:])
    return content if xxh3_64_digest(key + content) == bytes(value[:_N_CHECK]) else None


def _items(transaction: Any, prefix: bytes) -> Iterator[tuple[Any, Any]]:
    cursor = transaction.cursor()
    is_found = cursor.set_range(prefix) if prefix else cursor.first()
    while is_found and bytes(cursor.key()[: len(prefix)]) == prefix:
        yield cursor.item()
        is_found = cursor.next()
