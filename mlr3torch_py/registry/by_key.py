"""t_clbk makes a callback by its key; for each key of the package, type checkers know its parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

from mlr3torch_py.arguments import check_names
from mlr3torch_py.audit.callback import CallbackSetFreezeAudit
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.callbacks.early_stopping import CallbackSetEarlyStopping
from mlr3torch_py.callbacks.history import CallbackSetHistory
from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.callbacks.on_plateau import CallbackSetLRSchedulerReduceOnPlateau
from mlr3torch_py.callbacks.one_cycle import CallbackSetLRSchedulerOneCycle
from mlr3torch_py.callbacks.progress import CallbackSetProgress
from mlr3torch_py.callbacks.tensorboard import CallbackSetTB
from mlr3torch_py.checkpoint.callback import CallbackSetCheckpoint
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.freezing.freezer import Freezer, Names
from mlr3torch_py.freezing.roles import Mode
from mlr3torch_py.freezing.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.names import listed, nearest
from mlr3torch_py.registry.dictionary import mlr3torch_callbacks
from mlr3torch_py.registry.torch_callback import TorchCallback
from mlr3torch_py.schedule.table import Table
from mlr3torch_py.schedule.value import Schedule
from mlr3torch_py.select.base import Select
from mlr3torch_py.training.sink import Sink
from mlr3torch_py.values import shown

__all__ = ["Key", "t_clbk", "t_clbks"]

Key = Literal[
    "checkpoint",
    "early_stopping",
    "freeze_audit",
    "freezer",
    "frozen_cache",
    "history",
    "lr_cosine_annealing",
    "lr_lambda",
    "lr_multiplicative",
    "lr_one_cycle",
    "lr_reduce_on_plateau",
    "lr_step",
    "progress",
    "tb",
    "unfreeze",
]
"""The keys of this package."""


# One overload for each key, with the parameters of its class; none is required, since the net can set it later. What
# fits none of them fits the last one, for keys that users have added, so wrong parameters are found by t_clbk alone.
@overload
def t_clbk(key: None = None) -> list[str]: ...
@overload
def t_clbk(
    key: Literal["checkpoint"],
    *,
    id: str | None = None,
    weight: float | None = None,
    path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]] = ...,
    freq: int = ...,
    resume: bool | str | os.PathLike[str] = False,
    keep_last: int | None = None,
    keep_best: bool = False,
    monitor: str | None = None,
    lower_is_better: bool | None = None,
    sink: Sink = print,
) -> TorchCallback[CallbackSetCheckpoint]: ...
@overload
def t_clbk(
    key: Literal["early_stopping"],
    *,
    id: str | None = None,
    weight: float | None = None,
    patience: int = 5,
    min_delta: float = 0.0,
    restore_best_weights: bool = False,
    monitor: str = "valid_loss",
    lower_is_better: bool | None = None,
    after_schedule: bool = False,
    sink: Sink = print,
) -> TorchCallback[CallbackSetEarlyStopping]: ...
@overload
def t_clbk(
    key: Literal["freeze_audit"],
    *,
    id: str | None = None,
    weight: float | None = None,
    on_change: Literal["raise", "warn"] = "raise",
    sample: int | None = None,
) -> TorchCallback[CallbackSetFreezeAudit]: ...
@overload
def t_clbk(
    key: Literal["freezer"],
    *,
    id: str | None = None,
    weight: float | None = None,
    names: Names = None,
    name_starts_with: str | Sequence[str | Sequence[str]] | None = None,
    except_names: Names = None,
    except_name_starts_with: Names = None,
    until_step: int | None = None,
    until_epoch: int | None = None,
    start_epoch: int | None = None,
    unfreeze_every_n_epochs: int | None = None,
    frozen_mode: Mode = "train",
    frozen_norm: Mode | None = None,
    frozen_dropout: Mode | None = None,
    module: str = "module",
) -> TorchCallback[Freezer]: ...
@overload
def t_clbk(
    key: Literal["frozen_cache"],
    *,
    id: str | None = None,
    weight: float | None = None,
    modules: str | Sequence[str] | None = None,
    max_bytes: int = 2**30,
    check: int = 1,
    store: str | os.PathLike[str] | None = None,
    max_store_bytes: int = 10 * 2**30,
    dtype: str | None = None,
    keep: bool = False,
    device: str | None = None,
) -> TorchCallback[CallbackSetFrozenCache]: ...
@overload
def t_clbk(
    key: Literal["history"], *, id: str | None = None, weight: float | None = None
) -> TorchCallback[CallbackSetHistory]: ...
@overload
def t_clbk(
    key: Literal["lr_cosine_annealing"],
    *,
    id: str | None = None,
    weight: float | None = None,
    T_max: int = ...,  # noqa: N803
    eta_min: float = 0.0,
    last_epoch: int = -1,
) -> TorchCallback[CallbackSetLRScheduler]: ...
@overload
def t_clbk(
    key: Literal["lr_lambda"],
    *,
    id: str | None = None,
    weight: float | None = None,
    lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]] = ...,
    last_epoch: int = -1,
) -> TorchCallback[CallbackSetLRScheduler]: ...
@overload
def t_clbk(
    key: Literal["lr_multiplicative"],
    *,
    id: str | None = None,
    weight: float | None = None,
    lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]] = ...,
    last_epoch: int = -1,
) -> TorchCallback[CallbackSetLRScheduler]: ...
@overload
def t_clbk(
    key: Literal["lr_one_cycle"],
    *,
    id: str | None = None,
    weight: float | None = None,
    max_lr: float | Sequence[float] = ...,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: float | Sequence[float] = 0.85,
    max_momentum: float | Sequence[float] = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 10000.0,
    three_phase: bool = False,
    last_epoch: int = -1,
) -> TorchCallback[CallbackSetLRSchedulerOneCycle]: ...
@overload
def t_clbk(
    key: Literal["lr_reduce_on_plateau"],
    *,
    id: str | None = None,
    weight: float | None = None,
    mode: Literal["min", "max"] | None = None,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 0.0001,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float | Sequence[float] = 0,
    eps: float = 1e-8,
    monitor: str = "valid_loss",
) -> TorchCallback[CallbackSetLRSchedulerReduceOnPlateau]: ...
@overload
def t_clbk(
    key: Literal["lr_step"],
    *,
    id: str | None = None,
    weight: float | None = None,
    step_size: int = ...,
    gamma: float = 0.1,
    last_epoch: int = -1,
) -> TorchCallback[CallbackSetLRScheduler]: ...
@overload
def t_clbk(
    key: Literal["progress"],
    *,
    id: str | None = None,
    weight: float | None = None,
    digits: int | None = None,
    plot: bool = False,
) -> TorchCallback[CallbackSetProgress]: ...
@overload
def t_clbk(
    key: Literal["tb"],
    *,
    id: str | None = None,
    weight: float | None = None,
    path: str | os.PathLike[str] | Callable[[], Any] = ...,
    log_train_loss: bool = False,
    r_tags: bool = True,
) -> TorchCallback[CallbackSetTB]: ...
@overload
def t_clbk(
    key: Literal["unfreeze"],
    *,
    id: str | None = None,
    weight: float | None = None,
    starting_weights: Select = ...,
    unfreeze: Table | None = None,
    schedule: Schedule | None = None,
    frozen_mode: Mode = "train",
    frozen_norm: Mode | None = None,
    frozen_dropout: Mode | None = None,
    module: str = "module",
    restore_best_between: bool = False,
    monitor: str = "valid_loss",
    lower_is_better: bool | None = None,
) -> TorchCallback[CallbackSetUnfreeze]: ...
@overload
def t_clbk(key: str, *, id: str | None = None, weight: float | None = None, **params: Any) -> TorchCallback: ...
@short_traceback
def t_clbk(
    key: str | None = None, *, id: str | None = None, weight: float | None = None, **params: Any
) -> TorchCallback | list[str]:
    """Make a callback by its key, ready for ``callbacks=[...]``.

    Parameters
    ----------
    key : str, optional
        A key of `mlr3torch_callbacks`; without one, all keys are listed. It is the name of the callback in the net,
        where its parameters are ``callbacks__<key>__<parameter>`` (in R ``cb.<key>.<parameter>``). For two callbacks
        of one kind, number them, ``"freezer_1"`` and ``"freezer_2"``, or give an `id`.
    id : str, optional
        Another name of the callback in the net.
    weight : float, optional
        Where it runs among the others, see `CallbackSet`.
    **params
        Parameters of the callback. A required one can also be set later, through the net; if it is not, ``fit`` raises
        before training.

    Returns
    -------
    TorchCallback or list of str
        A pair of the name and the callback; without a key, the keys. Where skorch expects a bare callback, as in
        ``set_params(callbacks__unfreeze=...)`` and in a grid over callbacks, give its `callback`.

    Raises
    ------
    KeyError
        If the key is unknown; the message names the nearest.
    TypeError, ValueError
        If a parameter is unknown or has the wrong type or value.

    See Also
    --------
    t_clbks, mlr3torch_callbacks

    Notes
    -----
    The parameters by key, which each class explains:

    - ``checkpoint``: path, freq, resume=False, keep_last=None, keep_best=False, monitor=None,
      lower_is_better=None, sink=print
    - ``early_stopping``: patience=5, min_delta=0.0, restore_best_weights=False, monitor='valid_loss',
      lower_is_better=None, after_schedule=False, sink=print
    - ``freeze_audit``: on_change='raise', sample=None
    - ``freezer``: names=None, name_starts_with=None, except_names=None, except_name_starts_with=None,
      until_step=None, until_epoch=None, start_epoch=None, unfreeze_every_n_epochs=None, frozen_mode='train',
      frozen_norm=None, frozen_dropout=None, module='module'
    - ``frozen_cache``: modules=None, max_bytes=1073741824, check=1, store=None, max_store_bytes=10737418240,
      dtype=None, keep=False, device=None
    - ``history``: none
    - ``lr_cosine_annealing``: T_max, eta_min=0.0, last_epoch=-1
    - ``lr_lambda``: lr_lambda, last_epoch=-1
    - ``lr_multiplicative``: lr_lambda, last_epoch=-1
    - ``lr_one_cycle``: max_lr, total_steps=None, epochs=None, steps_per_epoch=None, pct_start=0.3,
      anneal_strategy='cos', cycle_momentum=True, base_momentum=0.85, max_momentum=0.95, div_factor=25.0,
      final_div_factor=10000.0, three_phase=False, last_epoch=-1
    - ``lr_reduce_on_plateau``: mode=None, factor=0.1, patience=10, threshold=0.0001, threshold_mode='rel',
      cooldown=0, min_lr=0, eps=1e-08, monitor='valid_loss'
    - ``lr_step``: step_size, gamma=0.1, last_epoch=-1
    - ``progress``: digits=None, plot=False
    - ``tb``: path, log_train_loss=False, r_tags=True
    - ``unfreeze``: starting_weights, unfreeze=None, schedule=None, frozen_mode='train', frozen_norm=None,
      frozen_dropout=None, module='module', restore_best_between=False, monitor='valid_loss', lower_is_better=None

    Examples
    --------
    >>> from mlr3torch_py import select_last
    >>> net = iris_net(callbacks=[t_clbk("unfreeze")], callbacks__unfreeze__starting_weights=select_last(1))
    >>> head, encoder = t_clbk("freezer_1", names="3.bias"), t_clbk("freezer", id="encoder", names="0.bias")
    >>> net = iris_net(callbacks=[head, encoder], callbacks__encoder__until_epoch=2)
    >>> t_clbk("unfreze")
    Traceback (most recent call last):
        ...
    KeyError: "`key` is 'unfreze', which no callback has; did you mean 'unfreeze', 'freezer'?"
    """
    if key is None:
        given = [name for name, value in {"id": id, "weight": weight, **params}.items() if value is not None]
        if given:
            raise TypeError(f"{listed(f'`{name}`' for name in given)} came without a `key`; give the key first")
        return mlr3torch_callbacks.keys()
    return mlr3torch_callbacks.get(key, id=id, weight=weight, **params)


@overload
def t_clbks(keys: None = None) -> list[str]: ...
@overload
def t_clbks(keys: Iterable[Key | str]) -> list[TorchCallback]: ...
@short_traceback
def t_clbks(keys: Iterable[Key | str] | None = None) -> list[TorchCallback] | list[str]:
    """Make several callbacks by key.

    Parameters
    ----------
    keys : iterable of str, optional
        Without any, all keys are listed.

    Returns
    -------
    list of TorchCallback, or of str

    Raises
    ------
    KeyError
        If a key is unknown; the message names the nearest.
    TypeError
        If `keys` is not a list of keys.

    Examples
    --------
    >>> [callback.id for callback in t_clbks(["unfreeze", "history"])]
    ['unfreeze', 'history']
    """
    if keys is None:
        return mlr3torch_callbacks.keys()
    if isinstance(keys, str):
        raise TypeError(f"`keys` is {shown(keys)}; give a list of keys, or use t_clbk({shown(keys)})")
    wanted = check_names("keys", keys)
    if unknown := [key for key in wanted if mlr3torch_callbacks._without_number(key) not in mlr3torch_callbacks]:
        raise KeyError(f"`keys` has {listed(map(repr, unknown))}; {nearest(unknown, mlr3torch_callbacks)}")
    return [t_clbk(key) for key in wanted]
