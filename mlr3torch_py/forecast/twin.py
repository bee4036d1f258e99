"""A copy of a net that prepares its data as ``fit`` does, and takes steps, without modifying the net."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from skorch.history import History
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from mlr3torch_py.network.copies import copyable, with_leaves
from mlr3torch_py.protocols import Net

__all__ = ["FitData", "first_line", "learn", "shallow_copy", "twin_of", "undistributed"]

# What may be large and is only read; the random generators in it are restored by `kept_random_states`.
_SHARED = (Dataset, np.ndarray, torch.Tensor, partial)


class FitData(NamedTuple):
    """What ``fit`` trains on.

    Parameters
    ----------
    X, y : object
        The data, as the net prepares them.
    fit_params : dict
        What it passes to each step.
    error : Exception or None
        Why it is not known what ``fit`` would make of the data, so that they are as they were given.
    epochs : int, optional
        The number of epochs, if ``fit`` sets it in place of ``max_epochs``.
    """

    X: Any
    y: Any
    fit_params: dict[str, Any]
    error: Exception | None = None
    epochs: int | None = None


def shallow_copy(net: Net) -> Net:
    """Copy a net without its attributes; copy.copy() would pickle its module."""
    copied: Net = object.__new__(type(net))
    vars(copied).update(vars(net))
    return copied


def twin_of(net: Net, callbacks: Sequence[tuple[str, Any]]) -> Net:
    """Copy a net with its modules and all else that training modifies, once; the data that it holds are shared.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialized or not. Optimizers are created by its own methods, so that they hold the copied parameters.
    callbacks : sequence of tuple
        All callbacks of the copy, with their names.

    Raises
    ------
    Exception
        Whatever a network raises that can be neither copied nor created again.
    """
    twin: Net = object.__new__(type(net))
    memo: dict[int, Any] = {id(net): twin}
    try:
        vars(twin).update({name: _own(value, memo) for name, value in vars(net).items() if _is_copied(name, net)})
    except Exception:
        if not net.initialized_:
            raise
        made = {f"{name}_" for name in (*net._modules, *net._criteria)}
        params = {name: value for name, value in vars(net).items() if _is_copied(name, net) and name not in made}
        vars(twin).update({name: _own(value, memo) for name, value in params.items()}, initialized_=False)
    vars(twin).update({name: value for name, value in vars(net).items() if name.startswith("callbacks__")})
    vars(twin).update(callbacks=[], callbacks_=list(callbacks), history_=History(), verbose=0, warm_start=True)
    vars(twin)["initialize_callbacks"] = lambda: twin
    return twin


def _is_copied(name: str, net: Net) -> bool:
    """Whether an attribute is copied; callbacks may hold open files, and optimizers hold the original parameters."""
    return not name.startswith("callbacks") and name not in {f"{name}_" for name in net._optimizers}


def _own(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, nn.Module):
        with copyable([value]):
            for wrapper in filter(_is_distributed, value.modules()):
                memo[id(wrapper)] = deepcopy(wrapper.module, memo)
            return with_leaves(deepcopy(value, memo))
    if isinstance(value, _SHARED):
        return value
    try:
        return deepcopy(value, memo)
    except Exception:  # whatever a lock, a generator or an open file raises
        return value


def undistributed(module: nn.Module) -> nn.Module:
    """Take a network, and all parts of it, out of DistributedDataParallel, which would wait for other processes."""
    while _is_distributed(module):
        module = cast(nn.Module, module.module)
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = undistributed(child)
    return module


def _is_distributed(module: nn.Module) -> bool:
    return isinstance(module, DistributedDataParallel)


def learn(twin: Net, X: Any, y: Any) -> FitData:
    """Let the ``fit`` of a copy prepare itself and the data, up to the first epoch.

    Nets learn from their data in ``fit``, in hooks of callbacks, or turn them into other data there.
    """
    found: list[FitData] = []

    def stop(X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any) -> Net:
        params = {k: v for k, v in fit_params.items() if k != "_routing_method"}
        found.append(FitData(X, y, params, epochs=epochs))
        return twin

    vars(twin)["fit_loop"] = stop
    error = None
    try:
        twin.fit(X, y)
    except Exception as raised:  # whatever it is, it is for fit() to raise, and no reason to lose a plan
        error = raised
    finally:
        del vars(twin)["fit_loop"]
    return found[0] if found else FitData(X, y, {}, error)


def first_line(error: Exception) -> str:
    r"""Return the type of an error with the first line of its message.

    Examples
    --------
    >>> first_line(KeyError("x")), first_line(ValueError("one line\nof two")), first_line(ValueError())
    ("KeyError: 'x'", 'ValueError: one line', 'ValueError')
    """
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
