"""The folders that callbacks write to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlr3torch_py.training.callback_set import REQUIRED

__all__ = ["check_path", "folder_of"]


def check_path(path: Any) -> None:
    """Check that a path is a folder, a function that returns one, or still to be set."""
    if path is not REQUIRED and not (callable(path) or isinstance(path, str | os.PathLike)):
        raise TypeError(f"`path` is {path!r}; give a folder, or a function without arguments that returns one")


def folder_of(net: Any, path: Any, own: Path | None) -> Path:
    """Return the folder of a run.

    Parameters
    ----------
    net : skorch.NeuralNet
    path : str, os.PathLike or callable
        A function is called for a new run only.
    own : Path, optional
        Where the callback has written before.
    """
    if callable(path):
        if own is not None and len(net.history):
            return own
        function, path = path, path()
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`path`: {function!r} returned {path!r}; it must return a folder")
    return Path(path).expanduser().resolve()
