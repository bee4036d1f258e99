"""Check and resolve the folder that a callback writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mlr3torch_py.arguments import check_callable, check_path
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import REQUIRED
from mlr3torch_py.values import shown

__all__ = ["check_folder", "folder_of"]


_FOLDER: Final = "a folder, or a function without arguments that returns one"


def check_folder(path: object) -> None:
    """Check the argument ``path`` of a callback.

    Raises
    ------
    TypeError, ValueError
        If it is set, and neither a path nor a function.
    """
    if callable(path) and not isinstance(path, type):
        check_callable("path", path)
    elif path is not REQUIRED:
        check_path("path", path, _FOLDER)


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
    TypeError, ValueError
        If a function returns something else than a path.
    """
    if callable(path):
        if previous is not None and len(net.history):
            return previous
        try:
            folder = path()
        except Exception as error:
            raise ValueError(f"`path` is {shown(path)}, which fails: {error!r}; give a function that works") from error
        return check_path("path", folder, "a function that returns a folder")
    return check_path("path", path, _FOLDER)
