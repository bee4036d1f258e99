"""Run on the main process and broadcast the result, where several processes train one net together.

They do if the net says so: by a wrapper with a process group, such as DistributedDataParallel, by an accelerator, or by
skorch's DistributedHistory. Other nets are trained by one process each, also in a script that torchrun has launched.

All processes of a net have to call `on_main_process`, `from_main_process` and `in_all_processes` equally often. So
whether they do never depends on what differs between them, and nothing calls these in the stage ``exit``, which an
error may reach in one process alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from skorch.history import DistributedHistory
from torch import distributed, nn

from mlr3torch_py.network.unwrap import all_modules, is_sharded
from mlr3torch_py.protocols import Net

__all__ = [
    "are_several",
    "check_unsharded",
    "from_main_process",
    "in_all_processes",
    "is_main_process",
    "on_main_process",
    "sharded_part",
]

T = TypeVar("T")


def on_main_process(net: Net, function: Callable[[], T]) -> T:
    """Call a function on the main process of a net only.

    Its result is returned, or its exception raised, in every process.
    """
    group = _group_of(net)
    if group is None:
        return function()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if distributed.get_rank(group) == 0:
        try:
            outcome[0] = function()
        except Exception as raised:
            error, outcome[1] = raised, _as_sent(raised)
    distributed.broadcast_object_list(outcome, src=distributed.get_global_rank(group, 0), group=group)
    if outcome[1] is not None:
        raise error or outcome[1]
    result: T = outcome[0]
    return result


def from_main_process(net: Net, value: T) -> T:
    """Return the main process's `value` in every process of a net."""
    return on_main_process(net, lambda: value)


def in_all_processes(net: Net, value: T) -> list[T]:
    """Return the values of all processes of a net."""
    group = _group_of(net)
    if group is None:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


def is_main_process(net: Net) -> bool:
    """Check whether this process is the main or the only one that trains a net."""
    group = _group_of(net)
    return group is None or distributed.get_rank(group) == 0


def are_several(net: Net) -> bool:
    """Check whether several processes train a net together."""
    return _group_of(net) is not None


def sharded_part(net: Net) -> str | None:
    """Return the name of a module or criterion of a net that is sharded, or has a part that is; None without any."""
    return next((name for name, part in _parts(net) if any(map(is_sharded, all_modules(part)))), None)


def check_unsharded(net: Net, callback: str) -> None:
    """Check that each process holds a net as a whole.

    Raises
    ------
    ValueError
        If a part of the net is sharded.
    """
    if _is_distributed() and (name := sharded_part(net)) is not None:
        raise ValueError(
            f"`{name}_` is sharded by FSDP, so that no process holds all of it, which {callback} needs; use "
            f"DistributedDataParallel, or leave {callback} out"
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _group_of(net: Net) -> Any:
    """Return the process group that trains a net; None if that is a single process."""
    if not _is_distributed():
        return None
    group = max(_groups(net), key=distributed.get_world_size, default=None)
    return group if group is not None and distributed.get_world_size(group) > 1 else None


def _groups(net: Net) -> Iterator[Any]:
    """Yield the process groups that a net names; shards may span several, so that they stand for all processes."""
    is_shared = isinstance(net.history, DistributedHistory) or sharded_part(net) is not None
    if is_shared or getattr(getattr(net, "accelerator", None), "num_processes", 1) > 1:
        yield distributed.group.WORLD
    for _, part in _parts(net):
        for module in all_modules(part):
            group = vars(module).get("process_group")
            if isinstance(group, distributed.ProcessGroup):
                yield group


def _parts(net: Net) -> Iterator[tuple[str, nn.Module]]:
    for name in (*net._modules, *net._criteria):
        part = getattr(net, f"{name}_", None)
        if isinstance(part, nn.Module):
            yield name, part


def _as_sent(error: Exception) -> Exception:
    """Return an exception as other processes get it: in words, if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of whatever kind, as any class may say how it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
