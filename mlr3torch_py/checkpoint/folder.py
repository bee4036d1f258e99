"""Keep checkpoints of a run in a folder, and read them without running code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from mlr3torch_py.checkpoint.contents import LARGE, STATE_TENSORS, Checkpoint, check_part, check_state, check_types
from mlr3torch_py.checkpoint.loadable import check_loadable, with_numpy
from mlr3torch_py.checkpoint.row_file import RowFile
from mlr3torch_py.checkpoint.sealed_files import DamagedFileError, SealedFiles, json_writer, reading
from mlr3torch_py.names import listed
from mlr3torch_py.version import __version__
from mlr3torch_py.warn import warn

__all__ = ["CheckpointFolder", "id_of"]


_RUN: Final = "run.json"
_FILE_OF_PART: Final = {"module": "network{}.pt", "optimizer": "optimizer{}.pt", STATE_TENSORS: "state{}.pt"}
_IN_CHECKPOINT: Final = re.compile(r"(?:(?:network|optimizer|state|\w+-)(\d+)\.pt|state(\d+)\.json)")


class CheckpointFolder:
    """The checkpoints of one run in one folder.

    A checkpoint of epoch n is ``network<n>.pt``, ``optimizer<n>.pt``, ``state<n>.json``; criteria and further modules
    that have weights are in ``<name>-<n>.pt``, pending gradients in ``gradients-<n>.pt``, further tensors in
    ``state<n>.pt``. ``rows-<n>.pt``, the rows of a cache, belongs to later checkpoints, too, until these change.
    ``state<n>.json`` is written last and names the others with their hashes. ``.history.jsonl`` holds the rows of the
    history before the last, ``run.json`` facts of the whole run, with its id.

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
        self.files: SealedFiles = SealedFiles(path)
        self.rows: RowFile = RowFile(self.files.path)
        self._large: tuple[Mapping[str, Any], str, str] | None = None  # as written, with the file and its hash

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
            missing = self._missing(epoch, names)
            if not missing:
                return epoch
            warn(
                f"{self.path}: the checkpoint of epoch {epoch} lacks {listed(missing)} and is skipped; restore what is "
                "missing to resume from it"
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
        epoch, parts, state = checkpoint[:3]
        large = self._large if self._large and self._large[0] is parts.get(LARGE) else None
        part_of = _file_names([part for part in parts if part != LARGE or large is None], epoch)
        written: dict[str, str] = {}

        def sealed_state(hashes: Mapping[str, str]) -> dict[str, Any]:
            files = {name: {"part": part, "sha256": hashes[name]} for name, part in part_of.items()}
            files |= {large[1]: {"part": LARGE, "sha256": large[2]}} if large else {}
            written.update(hashes)
            return {"epoch": epoch, "version": __version__, "files": files, **state, **history}

        history = {"history": {**state["history"], **self._append(checkpoint)}} if "history" in state else {}
        writers = {name: partial(_write_part, part, parts[part]) for name, part in part_of.items()}
        self.files.write({**writers, f"state{epoch}.json": json_writer(sealed_state)})
        new = [(parts[LARGE], name, written[name]) for name, part in part_of.items() if part == LARGE]
        self._large = new[0] if new else large

    def read(self, epoch: int) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        ValueError
            If a file cannot be read, was changed, has a newer format, or is of another run or epoch.

        Warns
        -----
        UserWarning
            If another version of this package wrote it.
        """
        name = f"state{epoch}.json"
        state = self.files.read_json(name)
        there = state.pop("version", None)
        if there not in (None, __version__):
            warn(
                f"{self.path}: the checkpoint of epoch {epoch} was written by mlr3torch_py {there}, "
                f"this is {__version__}; if the run does not continue as it should, install mlr3torch_py=={there}"
            )
        with reading(self.path / name):
            self._check_belongs(name, state, epoch)
            files = {file: (str(entry["part"]), entry["sha256"]) for file, entry in state.pop("files").items()}
            mark = state.get("history")
        parts = {}
        for file, (part, expected) in files.items():
            path = self.files.check_hash(file, expected)
            with reading(path):
                parts[part] = with_numpy(_load(path, epoch), state.get("numpy", {}).get(part, {}))
                check_part(parts[part], is_optimizer=part in state.get("classes", ()))
        rows = self.rows.read(mark) if isinstance(mark, dict) else []
        checkpoint = Checkpoint(epoch, parts, state, rows)
        with reading(self.path / name):
            check_state(checkpoint)
        return checkpoint

    def call_of(self, epoch: int) -> dict[str, Any] | None:
        """Return which call of ``fit`` has written a checkpoint; None if there is no complete one of this epoch."""
        if self._missing(epoch, self.files.names()):
            return None
        call: dict[str, Any] = self.files.read_json(f"state{epoch}.json").get("call") or {"n": 1, "begin": 0}
        return call

    def keep_only(self, epochs: Container[int]) -> None:
        """Remove the checkpoints of all other epochs, each of them from its seal on.

        Warns
        -----
        UserWarning
            If a file cannot be removed, as on Windows while somebody reads it.
        """
        names = self.files.names()
        needed = {file for epoch in self.epochs() if epoch in epochs for file in self._files(epoch)}
        for epoch in self._epochs():
            if epoch in epochs:
                continue
            matches = [(name, _IN_CHECKPOINT.fullmatch(name)) for name in names if name not in needed]
            others = [name for name, match in matches if match and epoch == int(match[1] or match[2])]
            try:
                for name in sorted(others, key=lambda name: name != f"state{epoch}.json"):
                    self.files.remove(name)
            except OSError as error:
                warn(f"{self.path}: the checkpoint of epoch {epoch} stays until the next one is written ({error})")

    def release(self) -> None:
        """Let other processes use the folder, and hold no large states any more."""
        self.files.release()
        self._large = None

    def epochs(self) -> list[int]:
        """List the epochs of the complete checkpoints, newest first."""
        names = self.files.names()
        return [epoch for epoch in self._epochs() if f"state{epoch}.json" in names]

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
        if _RUN not in self.files.names():
            return None
        run = self.files.read_json(_RUN)
        with reading(self.path / _RUN):
            data, random = run["data"], run["random"]
            check_types((data, dict), (data["rows"], int | None), (data["targets"], str | None), (random, dict))
        return run

    def _epochs(self) -> list[int]:
        """List the epochs that have at least one file, newest first."""
        found = (_IN_CHECKPOINT.fullmatch(name) for name in self.files.names())
        return sorted({int(match[1] or match[2]) for match in found if match}, reverse=True)

    def _missing(self, epoch: int, names: Sequence[str]) -> list[str]:
        """List the files that a checkpoint lacks."""
        state = f"state{epoch}.json"
        if state not in names:
            return [state]
        return [name for name in self._files(epoch) if name not in names]

    def _files(self, epoch: int) -> list[str]:
        """List the files that a checkpoint consists of, besides its state."""
        state = f"state{epoch}.json"
        content = self.files.read_json(state)
        with reading(self.path / state):
            return list(content["files"])

    def _append(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Write the rows of the history that are not yet on the disk."""
        try:
            return self.rows.append(checkpoint.rows[self.rows.n_rows - checkpoint.first :])
        except OSError as error:
            raise OSError(
                f"`path`: the history cannot be written to {self.path} ({error}); make room, or give another folder"
            ) from error

    def _check_belongs(self, name: str, state: dict[str, Any], epoch: int) -> None:
        """Check that a state is of this run and of the epoch in its name."""
        if (found := state.pop("epoch")) != epoch:
            raise DamagedFileError(
                f"{self.path / name} is of epoch {found}, so it was renamed; give it its own name again, or delete it"
            )
        run = self.read_run()
        if run is not None and "run" in state and state["run"] != id_of(run):
            raise DamagedFileError(
                f"{self.path / name} is of another run than {self.path / _RUN}; restore the files of one run, or "
                "give another folder"
            )

    def _check_not_foreign(self) -> None:
        names = self.files.names()
        if names and _RUN not in names and not self._epochs():
            raise FileExistsError(
                f"`path`: {self.path} holds {listed(sorted(names), most=3)}, but no checkpoint, whose folder "
                "holds nothing else; give an empty folder"
            )


def _file_names(parts: Iterable[str], epoch: int) -> dict[str, str]:
    """Map file names to parts; no two of them differ by case alone, which some file systems do not tell apart."""
    names: dict[str, str] = {}
    for part in sorted(parts):
        name = _FILE_OF_PART.get(part, part + "-{}.pt").format(epoch)
        while name.lower() in map(str.lower, names):
            name = f"_{name}"
        names[name] = part
    return names


def _load(path: Path, epoch: int) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedFileError(
            f"{path} cannot be read without running code, since it holds more than tensors and plain values; delete "
            f"state{epoch}.json to resume from the checkpoint before it"
        ) from error


def _write_part(part: str, content: Mapping[str, Any], file: BinaryIO, _: Mapping[str, str]) -> None:
    check_loadable(part, content)
    torch.save(content, file)


def id_of(run: Mapping[str, Any]) -> str:
    """Return the id of a run, which older versions did not write."""
    return str(run.get("id", "of format 1"))
