"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from typing import Final

__all__ = ["warn"]

# The packages whose frames lie between a warning and the line of the user that has led to it.
_BETWEEN: Final = frozenset({"mlr3torch_py", "skorch", "torch", "sklearn", "joblib"})


def warn(message: str) -> None:
    """Issue a warning at the innermost line outside of this package, skorch, torch and scikit-learn.

    Parameters
    ----------
    message : str

    Warns
    -----
    UserWarning
    """
    frame, level = sys._getframe(), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
