"""Check and resolve the folder that a callback writes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import REQUIRED

__all__ = ["check_path", "folder_of"]


def check_path(path: object) -> None:
    """Check the argument ``path`` of a callback.

    Raises
    ------
    TypeError
        If it is set, and neither a path nor a function.
    """
    if path is not REQUIRED and not (callable(path) or isinstance(path, str | os.PathLike)):
        raise TypeError(f"`path` is {path!r}; give a folder, or a function without arguments that returns one")


def folder_of(net: Net, path: Any, previous: Path | None) -> Path:
    """Return the folder of a run.

    Parameters
    ----------
    net : skorch.NeuralNet
    path : str, os.PathLike or callable
        A function is only called for a new run.
    previous : Path, optional
        The folder of the callback's previous run, which a net with history continues.

    Raises
    ------
    TypeError
        If a function returns something else than a path.
    """
    if callable(path):
        if previous is not None and len(net.history):
            return previous
        function, path = path, path()
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"`path`: {function!r} returned {path!r}; it must return a folder")
    return Path(path).expanduser().resolve()
