"""Functions of torch that somebody has replaced by others, which call them."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, Final

import torch
from torch.overrides import handle_torch_function

__all__ = ["is_of_torch", "wrapped_by"]

_IN_C: Final = (BuiltinFunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType)


def is_of_torch(function: Any) -> bool:
    """Whether a function that a tensor is asked to apply is torch's own.

    Examples
    --------
    >>> is_of_torch(torch.relu), is_of_torch(torch.nn.functional.relu), is_of_torch(lambda x: x)
    (True, True, False)
    """
    return isinstance(function, _IN_C) or _is_in_torch(getattr(function, "__globals__", {}))


def wrapped_by(function: Any) -> Any:
    """Return the function of torch that stands behind one that has replaced it, such as a wrapper that has called it.

    Torch asks a tensor to apply what it finds under the name of its function. To be called by what torch asks.
    """
    asking = sys._getframe(2)
    if asking.f_code is not handle_torch_function.__code__:
        names = (name for name, one in vars(torch.Tensor).items() if one is function)  # a method in C looks there
        return getattr(torch.Tensor.__base__, next(names, ""), function)
    frame = asking.f_back
    if frame is None or not _is_in_torch(frame.f_globals) or frame.f_code.co_freevars:
        return function
    code, given = frame.f_code, frame.f_locals
    n_args = code.co_argcount
    made = FunctionType(code, frame.f_globals, argdefs=tuple(given[name] for name in code.co_varnames[:n_args]))
    made.__kwdefaults__ = {name: given[name] for name in code.co_varnames[n_args : n_args + code.co_kwonlyargcount]}
    return made


def _is_in_torch(scope: Any) -> bool:
    return str(scope.get("__name__")).partition(".")[0] == "torch"
