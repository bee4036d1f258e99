"""What one process decides for all: in a distributed training the main one, elsewhere the only one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

__all__ = ["from_main_process", "is_main_process", "on_main_process"]

T = TypeVar("T")


def on_main_process(function: Callable[[], T]) -> T:
    """Call a function in the main process alone, and return, or raise, in every process what came of it."""
    if not _are_several():
        return function()
    box: list[Any] = [None, None]
    if is_main_process():
        try:
            box = [function(), None]
        except Exception as error:
            box = [None, error]
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def from_main_process(value: T) -> T:
    """Return the main process's `value` in every process."""
    return on_main_process(lambda: value)


def is_main_process() -> bool:
    """Whether this process is the main one, or the only one."""
    return not _are_several() or distributed.get_rank() == 0


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
