"""Write sets of files, whole or not at all, and detect later changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from filelock import FileLock, Timeout

from mlr3torch_py.names import listed

__all__ = ["DamagedFileError", "SealedFiles", "Writer", "changed", "json_writer", "reading"]

FORMAT: Final = 2
# Worker processes that load data for a killed training hold its lock until they notice, which takes 5 seconds.
LOCK_TIMEOUT: Final = 6.0

Writer = Callable[[BinaryIO, Mapping[str, str]], None]
"""Writes to an open file, given the hashes of the files before it in the set."""

_REMEDY: Final = "restore the original file, or delete it"


class SealedFiles:
    """A folder of file sets, written whole and checked by hash.

    The last file of a set is its seal: JSON that holds the hashes of the others and its own. A set without its seal,
    or with other hashes, is incomplete or was changed.

    Parameters
    ----------
    path : str or os.PathLike

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as path:
    ...     files = SealedFiles(path)
    ...     files.write({
    ...         "a.txt": lambda file, hashes: file.write(b"text"),
    ...         "a.json": json_writer(lambda hashes: {"files": hashes}),
    ...     })
    ...     files.read_json("a.json") == {"files": {"a.txt": files.hash("a.txt")}}
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path).resolve()
        self._lock: FileLock | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def lock(self) -> None:
        """Make the folder and lock it against other runs.

        Raises
        ------
        OSError
            If the folder cannot be written to.
        RuntimeError
            If another run holds the lock.
        """
        if self.is_locked:
            return
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"`path`: {self.path} is a file; give a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=LOCK_TIMEOUT)
        except Timeout as error:
            raise RuntimeError(
                f"`path`: another run is writing to {self.path}; give each run a folder of its own, or end the other"
            ) from error
        except OSError as error:
            raise OSError(f"`path`: nothing can be written to {self.path}: {error}; give another folder") from error
        self._lock = lock
        self._remove_temporary_files()

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def names(self) -> list[str]:
        """List the files, except hidden ones."""
        return [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]

    def write(self, writers: Mapping[str, Writer]) -> None:
        """Write a set of files, all of them or none.

        Parameters
        ----------
        writers : mapping of str to Writer
            By the names of the files, the seal last. Existing files are replaced.

        Raises
        ------
        OSError
            If one cannot be written. A RuntimeError, by which torch reports a full disk, becomes one too.
        """
        hashes: dict[str, str] = {}
        try:
            for name, write in writers.items():
                with self._temporary(name).open("w+b") as file:
                    write(file, hashes)
                    file.flush()
                    os.fsync(file.fileno())
                hashes[name] = _hash(self._temporary(name))
            *others, seal = writers
            if others:  # an old seal must not vouch for a mixture of old and new files
                (self.path / seal).unlink(missing_ok=True)
            for name in writers:
                self._temporary(name).replace(self.path / name)
            self._sync_folder()
        except BaseException as error:
            self._remove_temporary_files()
            if not isinstance(error, OSError | RuntimeError):
                raise
            raise OSError(
                f"`path`: {listed(writers)} cannot be written to {self.path} ({error}) and none is kept; "
                "make room, or give another folder"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def hash(self, name: str) -> str:
        """Return the hash of a file."""
        return _hash(self.path / name)

    def check_hash(self, name: str, expected: str) -> Path:
        """Check the hash of a file, and return its path.

        Raises
        ------
        ValueError
            If the hash differs.
        """
        path = self.path / name
        with reading(path):
            found = self.hash(name)
        if found != expected:
            raise changed(path)
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file written by `json_writer`.

        Raises
        ------
        ValueError
            If it cannot be read, was changed, or has a newer format.
        """
        path = self.path / name
        with reading(path):
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            seal, is_newer = content.pop("sha256"), content["format"] > FORMAT
        if is_newer:
            raise ValueError(
                f"{path} has format {content['format']}, this version of mlr3torch_py reads {FORMAT}; update it"
            )
        if seal != _hash_of_json(content):
            raise changed(path)
        del content["format"]
        return content

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_lock": None}

    def _temporary(self, name: str) -> Path:
        return self.path / f".{name}.tmp"

    def _remove_temporary_files(self) -> None:
        for path in self.path.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()

    def _sync_folder(self) -> None:
        """Make the names of new files survive a power cut, where the system can."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def json_writer(content: Callable[[Mapping[str, str]], Mapping[str, Any]]) -> Writer:
    """Make a writer of JSON, to which it adds a format number and a hash.

    Parameters
    ----------
    content : callable
        Returns the content, given the hashes of the files before it in the set.
    """

    def write(file: BinaryIO, hashes: Mapping[str, str]) -> None:
        sealed = {"format": FORMAT, **content(hashes)}
        file.write(json.dumps({"sha256": _hash_of_json(sealed), **sealed}).encode())

    return write


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into one kind of error.

    Raises
    ------
    ValueError
        It names the file and the remedy.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} is missing; restore it, or give another folder") from error
    except Exception as error:  # of whatever kind: a file may be damaged in any way
        raise DamagedFileError(f"{path} cannot be read: {_first_line(error)}; {_REMEDY}") from error


class DamagedFileError(ValueError):
    """An error that names the file already."""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def changed(path: Path) -> ValueError:
    """Return the error for a file whose hash is wrong."""
    return DamagedFileError(f"{path} has changed since it was written; {_REMEDY}")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
