"""Convert schedulers, classes, callbacks and keys to TorchCallbacks."""

from __future__ import annotations

from typing import Any

from torch.optim import lr_scheduler

from mlr3torch_py.arguments import check_flag
from mlr3torch_py.callbacks.lr_scheduler import lr_scheduler_class
from mlr3torch_py.registry.dictionary import CallbackDictionary, mlr3torch_callbacks, t_clbk
from mlr3torch_py.registry.torch_callback import TorchCallback, check_id, parameters_of
from mlr3torch_py.training.callback_set import CallbackSet

__all__ = ["as_lr_scheduler", "as_torch_callback", "as_torch_callbacks"]


def as_lr_scheduler(x: type, step_on_epoch: bool = True, **params: Any) -> TorchCallback:
    """Make a callback from any learning-rate scheduler of torch.

    Parameters
    ----------
    x : type
        A subclass of `torch.optim.lr_scheduler.LRScheduler`.
    step_on_epoch : bool
        Whether it steps at the end of each epoch; otherwise after each training batch.
    **params
        Parameters of the scheduler. A required one can also be set later, through the net.

    Returns
    -------
    TorchCallback
        Its name is ``lr_`` and the name of the class.

    Raises
    ------
    TypeError
        If `x` is not such a class, or a parameter is unknown.

    See Also
    --------
    CallbackSetLRScheduler

    Examples
    --------
    >>> from torch.optim.lr_scheduler import ExponentialLR
    >>> as_lr_scheduler(ExponentialLR, gamma=0.9)
    <TorchCallback:lr_ExponentialLR>
    * Label: ExponentialLR
    * Generator: CallbackSetLRScheduler_ExponentialLR
    * gamma: 0.9
    * last_epoch: -1
    """
    if not (isinstance(x, type) and issubclass(x, lr_scheduler.LRScheduler)):
        raise TypeError(f"`x` is {x!r}; it must be a scheduler class, such as torch.optim.lr_scheduler.ExponentialLR")
    dictionary = CallbackDictionary()
    key = f"lr_{x.__name__}"
    dictionary.add(key, lr_scheduler_class(x, step_on_epoch=step_on_epoch, label=x.__name__))
    return dictionary.get(key, **params)


def as_torch_callback(x: Any, *, id: str | None = None, clone: bool = False) -> TorchCallback:
    """Convert a callback, a class or a key to a TorchCallback.

    Parameters
    ----------
    x : TorchCallback, CallbackSet, subclass of CallbackSet, or str
        A callback, its class, or a key of `mlr3torch_callbacks`.
    id : str, optional
        The name of the callback in a net; by default that of a TorchCallback, the key, or the name of the class.
    clone : bool
        Whether to make a new callback with the same parameters, which shares nothing with `x`.

    Returns
    -------
    TorchCallback

    Raises
    ------
    KeyError
        If it is a string but not a key.
    TypeError
        If it is none of these, or `id` or `clone` is invalid.

    See Also
    --------
    as_torch_callbacks

    Examples
    --------
    >>> as_torch_callback("history").id
    'history'
    """
    made = _as_torch_callback(x)
    if id is not None:
        check_id("id", id)
        made = TorchCallback(id, made.callback)
    return TorchCallback(made.id, made.generate()) if check_flag("clone", clone) else made


def _as_torch_callback(x: Any) -> TorchCallback:
    if isinstance(x, TorchCallback):
        return x
    if isinstance(x, str):
        return t_clbk(x)
    if isinstance(x, type) and issubclass(x, CallbackSet):
        key = mlr3torch_callbacks.key_of(x)
        return TorchCallback(key, x(**parameters_of(x)))
    if isinstance(x, CallbackSet):
        return TorchCallback(mlr3torch_callbacks.key_of(type(x)), x)
    raise TypeError(f"`x` is {x!r}; it must be a TorchCallback, a CallbackSet, a class of these, or a key")


def as_torch_callbacks(x: Any, *, clone: bool = False) -> list[TorchCallback]:
    """Convert callbacks, classes or keys to a list of TorchCallbacks.

    Parameters
    ----------
    x : list or None
        Of what `as_torch_callback` takes; a single one makes a list of one.
    clone : bool
        Whether to make new callbacks, which share nothing with those in `x`.

    Returns
    -------
    list of TorchCallback
        Empty for None.

    Raises
    ------
    KeyError, TypeError
        If `as_torch_callback` refuses an entry.

    See Also
    --------
    as_torch_callback

    Examples
    --------
    >>> [callback.id for callback in as_torch_callbacks(["history", t_clbk("unfreeze")])]
    ['history', 'unfreeze']
    >>> as_torch_callbacks(None)
    []
    """
    if x is None:
        return []
    return [as_torch_callback(entry, clone=clone) for entry in (x if type(x) in (list, tuple) else [x])]
