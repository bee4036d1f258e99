"""Whether a module is compiled."""

from __future__ import annotations

from torch import nn

from mlr3torch_py.network.internals import internal

__all__ = ["is_compiled"]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled, by ``torch.compile(module)`` or by ``module.compile()``."""
    is_wrapped = isinstance(module, internal("torch._dynamo.eval_frame", "OptimizedModule"))
    call = vars(module).get("_compiled_call_impl")
    return is_wrapped or not (call is None or getattr(call, "is_cache", False))
