"""Short tracebacks: frames of this package that tell a user nothing are hidden by IPython and pytest."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from traceback import walk_tb
from typing import ParamSpec, TypeVar

__all__ = ["hide_frames", "short_traceback"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def hide_frames(error: BaseException) -> None:
    """Hide the frames of this package in the traceback of an error, and of its causes.

    The one that raised stays. Debuggers, and tracebacks in a terminal, still show all of them.

    Parameters
    ----------
    error : BaseException
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and not any(following is one for one in seen):
        seen.append(following)
        frames = [frame for frame, _ in walk_tb(following.__traceback__)]
        for frame in frames[:-1]:
            if frame.f_globals.get("__name__", "").partition(".")[0] == "mlr3torch_py":
                frame.f_locals["__tracebackhide__"] = True
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def short_traceback(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a public function, so that its errors have short tracebacks."""

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except Exception as error:
            hide_frames(error)
            raise

    return wrapper
