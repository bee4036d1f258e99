"""Convert schedulers, classes, callbacks and keys to TorchCallbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, isabstract, signature
from itertools import count
from typing import Any, TypeVar, overload

from torch import nn
from torch.optim import lr_scheduler

from mlr3torch_py.arguments import check_flag
from mlr3torch_py.callbacks.lr_arguments import name_of
from mlr3torch_py.callbacks.lr_class import lr_scheduler_class
from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.callbacks.on_plateau import CallbackSetLRSchedulerReduceOnPlateau
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import nearest
from mlr3torch_py.registry.by_key import t_clbk
from mlr3torch_py.registry.dictionary import CallbackDictionary, mlr3torch_callbacks
from mlr3torch_py.registry.torch_callback import TorchCallback, check_id, parameters_of
from mlr3torch_py.select.base import Select
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.values import shown

__all__ = ["as_lr_scheduler", "as_torch_callback", "as_torch_callbacks"]

C = TypeVar("C", bound=CallbackSet)
_Callback = TorchCallback | CallbackSet | type[CallbackSet] | str


@short_traceback
def as_lr_scheduler(
    x: type[lr_scheduler.LRScheduler] | Callable[..., Any], step_on_epoch: bool = True, **params: Any
) -> TorchCallback[CallbackSetLRScheduler]:
    """Make a callback from any learning-rate scheduler.

    Parameters
    ----------
    x : type or callable
        A subclass of `torch.optim.lr_scheduler.LRScheduler`, or a function that takes an optimizer, and parameters of
        its own, and returns a scheduler. Write a function for a scheduler that is made of others.
    step_on_epoch : bool
        Whether it steps at the end of each epoch; otherwise after each training batch.
    **params
        Parameters of the scheduler. A required one can also be set later, through the net.

    Returns
    -------
    TorchCallback
        Its name is ``lr_`` and the name of the class or function.

    Raises
    ------
    TypeError, ValueError
        If `x` is neither, or a parameter is unknown or wrong.

    See Also
    --------
    CallbackSetLRScheduler

    Examples
    --------
    >>> from torch.optim.lr_scheduler import ExponentialLR
    >>> print(as_lr_scheduler(ExponentialLR, gamma=0.9))
    <TorchCallback:lr_ExponentialLR>
    * Label: ExponentialLR
    * Generator: CallbackSetLRScheduler_ExponentialLR
    * gamma: 0.9
    * last_epoch: -1

    Some warm-up, then a cosine:

    >>> from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
    >>> def warm_up(optimizer, epochs=2):
    ...     parts = [LinearLR(optimizer, 0.1, total_iters=epochs), CosineAnnealingLR(optimizer, 3)]
    ...     return SequentialLR(optimizer, parts, milestones=[epochs])
    >>> as_lr_scheduler(warm_up).callback.simulate(5, initial_lr=1.0).round(2)
    array([0.1 , 0.55, 1.  , 0.75, 0.25])
    """
    _check_scheduler(x)
    step_on_epoch = check_flag("step_on_epoch", step_on_epoch)
    more: dict[str, Any] = {}
    if isinstance(x, type) and issubclass(x, lr_scheduler.ReduceLROnPlateau):
        more = {"base": CallbackSetLRSchedulerReduceOnPlateau, "monitor": "valid_loss"}
    dictionary, name = CallbackDictionary(), name_of(x)
    key = f"lr_{name}"
    dictionary.add(key, lr_scheduler_class(x, step_on_epoch=step_on_epoch, label=name, **more))
    made: TorchCallback[Any] = dictionary.get(key, **params)
    return made


def _check_scheduler(x: Any) -> None:
    """Check that something makes a scheduler for an optimizer."""
    function = "a function of the optimizer that makes the scheduler"
    if isinstance(x, type) and issubclass(x, lr_scheduler.LRScheduler):
        if "schedulers" in signature(x).parameters:
            raise TypeError(
                f"`x` is {x.__name__}, which is made of other schedulers of one optimizer; give {function}, such as "
                f"lambda optimizer: {x.__name__}(...)"
            )
        return
    if isinstance(x, type) or not callable(x) or isinstance(x, (Select, nn.Module)):
        raise TypeError(
            f"`x` is {shown(x)}; give a scheduler class, such as torch.optim.lr_scheduler.ExponentialLR, or {function}"
        )
    try:
        takes = list(signature(x).parameters.values())
    except ValueError:
        takes = []
    if not takes or takes[0].kind not in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"`x` is {shown(x)}, which takes no optimizer; give {function}")


@overload
def as_torch_callback(
    x: TorchCallback[C] | C | type[C], *, id: str | None = None, clone: bool = False
) -> TorchCallback[C]: ...
@overload
def as_torch_callback(x: str, *, id: str | None = None, clone: bool = False) -> TorchCallback: ...
@short_traceback
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
        made = TorchCallback(check_id("id", id), made.callback)
    return TorchCallback(made.id, made.generate()) if check_flag("clone", clone) else made


def _as_torch_callback(x: Any) -> TorchCallback:
    if isinstance(x, TorchCallback):
        return x
    if isinstance(x, str):
        if mlr3torch_callbacks._without_number(x) not in mlr3torch_callbacks:
            raise KeyError(f"`x` is {shown(x)}, which is no key; {nearest([x], mlr3torch_callbacks)}")
        return t_clbk(x)
    if isinstance(x, type) and issubclass(x, CallbackSet) and not isabstract(x):
        key = mlr3torch_callbacks.key_of(x)
        return TorchCallback(key, x.with_params(parameters_of(x)))
    if isinstance(x, CallbackSet):
        return TorchCallback(mlr3torch_callbacks.key_of(type(x)), x)
    raise TypeError(f"`x` is {shown(x)}; give a TorchCallback, a CallbackSet, a class of these, or a key")


@short_traceback
def as_torch_callbacks(x: _Callback | Sequence[_Callback] | None, *, clone: bool = False) -> list[TorchCallback]:
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
        Empty for None. Entries of the same name are numbered, as skorch numbers bare callbacks of one class: two
        freezers are ``freezer_1`` and ``freezer_2``.

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
    >>> [callback.id for callback in as_torch_callbacks(["history", "history"])]
    ['history_1', 'history_2']
    >>> as_torch_callbacks(None)
    []
    """
    if x is None:
        return []
    entries: Any = x if isinstance(x, Sequence) and not isinstance(x, (str, bytes, TorchCallback)) else [x]
    return _numbered([as_torch_callback(entry, clone=clone) for entry in entries])


def _numbered(callbacks: Sequence[TorchCallback]) -> list[TorchCallback]:
    """Append numbers to names that stand several times, and skip those that another callback has."""
    taken, made = Counter(one.id for one in callbacks), list[TorchCallback]()
    repeated = {name for name, n in taken.items() if n > 1}
    for one in callbacks:
        if one.id in repeated:
            name = next(_unused(one.id, taken))
            taken[name] += 1
            made.append(TorchCallback(name, one.callback))
        else:
            made.append(one)
    return made


def _unused(name: str, taken: Mapping[str, int]) -> Iterator[str]:
    return (numbered for i in count(1) if (numbered := f"{name}_{i}") not in taken)
