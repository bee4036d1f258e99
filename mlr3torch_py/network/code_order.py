"""Code order: in which order the code of a forward pass uses the modules and the parameters that a module holds."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from torch import nn

from mlr3torch_py.network.code_loops import Loop
from mlr3torch_py.network.code_uses import Code, Use, code_of
from mlr3torch_py.network.unwrap import bare

__all__ = ["code_loops", "code_order"]

# Attributes and methods that tell something about a tensor, and not its values.
_FACTS: Final = frozenset({"device", "dim", "dtype", "ndim", "numel", "requires_grad", "shape", "size"})


def code_order(module: nn.Module) -> list[str]:
    """Tell in which order the code of a module's forward pass uses its children and its own parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Methods of its own that its ``forward`` calls are read as well.

    Returns
    -------
    list of str
        The names of those that the code uses, by their first call or use; empty where there is no source to read.

    Examples
    --------
    >>> code_order(nn.LSTM(2, 2)), code_order(nn.TransformerEncoderLayer(4, 1))[-2:]
    ([], ['linear2', 'dropout2'])
    """
    first: dict[str, tuple[int, int]] = {}
    for i, use in enumerate(_code_of(module).uses):
        if (rank := _rank(use, module)) is not None:
            first[use.name] = min((rank, i), first.get(use.name, (rank, i)))
    return sorted(first, key=lambda name: first[name][1])


def code_loops(module: nn.Module) -> dict[str, list[Loop]]:
    """List the loops in the code of a module's forward pass by the path of the list that they go over.

    Examples
    --------
    >>> code_loops(nn.Sequential())
    {}
    """
    return _code_of(module).loops


def _code_of(module: nn.Module) -> Code:
    function = getattr(vars(module).get("forward"), "__func__", None)  # of a method that an object calls its forward
    return _code(type(module), getattr(function, "__name__", "forward"))  # type: ignore[arg-type]


_code = lru_cache(maxsize=1000)(code_of)


def _rank(use: Use, module: nn.Module) -> int | None:
    """Rank a use of what a module holds, and the lowest first: a use counts if there is none of a lower rank.

    Those are a call or a value that goes somewhere, a method or a parameter of a module, and what is kept under a
    local name. None are facts about a tensor, such as its device, apart from those about the module's own.
    """
    child = module._modules.get(use.name)
    if child is None:
        return bool(use.inner) + 2 * use.is_kept if module._parameters.get(use.name) is not None else None
    kept = 2 * (use.is_kept and not (use.is_call and not use.inner))
    child = bare(child)
    for i, name in enumerate(use.inner):
        below = child._modules.get(name)
        if below is None:
            is_parameter = name in child._parameters and _FACTS.isdisjoint(use.inner[i:])
            is_method = use.is_call and name not in {**child._parameters, **child._buffers}
            return 1 + kept if is_parameter or is_method else None
        child = bare(below)
    return kept
