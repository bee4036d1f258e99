"""Whether a call is a usual one: neither traced nor differentiated forward, and no mode changes what functions give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Final

import torch
from torch.autograd import forward_ad

from mlr3torch_py.network.internals import check_internals, internal

__all__ = ["has_modes", "in_inference_mode", "is_plain", "is_transformed", "without_modes"]

check_internals("torch.autograd.forward_ad", forward_ad)

_n_dispatch_modes: Final[Callable[[], int]] = internal("torch._C", "_len_torch_dispatch_stack")
_n_function_modes: Final[Callable[[], int]] = internal("torch._C", "_len_torch_function_stack")
_function_mode: Final[Callable[[int], object]] = internal("torch._C", "_get_function_stack_at")
_disabled: Final[Callable[[], AbstractContextManager[Any]]] = internal(
    "torch.utils._python_dispatch", "_disable_current_modes"
)
_transform: Final[Callable[[], object]] = internal("torch._C._functorch", "peek_interpreter_stack")
_without_transforms: Final[Callable[[], AbstractContextManager[Any]]] = internal(
    "torch._functorch.pyfunctorch", "temporarily_clear_interpreter_stack"
)
_Device: Final[Any] = internal("torch.utils._device", "DeviceContext")


def has_modes() -> bool:
    """Whether a mode of torch is active that may change what functions give, and not only a default device.

    Examples
    --------
    >>> with torch.device("cpu"):
    ...     has_modes()
    False
    """
    if _n_dispatch_modes():
        return True
    n_modes = _n_function_modes()
    return n_modes > 0 and not all(isinstance(_function_mode(i), _Device) for i in range(n_modes))


def is_transformed() -> bool:
    """Whether calls are being traced, compiled, differentiated in forward mode or changed by a mode."""
    is_traced: bool = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or forward_ad._current_level >= 0 or has_modes()


def is_plain() -> bool:
    """Whether functions give what they give by themselves: no mode is active, nothing traced or transformed."""
    return not is_transformed() and _transform() is None


def in_inference_mode(is_inference: bool) -> AbstractContextManager[Any]:
    """Enter or leave inference mode, where that changes something."""
    is_as_now = is_inference == torch.is_inference_mode_enabled()
    return nullcontext() if is_as_now else torch.inference_mode(is_inference)


def without_modes() -> AbstractContextManager[Any]:
    """Let no mode and no transform of ``torch.func`` see operations, which belong to a call that was made before."""
    if _transform() is None:
        return _disabled() if _n_dispatch_modes() else nullcontext()
    stack = ExitStack()
    stack.enter_context(_without_transforms())
    if _n_dispatch_modes():
        stack.enter_context(_disabled())
    return stack
