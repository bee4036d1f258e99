"""Where placeholders become real: the modules of a network that are not cached."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

from torch import nn
from torch.nn.modules import module as torch_module

from mlr3torch_py.cache.passes.modes import is_transformed
from mlr3torch_py.cache.passes.place import InPlace
from mlr3torch_py.cache.passes.placeholder import Passes, arguments_made_real, made_real
from mlr3torch_py.cache.passes.rewind import Rewind, is_raised_on_purpose

__all__ = ["Boundary"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_N_TRIED: Final = 2
# What torch and extensions in C raise when they are given a tensor without values.
_ERRORS: Final = (RuntimeError, TypeError, ValueError)


class Boundary(InPlace):
    """Pass real tensors to a module that is not cached, and to its hooks.

    It takes the place of the module's own call until `remove`. The outermost call of a network's modules is a forward
    pass, at whose end no placeholder is left.

    Parameters
    ----------
    module : torch.nn.Module
    passes : Passes

    Examples
    --------
    >>> import torch
    >>> linear = nn.Linear(2, 1)
    >>> boundary = Boundary(linear, Passes())
    >>> linear(torch.ones(3, 2)).shape
    torch.Size([3, 1])
    >>> boundary.remove()
    """

    def __init__(self, module: nn.Module, passes: Passes) -> None:
        super().__init__(module)
        self._passes = passes
        self._n_passes, self._is_plain = 0, False
        self.put_in_place()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        if is_transformed():
            return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not self._is_open:
            args, kwargs = arguments_made_real(args, kwargs)
        if self._passes.current is None:
            return self._call_outermost(args, kwargs)
        if self._has_hooks:
            return self._call_plainly(args, kwargs)
        return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _call_outermost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module with placeholders inside; the first times, without them if it does not accept these."""
        if self._is_plain or self._has_hooks:
            return self._call_plainly(args, kwargs)
        self._n_passes += 1
        rewind = Rewind(self.module, args, kwargs) if self._n_passes <= _N_TRIED else None
        try:
            return self._call_with_placeholders(args, kwargs)
        except _ERRORS as error:
            # A network may refuse placeholders by a TypeError of its own.
            is_theirs = is_raised_on_purpose(error) and not isinstance(error, TypeError)
            is_final = is_theirs or str(error).startswith("frozen_cache")
            if rewind is None or is_final or not self._passes.has_given or not rewind.to_start():
                raise
            logger.info(
                "frozen_cache: the network is run again with plain tensors, since it has raised %s: %s",
                type(error).__name__,
                error,
            )
        output = self._call_plainly(args, kwargs)
        self._is_plain = True
        return output

    def _call_with_placeholders(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._passes.current, self._passes.has_given = {}, False
        try:
            output = self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        except BaseException:
            with suppress(Exception):  # of those that are left, a traceback may be the only owner
                self._passes.end()
            raise
        else:
            self._passes.end()
            return made_real(output)
        finally:
            self._passes.current = None

    def _call_plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._passes.suspended():
            return made_real(self.module._call_impl(*args, **kwargs))  # type: ignore[no-untyped-call]

    @property
    def _is_open(self) -> bool:
        """Whether only other modules compute with what this one is given, so that placeholders may go through it."""
        module = self.module
        return (
            bool(module._modules)
            and not any(tensor is not None and tensor.requires_grad for tensor in module._parameters.values())
            and not (module._forward_pre_hooks or torch_module._global_forward_pre_hooks or self._has_hooks)
        )

    @property
    def _has_hooks(self) -> bool:
        """Whether hooks would see what the module returns; then none of its modules gives placeholders."""
        module = self.module
        return bool(
            module._forward_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or torch_module._global_forward_hooks
            or torch_module._global_backward_hooks
            or torch_module._global_backward_pre_hooks
        )
