"""A file of history rows that only grows, so that a checkpoint need not hold all of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from mlr3torch_py.checkpoint.portable import from_portable, to_portable
from mlr3torch_py.checkpoint.sealed_files import changed, reading

__all__ = ["RowFile", "line_of"]

NAME: Final = ".history.jsonl"


class RowFile:
    """The rows of the epochs before the last one, each written once.

    What lies beyond a mark is of an epoch whose checkpoint was never completed: it is ignored, and overwritten.

    Parameters
    ----------
    folder : pathlib.Path

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     rows = RowFile(Path(folder))
    ...     mark = rows.append([line_of({"epoch": 1, "train_loss": 0.5}, "history")])
    ...     _ = rows.append([line_of({"epoch": 2, "train_loss": 0.4}, "history")])
    ...     RowFile(Path(folder)).read(mark)
    [{'epoch': 1, 'train_loss': 0.5}]
    """

    def __init__(self, folder: Path) -> None:
        self.path: Path = folder / NAME
        self.n_rows: int = 0
        self._n_bytes = 0
        self._hash = hashlib.sha256()

    def append(self, lines: Sequence[bytes]) -> dict[str, Any]:
        """Write rows to the disk, as `line_of` has made them, and return a mark.

        It says up to where the file is valid; it is empty if there are no rows.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        content = b"".join(lines)
        if content or not self.path.exists():
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._n_bytes)
                file.seek(self._n_bytes)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self._hash.update(content)
        self.n_rows += len(lines)
        self._n_bytes += len(content)
        if not self.n_rows:
            return {}
        return {"rows": self.n_rows, "bytes": self._n_bytes, "sha256": self._hash.hexdigest()}

    def read(self, mark: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read the rows up to a mark, after which the next rows will be written.

        Raises
        ------
        ValueError
            If the file is missing, damaged or was changed.
        """
        if "rows" not in mark:
            self.n_rows, self._n_bytes, self._hash = 0, 0, hashlib.sha256()
            return []
        with reading(self.path):
            content = self.path.read_bytes()[: mark["bytes"]]
            found = hashlib.sha256(content)
            if found.hexdigest() != mark["sha256"]:
                raise changed(self.path)
            rows = [_row(line) for line in content.splitlines()]
        self.n_rows, self._n_bytes, self._hash = len(rows), len(content), found
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_hash": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        content = self.path.read_bytes()[: self._n_bytes] if self.path.exists() else b""
        self._hash = hashlib.sha256(content)


def line_of(row: Mapping[str, Any], place: str) -> bytes:
    """Write a row as a line.

    Raises
    ------
    TypeError
        If it holds something that no file can keep.
    """
    tensors: dict[str, torch.Tensor] = {}
    written = {"row": to_portable(dict(row), place, tensors)}
    if tensors:
        file = io.BytesIO()
        torch.save(tensors, file)
        written["tensors"] = base64.b64encode(file.getvalue()).decode()
    return json.dumps(written).encode() + b"\n"


def _row(line: bytes) -> dict[str, Any]:
    written = json.loads(line)
    tensors = {}
    if "tensors" in written:
        file = io.BytesIO(base64.b64decode(written["tensors"]))
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    row: dict[str, Any] = from_portable(written["row"], tensors)
    return row
