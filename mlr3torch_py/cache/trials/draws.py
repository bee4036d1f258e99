"""Tell the random numbers that a module draws from those that other threads draw in the meantime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch

from mlr3torch_py.network.bits import content_hash
from mlr3torch_py.network.internals import TorchDispatchMode, tree_leaves, tree_map
from mlr3torch_py.network.randomness import generators, random_states, set_random_states

__all__ = ["draws_itself", "is_only_thread", "torch_generators"]

_REPEATS: Final = 3
_REPEATS_OF_OPERATION: Final = 50


def is_only_thread() -> bool:
    """Whether nobody but the caller can draw random numbers."""
    return threading.active_count() == 1


def torch_generators() -> dict[str, torch.Generator]:
    """Find the global generators of torch."""
    return {name: one for name, one in generators().items() if isinstance(one, torch.Generator)}


def draws_itself(repeat: Callable[[], bool], moved: Mapping[str, Any]) -> bool:
    """Find out who has drawn random numbers during a call: the module, or other threads.

    Generators are shared by all threads. But random numbers that a module draws from torch are drawn by operations of
    this thread, which can be watched one by one; and if it draws others, each repetition of the call moves the
    generators again, and gives another output.

    Parameters
    ----------
    repeat : callable
        Repeats the call, and returns whether its output is the same.
    moved : mapping
        The generators that were moved during the call, by name.

    Returns
    -------
    bool
        Whether it is the module. The generators are then as they were before the repetitions.

    Examples
    --------
    >>> draws_itself(lambda: torch.rand(1) < 0, generators()), draws_itself(lambda: True, generators())
    (True, False)
    """
    before, suspects = random_states(moved), dict(moved)
    for _ in range(_REPEATS):
        states = random_states(suspects)
        with _Watch() as watch:
            is_same = repeat()
        now = random_states(suspects)
        suspects = {name: generator for name, generator in suspects.items() if now[name] != states[name]}
        if watch.has_drawn or (suspects and not is_same and not repeat()):  # not every module can be watched
            set_random_states(moved, before)
            return True
        if not suspects:
            break
    return False


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of this thread for any that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.has_drawn or torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        # It may draw nothing nevertheless, as attention without dropout, and it may write into its arguments.
        before = _copied((args, kwargs))
        output = func(*args, **kwargs)
        self.has_drawn = _draws(lambda: _applied(func, *_copied(before)), output)
        return output


def _draws(operation: Callable[[], Any], output: Any) -> bool:
    """Check whether an operation draws from the generators of torch, and gives another output each time."""
    found, expected = torch_generators(), list(_hashes(output))
    for _ in range(_REPEATS_OF_OPERATION):
        states = random_states(found)
        again = operation()
        if random_states(found) == states:
            return False
        if list(_hashes(again)) != expected:
            return True
    return False


def _applied(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _copied(arguments: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, arguments)


def _hashes(output: Any) -> Iterator[bytes]:
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    # Beside its output, attention returns integers that are not initialized unless it has dropout.
    return map(content_hash, [tensor for tensor in tensors if tensor.is_floating_point()] or tensors)
