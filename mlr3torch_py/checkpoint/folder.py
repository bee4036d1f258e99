"""Keep checkpoints of a run in a folder, and read them without running code."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import torch

from mlr3torch_py.checkpoint.portable import from_portable, to_portable
from mlr3torch_py.checkpoint.sealed_files import SealedFiles, json_writer
from mlr3torch_py.names import listed
from mlr3torch_py.version import __version__
from mlr3torch_py.warn import warn

__all__ = ["Checkpoint", "CheckpointFolder"]

_RUN: Final = "run.json"
_FILE_OF_PART: Final = {"module": "network{}.pt", "optimizer": "optimizer{}.pt", "callbacks": "state{}.pt"}
_IN_CHECKPOINT: Final = re.compile(r"(?:(?:network|optimizer|state|\w+-)(\d+)\.pt|state(\d+)\.json)")


class Checkpoint(NamedTuple):
    """The state of a training at the end of an epoch.

    Parameters
    ----------
    epoch : int
    parts : mapping
        The state dicts of modules, criteria and optimizers by their names in the net, and under ``callbacks`` the
        tensors of `state`.
    state : mapping
        Everything else, as JSON.
    """

    epoch: int
    parts: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]

    @classmethod
    def of(cls, epoch: int, parts: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> Checkpoint:
        """Make a checkpoint of state dicts and a state.

        Parameters
        ----------
        epoch : int
        parts : mapping
            State dicts by name; empty ones are left out.
        state : mapping
            Anything that `to_portable` can write.

        Raises
        ------
        TypeError
            If something in `state` fits neither into JSON nor into tensors.
        """
        tensors: dict[str, torch.Tensor] = {}
        written = {key: to_portable(value, key, tensors) for key, value in state.items()}
        return cls(epoch, {name: part for name, part in {**parts, "callbacks": tensors}.items() if part}, written)

    def contents(self) -> dict[str, Any]:
        """Return the state as it was given."""
        tensors = self.parts.get("callbacks", {})
        return {key: from_portable(value, tensors) for key, value in self.state.items()}


class CheckpointFolder:
    """The checkpoints of one run in one folder.

    A checkpoint of epoch n is ``network<n>.pt``, ``optimizer<n>.pt``, ``state<n>.json``; criteria and further modules
    that have weights are in ``<name>-<n>.pt``, tensors of callbacks in ``state<n>.pt``. ``state<n>.json`` is written
    last and names the others with their hashes. ``run.json`` holds facts of the whole run.

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
        self.files = SealedFiles(path)
        self._loadable: set[str] = set()

    @property
    def path(self) -> Path:
        return self.files.path

    def clear_for_new_run(self) -> None:
        """Check that a new run can use the folder; remove a ``run.json`` without checkpoints.

        Raises
        ------
        FileExistsError
            If there are checkpoints or foreign files.
        ValueError
            If ``run.json`` cannot be read.
        """
        if self._epochs():
            raise FileExistsError(
                f"`path`: {self.path} holds the checkpoints of another run; "
                "pass `resume=True` to continue it, or give an empty folder"
            )
        self._check_not_foreign()
        if self.read_run() is not None:
            self.files.remove(_RUN)

    def check_none_after(self, epoch: int) -> None:
        """Check that there are no checkpoints of later epochs.

        Raises
        ------
        FileExistsError
            If there are.
        """
        newest = max(self._epochs(), default=0)
        if newest > epoch:
            raise FileExistsError(
                f"`path`: {self.path} holds the checkpoint of epoch {newest}, but the net is at epoch {epoch}; "
                "pass `resume=True` to a new net, or give an empty folder"
            )

    def newest(self) -> int | None:
        """Return the epoch of the newest complete checkpoint.

        Returns
        -------
        int or None
            None if there is none.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        FileExistsError
            If there are foreign files in it.
        ValueError
            If a state cannot be read.

        Warns
        -----
        UserWarning
            For a newer checkpoint that lacks a file.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"`resume`: there is no folder {self.path}; give one that holds checkpoints")
        self._check_not_foreign()
        names = self.files.names()
        for epoch in self._epochs():
            state = f"state{epoch}.json"
            expected = [*self.files.read_json(state)["files"]] if state in names else [state]
            missing = [name for name in expected if name not in names]
            if not missing:
                return epoch
            warnings.warn(
                f"{self.path}: the checkpoint of epoch {epoch} lacks {listed(missing)} and is skipped", stacklevel=2
            )
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint.

        Raises
        ------
        TypeError
            If a state dict holds what cannot be loaded without running code.
        OSError
            If it cannot be written; then nothing of it is kept.
        """
        epoch, parts, state = checkpoint
        part_of = {_FILE_OF_PART.get(part, part + "-{}.pt").format(epoch): part for part in parts}

        def sealed_state(hashes: Mapping[str, str]) -> dict[str, Any]:
            files = {name: {"part": part, "sha256": hashes[name]} for name, part in part_of.items()}
            return {"epoch": epoch, "version": __version__, "files": files, **state}

        writers = {name: partial(self._write_part, part, parts[part]) for name, part in part_of.items()}
        self.files.write({**writers, f"state{epoch}.json": json_writer(sealed_state)})

    def read(self, epoch: int) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        ValueError
            If a file cannot be read, was changed, or has a newer format.

        Warns
        -----
        UserWarning
            If another version of this package wrote it.
        """
        state = self.files.read_json(f"state{epoch}.json")
        del state["epoch"]
        there = state.pop("version", None)
        if there not in (None, __version__):
            warn(
                f"{self.path}: the checkpoint of epoch {epoch} was written by mlr3torch_py {there}, "
                f"this is {__version__}; if the run does not continue as it should, install mlr3torch_py=={there}"
            )
        parts = {}
        for name, entry in state.pop("files").items():
            path = self.files.check_hash(name, entry["sha256"])
            parts[entry["part"]] = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(epoch, parts, state)

    def write_run(self, content: Mapping[str, Any]) -> None:
        """Write the facts of the whole run, unless they are there.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        if _RUN not in self.files.names():
            self.files.write({_RUN: json_writer(lambda _: content)})

    def read_run(self) -> dict[str, Any] | None:
        """Read the facts of the whole run.

        Returns
        -------
        dict or None
            None if they were never written.

        Raises
        ------
        ValueError
            If they cannot be read.
        """
        return self.files.read_json(_RUN) if _RUN in self.files.names() else None

    def _epochs(self) -> list[int]:
        """List the epochs that have at least one file, newest first."""
        found = (_IN_CHECKPOINT.fullmatch(name) for name in self.files.names())
        return sorted({int(match[1] or match[2]) for match in found if match}, reverse=True)

    def _check_not_foreign(self) -> None:
        names = self.files.names()
        if names and _RUN not in names and not self._epochs():
            raise FileExistsError(f"`path`: {self.path} holds {listed(sorted(names), most=3)}; give an empty folder")

    def _write_part(self, part: str, content: Mapping[str, Any], file: BinaryIO, hashes: Mapping[str, str]) -> None:
        torch.save(content, file)
        if part not in self._loadable:
            file.flush()
            try:
                torch.load(file.name, map_location="cpu", weights_only=True, mmap=True)
            except pickle.UnpicklingError as error:
                raise TypeError(
                    f"the state dict of `{part}` holds more than tensors and plain values, which a checkpoint cannot "
                    "keep; leave the rest out of get_extra_state() or state_dict()"
                ) from error
            self._loadable.add(part)
