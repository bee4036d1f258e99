"""A folder of checkpoints: sets of files that are written whole or not at all, and read without running code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from filelock import FileLock, Timeout

from mlr3torch_py.checkpoint.portable import from_portable, to_portable
from mlr3torch_py.names import listed

__all__ = ["Checkpoint", "CheckpointFolder"]

FORMAT: Final = 1
# The processes that load the data of a training that was killed hold its lock until they notice, which takes 5 seconds.
LOCK_TIMEOUT: Final = 6.0

_REMEDY: Final = "put back what was written, or remove all files of that number to go on before it"
_MEMBER: Final = re.compile(r"(?:(?:network|optimizer|state|\w+-)(\d+)\.pt|state(\d+)\.json)")
_FILES: Final = {"module": "network{}.pt", "optimizer": "optimizer{}.pt", "callbacks": "state{}.pt"}


class Checkpoint(NamedTuple):
    """What is kept of a training at the end of an epoch.

    Parameters
    ----------
    epoch : int
    parts : mapping
        The state dictionaries of modules, criteria and optimizers by their names in the net, and under ``callbacks``
        the tensors of the state.
    state : mapping
        All else, as JSON.
    """

    epoch: int
    parts: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]

    @classmethod
    def of(cls, epoch: int, weights: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> Checkpoint:
        """Make a checkpoint of state dictionaries, of which empty ones are left out, and of what `to_portable` takes.

        Raises
        ------
        TypeError
            If something in `state` can be kept neither as JSON nor as tensors.
        """
        tensors: dict[str, torch.Tensor] = {}
        written = {key: to_portable(value, key, tensors) for key, value in state.items()}
        parts = {**weights, "callbacks": tensors}
        return cls(epoch, {name: part for name, part in parts.items() if part}, written)

    def contents(self) -> dict[str, Any]:
        """Return the state as it was given."""
        tensors = self.parts.get("callbacks", {})
        return {key: from_portable(value, tensors) for key, value in self.state.items()}


class CheckpointFolder:
    """The checkpoints of one run in one folder.

    A checkpoint of epoch n is ``network<n>.pt``, ``optimizer<n>.pt``, ``state<n>.json``; where a criterion or a further
    module has weights, ``<name>-<n>.pt``, and where a callback keeps tensors, ``state<n>.pt``. The state comes last and
    names the others with their hashes. ``run.json`` is what holds for the whole run.

    Parameters
    ----------
    path : str or os.PathLike

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as path:
    ...     folder = CheckpointFolder(path)
    ...     folder.write(Checkpoint.of(2, {"module": {"weight": torch.ones(1)}}, {"best": 0.5}))
    ...     print(folder.newest(), folder.read(2).contents())
    2 {'best': 0.5}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self._lock: Any = None
        self._parts_that_load: set[str] = set()

    def lock(self) -> None:
        """Make the folder and keep all other runs from writing to it.

        Raises
        ------
        OSError
            If the folder cannot be written to.
        RuntimeError
            If another run writes to it.
        """
        if self._lock is not None:
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
        for left in self.path.glob(".*.tmp"):
            left.unlink()

    def release(self) -> None:
        """Let other runs write to the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def clear_for_new_run(self) -> None:
        """Check that there is nothing in the folder that a new run would mix with, and forget a run that left nothing.

        Raises
        ------
        FileExistsError
            If there are checkpoints, or files of others.
        """
        if self.epochs():
            raise FileExistsError(
                f"`path`: {self.path} holds the checkpoints of another run; "
                "go on with it by `resume=True`, or give a folder that is empty"
            )
        self._check_not_foreign()
        if self.read_run() is not None:
            (self.path / "run.json").unlink()

    def check_none_after(self, epoch: int) -> None:
        """Check that the folder holds no later epoch than one.

        Raises
        ------
        FileExistsError
            If it does.
        """
        newest = max(self.epochs(), default=0)
        if newest > epoch:
            raise FileExistsError(
                f"`path`: {self.path} holds the checkpoint of epoch {newest}, but the net is at epoch {epoch}; "
                "go on with a new net and `resume=True`, or give a folder that is empty"
            )

    def epochs(self) -> list[int]:
        """List the epochs of which there is at least one file, the newest first."""
        found = (_MEMBER.fullmatch(name) for name in self._names())
        return sorted({int(match[1] or match[2]) for match in found if match}, reverse=True)

    def newest(self) -> int | None:
        """Return the epoch of the newest complete checkpoint; None if there is none.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        FileExistsError
            If there are files of others in it.
        ValueError
            If a state cannot be read.

        Warns
        -----
        UserWarning
            For a newer one that lacks a file.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"`resume`: there is no folder {self.path}; give one that holds checkpoints")
        self._check_not_foreign()
        for epoch in self.epochs():
            names = self._names()
            wanted = [*self._state(epoch)["files"]] if f"state{epoch}.json" in names else [f"state{epoch}.json"]
            missing = [name for name in wanted if name not in names]
            if not missing:
                return epoch
            warnings.warn(
                f"{self.path}: the checkpoint of epoch {epoch} lacks {listed(missing)}; it is skipped", stacklevel=2
            )
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint.

        Raises
        ------
        TypeError
            If a state dictionary holds what cannot be loaded again without running code.
        OSError
            If it cannot be written; nothing of it is there then.
        """
        epoch, parts, state = checkpoint
        files: dict[str, dict[str, str]] = {}
        # Where there are remains of a checkpoint that was not complete, the state must not vouch for them.
        (self.path / f"state{epoch}.json").unlink(missing_ok=True)
        try:
            for part, content in parts.items():
                name = _FILES.get(part, part + "-{}.pt").format(epoch)
                with self._temporary(name).open("wb") as file:
                    torch.save(content, file)
                    _sync(file)
                self._check_loads(part, self._temporary(name))
                files[name] = {"part": part, "sha256": _hash(self._temporary(name))}
            self._write_json(f"state{epoch}.json", {"format": FORMAT, "epoch": epoch, "files": files, **state})
            for name in [*files, f"state{epoch}.json"]:
                self._temporary(name).replace(self.path / name)
            self._sync_names()
        except BaseException as error:
            for left in self.path.glob(".*.tmp"):
                with suppress(OSError):
                    left.unlink()
            if not isinstance(error, OSError | RuntimeError):
                raise
            raise OSError(
                f"`path`: the checkpoint of epoch {epoch} could not be written to {self.path}: {error}; "
                "those of earlier epochs are as they were"
            ) from error

    def read(self, epoch: int) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        ValueError
            If a file cannot be read, is not what was written, or has a format that is not known yet.
        """
        state = self._state(epoch)
        del state["epoch"]
        parts = {}
        for name, entry in state.pop("files").items():
            path = self.path / name
            if _hash(path) != entry["sha256"]:
                raise ValueError(f"{path} is not what was written; {_REMEDY}")
            parts[entry["part"]] = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(epoch, parts, state)

    def keep_run(self, content: Mapping[str, Any]) -> None:
        """Write what holds for the whole run, once.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        if (self.path / "run.json").exists():
            return
        try:
            self._write_json("run.json", {"format": FORMAT, **content})
            self._temporary("run.json").replace(self.path / "run.json")
            self._sync_names()
        except OSError as error:
            raise OSError(f"`path`: nothing can be written to {self.path}: {error}; give another folder") from error

    def read_run(self) -> dict[str, Any] | None:
        """Read what holds for the whole run; None if nothing is there.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        return self._read_json("run.json") if (self.path / "run.json").exists() else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}

    def _check_not_foreign(self) -> None:
        names = self._names()
        if names and "run.json" not in names and not self.epochs():
            raise FileExistsError(
                f"`path`: {self.path} holds {listed(sorted(names), most=3)}; give a folder that is empty"
            )

    def _names(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]

    def _temporary(self, name: str) -> Path:
        return self.path / f".{name}.tmp"

    def _check_loads(self, part: str, path: Path) -> None:
        """Check, once, that what torch has saved can be loaded without running code."""
        if part not in self._parts_that_load:
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError as error:
                raise TypeError(
                    f"the state dictionary of `{part}` holds more than tensors and plain values, which a checkpoint "
                    "cannot keep; leave it out of get_extra_state() or state_dict()"
                ) from error
            self._parts_that_load.add(part)

    def _state(self, epoch: int) -> dict[str, Any]:
        return self._read_json(f"state{epoch}.json")

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with self._temporary(name).open("w", encoding="utf-8") as file:
            json.dump({"sha256": _hash_of_json(content), **content}, file)
            _sync(file)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            newer, is_whole = content["format"] > FORMAT, content.pop("sha256") == _hash_of_json(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error!r}; {_REMEDY}") from error
        if newer:
            raise ValueError(f"{path} has the format {content['format']}; this version reads {FORMAT}, so update it")
        if not is_whole:
            raise ValueError(f"{path} is not what was written; {_REMEDY}")
        del content["format"]
        return content

    def _sync_names(self) -> None:
        """Make sure that the names of new files survive a power cut too; not every system can."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
