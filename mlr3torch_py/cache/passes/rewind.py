"""What a forward pass may change before it fails, so that it can be tried again."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.identity.code_objects import is_known
from mlr3torch_py.network.bits import version_of
from mlr3torch_py.network.internals import tree_leaves
from mlr3torch_py.network.randomness import generators, random_states, set_random_states

__all__ = ["Rewind", "is_raised_on_purpose"]

_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def is_raised_on_purpose(error: BaseException) -> bool:
    """Whether the user's code has raised an error by itself, and not since a library or code in C has raised one."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or is_known(str(traceback.tb_frame.f_globals.get("__name__", ""))):
        return False
    if traceback.tb_frame.f_code.co_code[traceback.tb_lasti] != _RAISE:
        return False
    return error.__context__ is None or is_raised_on_purpose(error.__context__)


class Rewind:
    """The state of things before a call of a module: its buffers and the random generators.

    Parameters
    ----------
    module : torch.nn.Module
    args : tuple
    kwargs : dict

    Examples
    --------
    >>> norm, batch = nn.BatchNorm1d(2), torch.ones(3, 2)
    >>> rewind = Rewind(norm, (batch,), {})
    >>> output = norm(batch)
    >>> rewind.to_start(), norm.running_mean
    (True, tensor([0., 0.]))
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        leaves = tree_leaves((args, dict(kwargs)))
        self._given = [(one, version_of(one)) for one in leaves if isinstance(one, torch.Tensor)]
        self._buffers = [(one, one.clone()) for one in module.buffers()]
        self._generators = generators()
        self._random_states = random_states(self._generators)

    def to_start(self) -> bool:
        """Restore the state; return whether the arguments still are what they were."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                if not torch.equal(buffer, value):  # layers write without a new version
                    buffer.copy_(value)
        set_random_states(self._generators, self._random_states)
        return all(version_of(one) == version for one, version in self._given)
