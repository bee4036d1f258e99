"""Functions of torch that take tensors past `__torch_function__`, where placeholders must be real before the call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, Final
from weakref import ref

import torch
from torch.autograd import Function

from mlr3torch_py.cache.passes.placeholder import Passes, arguments_made_real, made_real
from mlr3torch_py.network.internals import internal

__all__ = ["guard", "unguard"]

_Function = Callable[..., Any]
_lock: Final = Lock()
_guarded: tuple[ref[Passes], ...] = ()
_replaced: Final[list[tuple[Any, str, Any, Any]]] = []  # None for what is inherited


def guard(passes: Passes) -> None:
    """Give placeholders their values before they enter compiled code, TorchScript, vmap or functions with a backward.

    Parameters
    ----------
    passes : Passes
        The forward passes in which they are given, from now on until `unguard`.
    """
    global _guarded
    with _lock:
        _guarded = (*_others(passes), ref(passes))
        # No function is compiled before torch._dynamo is imported.
        for owner, name, wrap in _doors("torch._dynamo.eval_frame" in sys.modules):
            original = vars(owner).get(name)
            if not any(original is ours for *_, ours in _replaced):
                _replaced.append((owner, name, original, wrap(original)))
                setattr(owner, name, _replaced[-1][-1])


def unguard(passes: Passes) -> None:
    """Leave the functions as they are in torch, unless others are guarded."""
    global _guarded
    with _lock:
        _guarded = _others(passes)
        while _replaced and not _guarded:
            owner, name, original, ours = _replaced.pop()
            if vars(owner).get(name) is ours and original is None:
                delattr(owner, name)
            elif vars(owner).get(name) is ours:
                setattr(owner, name, original)


def _others(passes: Passes) -> tuple[ref[Passes], ...]:
    return tuple(reference for reference in _guarded if reference() not in (None, passes))


@lru_cache
def _doors(is_dynamo_there: bool) -> Sequence[tuple[Any, str, Callable[[Any], Any]]]:
    """List the functions: where they are, their names, and how to wrap them."""
    # Compiled functions may find placeholders anywhere, in closures or objects, so all become real.
    names = [("torch._functorch.vmap", "_vmap_increment_nesting", _after_all_became_real)]
    if is_dynamo_there:
        names.append(("torch._dynamo.eval_frame", "_callback_from_stance", _after_all_became_real))
    if is_apply_in_python := isinstance(vars(Function).get("apply"), classmethod):  # not so from torch 2.14 on
        names.append(("torch._functorch.utils", "unwrap_dead_wrappers", _with_real_arguments))
    for owner, name, _ in names:
        internal(owner, name)
    return (
        *((sys.modules[owner], name, wrap) for owner, name, wrap in names),
        *((one, "__call__", _with_real_arguments) for one in (torch._C.ScriptFunction, torch._C.ScriptMethod)),
        *([] if is_apply_in_python else [(Function, "apply", _apply_with_real_arguments)]),
        (torch.Tensor, "data", _set_to_real_values),  # of a class in C, from which it is inherited
    )


def _after_all_became_real(function: _Function) -> _Function:
    def guarded_function(*args: Any, **kwargs: Any) -> Any:
        for reference in _guarded:
            if (passes := reference()) is not None and passes.current:
                passes.end()
        return function(*args, **kwargs)

    return guarded_function


def _with_real_arguments(function: _Function) -> _Function:
    def guarded_function(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = arguments_made_real(args, kwargs)
        return function(*args, **kwargs)

    return guarded_function


def _apply_with_real_arguments(original: Any) -> Any:
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = arguments_made_real(args, kwargs)
        return original.__get__(None, cls)(*args, **kwargs)

    return classmethod(apply)


def _set_to_real_values(_: None) -> property:
    inherited: Any = torch.Tensor.data
    return property(inherited.__get__, lambda tensor, value: inherited.__set__(tensor, made_real(value)))
