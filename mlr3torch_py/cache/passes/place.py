"""The place of a module's own call, where calls are answered for several networks, in each thread for one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import RLock, get_ident
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.passes.placeholder import arguments_made_real

__all__ = ["InPlace"]

_CALL: Final = "_compiled_call_impl"
_lock: Final = RLock()  # no other is taken, and no code of others runs, while it is held


class InPlace(ABC):
    """Answer calls of a module in place of its own call, until `remove`.

    Those are calls by the thread in which this is made, such as the one that trains, and after `take_turns` by any
    thread. All others are left to the module itself.

    Parameters
    ----------
    module : torch.nn.Module

    Attributes
    ----------
    turn : RLock or None
        Held by the thread whose calls are answered, if any thread may call.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module = module
        self.turn: Any = None
        self._thread: int | None = get_ident()

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""

    @property
    def is_in_place(self) -> bool:
        """Whether calls of the module arrive here."""
        place = vars(self.module).get(_CALL)
        return type(place) is _Place and place.answering.get(self._thread) is self

    def put_in_place(self) -> None:
        """Answer the calls, in place of what did so in this thread."""
        with _lock:
            place = vars(self.module).get(_CALL)
            if type(place) is not _Place:
                # The place of a compiled call: the module's hooks run inside of it, and pickle and deepcopy skip it.
                place = self.module._compiled_call_impl = _Place(self.module)
            place.answering[self._thread] = self

    def take_turns(self, turn: Any) -> None:
        """Answer calls by any thread from now on, by one at a time for all that have this lock."""
        with _lock:
            is_in_place = self.is_in_place
            InPlace.remove(self)
            self.turn, self._thread = turn, None
            if is_in_place:
                self.put_in_place()

    def remove(self) -> None:
        """Restore the module's own call."""
        with _lock:
            if self.is_in_place:
                place = vars(self.module)[_CALL]
                del place.answering[self._thread]
                if not place.answering:
                    del self.module._compiled_call_impl


class _Place:
    """Let calls of a module be answered by what is put in place for their thread, and otherwise by the module."""

    is_cache = True  # tells it from a compiled call

    def __init__(self, module: nn.Module) -> None:
        self.answering: dict[int | None, InPlace] = {}  # by thread; None for what takes turns
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # the network, after training: compiled code computes its rows
            return self._module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        one = self.answering.get(get_ident())
        if one is not None:
            return one(*args, **kwargs)
        one = self.answering.get(None)
        if one is not None and one.turn.acquire(blocking=False):
            try:
                return one(*args, **kwargs)
            finally:
                one.turn.release()
        args, kwargs = arguments_made_real(args, kwargs)
        return self._module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # for networks that pickle all of their attributes
