"""CallbackSetFrozenCache: reuse the outputs of frozen parts of a network in later epochs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import nn

from mlr3torch_py.arguments import check_choice, check_flag, check_names, check_path, check_whole
from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.cache.storage.disk import Disk, opened
from mlr3torch_py.names import listed
from mlr3torch_py.network.compiled import is_compiled
from mlr3torch_py.protocols import Net, last_event, pinned_kinds
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import rows_of
from mlr3torch_py.training.processes import are_several, check_unsharded, is_main_process
from mlr3torch_py.training.stages import LargeState
from mlr3torch_py.values import shown
from mlr3torch_py.warn import warn

__all__ = ["CallbackSetFrozenCache"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_DEVICES: Final = {None: None, "cpu": torch.device("cpu")}
_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class CallbackSetFrozenCache(CallbackSet):
    """Cache the outputs of frozen parts of the network, row by row.

    While a submodule is frozen as a whole, its output for a row stays the same from epoch to epoch. Rows are identified
    by a 128-bit hash of their content, so shuffling, validation and pipelines need nothing special, and a row that is
    augmented at random is computed. Frozen submodules that follow each other count as one: only what they give to other
    code is kept.

    Parameters
    ----------
    modules : str or list of str, optional
        The paths of the submodules to cache, such as ``"encoder"``. If missing, the largest ones that are frozen at the
        time, or those below that can be cached if these cannot. Those without hits in an epoch are dropped, until
        something is frozen or unfrozen.
    max_bytes : int
        The bytes that cached rows may take, overhead of Python and torch included. Rows beyond the limit are computed
        as without the cache. Cached rows stay, except those that were not used for a whole epoch when the limit is
        reached, and the rows of an epoch of which none was used in another one, as augmented rows never are.
    check : int
        How many rows from memory are recomputed and compared at a time, in a batch drawn at random; 0 for none. That is
        done in the first epoch with hits, and then as often as it takes at most 0.05 % of the time that is saved.
    store : str or Path, optional
        A folder on a local disk in which rows outlive this training, for all trainings of this machine that compute the
        same, at once or later: fits of a search, its workers, another script. On Linux, a warning says if the disk is
        not local. Needs lmdb, which ``pip install 'mlr3torch_py[store]'`` brings. If missing, rows are forgotten when
        training ends.
    max_store_bytes : int
        The bytes that the file in this folder may take. When it is full, rows beyond are kept in memory alone.
    dtype : {"float16", "bfloat16"}, optional
        In which rows of float32 and float64 are kept in the store, which takes half of the bytes or a quarter. A row
        from the store then differs from one that was computed by up to 0.05 % of each value with float16, by 0.4 % with
        bfloat16. Values that are too large for it are kept in memory alone.
    keep : bool
        Whether rows are used after training, too, until the next one: by ``predict``, ``score`` and the scorers of a
        search, by one thread at a time, while others compute. Rows are forgotten as soon as anything in what is frozen
        changes; copies and pickles of the net have none.
    device : {"cpu"}, optional
        Where rows are kept in memory: with ``"cpu"`` in host memory, from where copies to a GPU are queued, so that
        Python does not wait for them. By default where the outputs are, such as on the GPU, whose memory `max_bytes`
        then counts.

    Raises
    ------
    RuntimeError
        If a checked row differs by more than rounding.
    TypeError, ValueError
        When training begins, if an argument is wrong or does not fit the network; if the network is compiled by
        ``torch.compile``, or copied to several devices by ``torch.nn.DataParallel``; if the store cannot be opened.
    ImportError
        When training begins, if there is a `store` and lmdb is not installed.

    Warns
    -----
    UserWarning
        If a submodule cannot be cached, and none below it can, with the cause and the remedy: what behaves differently
        in training mode needs ``frozen_mode="eval"`` in the callback that freezes it; others write into their input,
        have hooks, read weights that are trained elsewhere in the network, or return what is not row-wise. For names in
        `modules` also if a gradient flows through it, or if it is never called while it is frozen. Once, with all
        causes, if nothing at all is cached in an epoch although something is frozen. If the rows of a submodule are
        forgotten in two epochs in a row before any of them comes again. If rows are not stored: since no other process
        can tell what computes them, since the store is full, or since they are not what is computed now.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("frozen_cache")``.
    freeze_plan : Forecast what will be cached, before training.
    frozen_store : Look at what a store on disk holds, and drop some of it.

    Notes
    -----
    The history records for each epoch the rows taken from memory (`cache_hits`) and computed (`cache_misses`), counted
    where other code asks for them, the bytes in use when the epoch ends (`cache_bytes`), and the estimated seconds for
    computing the hits minus those that the cache took (`cache_saved`): on CUDA, those of the GPU minus those that
    Python spends in the cache, and on other devices that run asynchronously, those that Python waits. With a `store`,
    it records the hits among these that were taken from disk (`cache_hits_stored`), and the bytes of the store
    (`cache_store_bytes`).

    In a store, rows are found by 128-bit hashes of what computes them and of their content. What computes them is all
    parameters, buffers and other attributes, the modes that matter to it, the code of the forward passes and of all
    that these name, the dtype, the kind of device, autocast, and the versions of Python, torch, numpy and other
    packages in C. What that code gets from files, the environment, `sys.modules` or `torch.ops` is not compared, so
    rows of such a submodule are kept in memory alone, where changes of it are not followed. In every training, some
    rows of each part are computed and compared before any is used from disk; a difference beyond rounding drops the
    part's rows. Every row has a checksum, and is written as a whole or not at all, so a process may be killed at any
    time.

    Rows are forgotten when something in their submodule is unfrozen, when its parameters, buffers, children or other
    attributes change, and when training begins and ends; with `keep`, when the next training begins. Changes that
    torch's version counters see take effect at once; writes through ``.data`` or numpy, and other attributes, when the
    next epoch begins, and at once after training. Trials check whether the rows of a batch are independent while the
    cache is filled, by every fourth row of some batches, other ones each time; of fewer batches, where a trial takes
    more than 0.1 s and trials more than a quarter of the time. Until four batches have tried all positions, rows from
    memory are computed again before they are used. What affects few rows of few batches only may be missed until a
    check finds it.

    Between submodules that are cached, code of the network is given a subclass of `torch.Tensor` in place of an output,
    which becomes a plain tensor in place when anything but its shape, dtype or device is asked for. So ``type(x) is
    torch.Tensor`` is false for it until then; use ``isinstance(x, torch.Tensor)`` or ``torch.is_tensor(x)``. Hooks,
    trainable modules and losses are given plain tensors, and so are functions that ``torch.compile`` or ``torch.jit``
    has compiled, an `autograd.Function`, and custom operations. If a network fails because C code needs the memory of
    its tensor, its forward pass is run again with plain tensors, and from then on it is given these alone. Modules
    without parameters between cached ones, such as ``nn.ReLU``, and functions such as ``torch.flatten`` and
    ``torch.cat`` are not called for rows from memory.

    A checkpoint callback beside it keeps the cached rows in a file of their own, so that a resumed run has the same
    ones, to the bit, and computes none of them again. Rows of a module that is no longer what it was are not used.
    What no file can keep is named in a warning. Each process of a data-parallel training has its own cache, and
    so has each net, if several share a frozen module and train in threads. Other threads that call the network while it
    trains compute. Only submodules of ``module_`` are cached.

    Examples
    --------
    >>> from mlr3torch_py import select_last, t_clbk
    >>> net = iris_net(module__neurons=(8, 8), module__p=0, max_epochs=3, callbacks=[
    ...     t_clbk("unfreeze", starting_weights=select_last(1)),
    ...     t_clbk("frozen_cache"),
    ... ]).fit(X, y)
    >>> net.history[:, ("cache_hits", "cache_misses")]
    [(0, 150), (150, 0), (150, 0)]
    """

    label = "Frozen Cache"
    default_weight: ClassVar[float] = 400
    tools: ClassVar[tuple[str, ...]] = (*CallbackSet.tools, "cached_", "kept_")
    cached_: CachedParts | None = None
    kept_: CachedParts | None = None
    event_: int | None = None

    def __init__(
        self,
        modules: str | Sequence[str] | None = None,
        max_bytes: int = 2**30,
        check: int = 1,
        store: str | os.PathLike[str] | None = None,
        max_store_bytes: int = 10 * 2**30,
        dtype: str | None = None,
        keep: bool = False,
        device: str | None = None,
    ) -> None:
        self.modules = modules
        self.max_bytes = max_bytes
        self.check = check
        self.store = store
        self.max_store_bytes = max_store_bytes
        self.dtype = dtype
        self.keep = keep
        self.device = device

    def check_params(self) -> None:
        if self.modules is not None:
            _check_modules(self.modules)
        check_whole("max_bytes", self.max_bytes, "bytes")
        check_whole("check", self.check, "rows", least=0)
        check_flag("keep", self.keep)
        check_choice("device", self.device, _DEVICES)
        check_whole("max_store_bytes", self.max_store_bytes, "bytes")
        if self.store is not None:
            check_path("store", self.store)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, _DTYPES)
            if self.store is None:
                raise ValueError("`dtype` is how rows are kept in a store, and there is none; give `store`, too")

    def make_parts(self, module: nn.Module, callbacks: Iterable[object], disk: Disk | None = None) -> CachedParts:
        """Set up the cache of a network, beside the other callbacks, and raise if the arguments do not fit it."""
        norm_is_pinned, others_are_pinned = pinned_kinds(callbacks)
        return CachedParts(
            module,
            None if self.modules is None else check_names("modules", self.modules, again=True),
            max_bytes=int(self.max_bytes),
            check=int(self.check),
            norm_is_pinned=norm_is_pinned,
            others_are_pinned=others_are_pinned,
            store=disk,
            dtype=None if self.dtype is None else _DTYPES[self.dtype],
            device=_DEVICES[self.device],
        )

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._close()
        if self.kept_ is not None:
            self.kept_.close()
            self.kept_ = None
        if any(isinstance(callback, CallbackSetFrozenCache) and callback is not self for _, callback in net.callbacks_):
            raise ValueError("a net has two frozen_cache callbacks; leave out one, as one caches all modules")
        self.require_module(net)
        check_unsharded(net, "frozen_cache")
        _check_network(net.module_)
        disk = None if self.store is None else opened(check_path("store", self.store), int(self.max_store_bytes))
        self.cached_ = self.make_parts(net.module_, [callback for _, callback in net.callbacks_], disk)

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        self._refresh(net)  # now, so that a checkpoint can say before the first step which rows it cannot keep

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.cached_ is not None:  # on_train_begin was called, so on_exit will be, too
            self.cached_.begin_epoch()
            self._refresh(net)

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.cached_ is not None and last_event(net) != self.event_:
            self._refresh(net)

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.cached_ is not None:
            self.cached_.settle()

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.cached_ is None:
            return
        tally = self.cached_.end_epoch()
        net.history.record("cache_hits", tally.hits)
        net.history.record("cache_misses", tally.misses)
        net.history.record("cache_bytes", self.cached_.budget.used)
        net.history.record("cache_saved", tally.saved)
        if self.store is not None:
            net.history.record("cache_hits_stored", tally.stored)
            net.history.record("cache_store_bytes", self.cached_.n_bytes_on_disk)

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        cached, self.cached_ = self.cached_, None
        if cached is None:
            return
        if _fills_in_vain(rows_of(net.history)):
            logger.info(
                "frozen_cache: hardly any row was used again, since every epoch began with an event, which empties the "
                "cache; leave two epochs or more between events"
            )
        if self.keep:
            cached.keep()
            self.kept_ = cached
        else:
            cached.close()
        if names := cached.never_called:
            warn(
                f"frozen_cache: nothing was cached for {listed(map(repr, names))}, never called while frozen as a "
                "whole; freeze it, or remove it from `modules`"
            )

    @property
    def unprinted(self) -> tuple[str, ...]:
        return ("cache_misses", "cache_bytes", "cache_saved", "cache_hits_stored", "cache_store_bytes")

    @property
    def numbers(self) -> tuple[str, ...]:
        return ("cache_hits", *self.unprinted)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._close()

    @property
    def lost_on_resume(self) -> Sequence[str]:
        of_others = (
            "the rows of frozen_cache in other processes than the main one, which are computed again and so may be "
            "rounded differently: leave out frozen_cache where every bit matters"
        )
        lost = [] if self.cached_ is None else self.cached_.lost_on_resume
        return [*lost, of_others] if self.ctx is not None and are_several(self.ctx.net) else lost

    def large_state(self) -> LargeState | None:
        if self.cached_ is None or self.ctx is None or not is_main_process(self.ctx.net):
            return None
        return LargeState(self.cached_.version, self.cached_.packed)

    def load_large_state(self, state: Mapping[str, Any]) -> None:
        if self.cached_ is not None and self.ctx is not None and is_main_process(self.ctx.net):
            self.cached_.recall(state)
            self.event_ = last_event(self.ctx.net)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"cached_": None, "kept_": None, "event_": None}

    def _refresh(self, net: Net) -> None:
        if self.cached_ is not None:
            event = last_event(net)
            self.cached_.refresh(retry_rejected=event != self.event_)
            self.event_ = event

    def _close(self) -> None:
        if self.cached_ is not None:
            self.cached_.close()
        self.cached_, self.event_ = None, None


def _fills_in_vain(history: Iterable[Mapping[str, Any]]) -> bool:
    """Whether few rows were used again, since each epoch with something to cache began with an event."""
    rows = [row for row in history if row.get("cache_misses") or row.get("cache_hits")]
    has_hits = 10 * sum(row["cache_hits"] for row in rows) > sum(row["cache_misses"] for row in rows)
    return len(rows) > 1 and not has_hits and all(row.get("event_unfreeze") for row in rows[1:])


def _check_modules(modules: object) -> None:
    """Check that modules are named, as far as can be told without the network."""
    remedy = "or give None to cache all frozen ones"
    names = check_names("modules", modules, again=True)
    if not names:
        raise ValueError(f"`modules` is {shown(modules)}; name a module, {remedy}")
    if "" in names:
        raise ValueError(
            f"`modules` is {shown(modules)}, and the network itself cannot be named; name modules in it, such as "
            f"'encoder', {remedy}"
        )


def _check_network(module: nn.Module) -> None:
    """Check that calls of submodules can be answered from memory."""
    for part in module.modules():
        if is_compiled(part):
            raise ValueError(
                "frozen_cache: `module_` is compiled by torch.compile, which leaves no calls of submodules to be "
                "answered from memory; leave out compile=True, or the callback"
            )
        if isinstance(part, nn.DataParallel) and len(part.device_ids) > 1:
            raise ValueError(
                "frozen_cache: `module_` is copied to several devices by DataParallel at every call, so no submodule "
                "can keep its outputs; use DistributedDataParallel, or leave out the callback"
            )
