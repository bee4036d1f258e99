"""Run on the main process and broadcast the result, where several processes train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

__all__ = ["are_several", "from_main_process", "is_main_process", "on_main_process"]

T = TypeVar("T")


def on_main_process(function: Callable[[], T]) -> T:
    """Call a function on the main process only.

    Its result is returned, or its exception raised, in every process.
    """
    if not are_several():
        return function()
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome = [function(), None]
        except Exception as error:
            outcome = [None, error]
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def from_main_process(value: T) -> T:
    """Return the main process's `value` in every process."""
    return on_main_process(lambda: value)


def is_main_process() -> bool:
    """Check whether this process is the main or the only one."""
    return not are_several() or distributed.get_rank() == 0


def are_several() -> bool:
    """Check whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
