"""CallbackSetFrozenCache: what frozen parts of a network compute is taken from memory in later epochs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Set
from numbers import Integral
from typing import Any

from torch import nn

from mlr3torch_py.cache.parts import CachedParts
from mlr3torch_py.names import as_names, listed
from mlr3torch_py.network.compiled import is_compiled
from mlr3torch_py.network.parameters import frozen_by_us
from mlr3torch_py.training.callback_set import CallbackSet

__all__ = ["CallbackSetFrozenCache"]


class CallbackSetFrozenCache(CallbackSet):
    """Take what frozen parts of the network compute from memory, for rows that they have seen before.

    While a submodule is frozen as a whole, its output for a row stays the same from epoch to epoch. Rows are known by a
    128-bit hash of their content, so that shuffling, validation and pipelines need nothing special, and a row that is
    augmented at random is computed.

    Parameters
    ----------
    modules : str or list of str, optional
        The paths of the submodules, such as ``"encoder"``. If missing, the largest ones that are frozen, at any time.
        Those of which no row comes again are let go of, until something is frozen or unfrozen.
    max_bytes : int
        How many bytes the rows may take, together with what Python and torch need to keep them. Beyond that rows are
        computed as without the cache. Rows that are kept stay, except those that nobody asked for in a whole epoch.
    check : int
        How many rows from memory are computed afresh and compared in each epoch, for each submodule, in a batch that is
        drawn at random; 0 for none.

    Raises
    ------
    RuntimeError
        If a row that is checked differs by more than rounding.
    TypeError, ValueError
        When training begins, if an argument is wrong or does not fit the network; if the network is compiled by
        ``torch.compile``, or copied to several devices by ``torch.nn.DataParallel``.

    Warns
    -----
    UserWarning
        If a submodule is left alone, with what would change that: BatchNorm and dropout that are not held in evaluation
        (``frozen_norm="eval"``, ``frozen_dropout="eval"``), hooks, and outputs that are no function of their row. For
        names in `modules` also if a gradient goes through it, or if it is never called while it is frozen.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("frozen_cache")``.
    freeze_plan : What will be cached, before training.

    Notes
    -----
    The history has, for each epoch, the rows that were there (`cache_hits`) and that were computed (`cache_misses`),
    the bytes in use (`cache_bytes`), and the seconds that computing the hits would have taken less what the cache took
    (`cache_saved`); on devices that compute while Python goes on, seconds are those that Python waits.

    Rows are forgotten when something of their submodule is unfrozen, when its parameters, buffers, children or other
    attributes change, and at the begin and end of training. What torch counts as a change is seen at once; what is
    written through ``.data`` or numpy, and other attributes, when the next epoch begins. Whether the rows of a batch
    are independent is tried out while the cache is filled, which costs some batches more in the first epoch.

    Each process of a data-parallel training has rows of its own. Submodules are found in ``module_`` only.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, select_last, t_clbk
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3, module__neurons=(8, 8), module__p=0,
    ...     max_epochs=3, verbose=0, callbacks=[
    ...         t_clbk("unfreeze", starting_weights=select_last(1)),
    ...         t_clbk("frozen_cache"),
    ...     ],
    ... ).fit(X.astype("float32"), y)
    >>> net.history[:, ("cache_hits", "cache_misses")]
    [(0, 300), (300, 0), (300, 0)]
    """

    label = "Frozen Cache"
    default_weight = 400
    cached_: Any = None
    frozen_: Set[str] | None = None
    is_new_ = False

    def __init__(self, modules: str | Sequence[str] | None = None, max_bytes: int = 2**30, check: int = 1) -> None:
        self.modules = modules
        self.max_bytes = max_bytes
        self.check = check

    def check_params(self) -> None:
        if self.modules is not None:
            as_names("modules", self.modules)
        for argument, least, what in (("max_bytes", 1, "bytes"), ("check", 0, "rows")):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"`{argument}` is {value!r}; give a whole number of {what}, {least} or more")
            if value < least:
                raise ValueError(f"`{argument}` is {value!r}; give a whole number of {what}, {least} or more")

    def make_parts(self, module: nn.Module) -> CachedParts:
        """Make what caches the modules of a network, and raise if the arguments do not fit it."""
        names = None if self.modules is None else as_names("modules", self.modules)
        return CachedParts(module, names, max_bytes=int(self.max_bytes), check=int(self.check))

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._close()
        if any(isinstance(callback, CallbackSetFrozenCache) and callback is not self for _, callback in net.callbacks_):
            raise ValueError("a net has two frozen_cache callbacks; one is enough, for all its modules")
        _check_network(net)
        self.cached_ = self.make_parts(net.module_)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.cached_ is not None:  # there was a begin, so there will be an exit
            self.cached_.begin_epoch()
            self._find(net)

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.cached_ is not None and frozen_by_us(net.module_) is not self.frozen_:
            self._find(net)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.cached_ is not None and self.is_new_:
            self.is_new_ = False
            self.cached_.replace_uncalled()

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.cached_ is None:
            return
        n_bytes, tally = self.cached_.budget.used, self.cached_.end_epoch()
        net.history.record("cache_hits", tally.hits)
        net.history.record("cache_misses", tally.misses)
        net.history.record("cache_bytes", n_bytes)
        net.history.record("cache_saved", tally.saved)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        cached, self.cached_ = self.cached_, None
        if cached is None:
            return
        cached.close()
        if idle := cached.idle_names:
            warnings.warn(
                f"frozen_cache: {listed(map(repr, idle))} of `modules` was never called while frozen as a whole, so "
                "nothing of it was cached",
                stacklevel=2,
            )

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"cached_": None, "frozen_": None}

    def _find(self, net: Any) -> None:
        frozen = frozen_by_us(net.module_)
        self.cached_.find(after_event=frozen is not self.frozen_)
        self.frozen_, self.is_new_ = frozen, True

    def _close(self) -> None:
        if self.cached_ is not None:
            self.cached_.close()
        self.cached_, self.frozen_ = None, None


def _check_network(net: Any) -> None:
    """Check that calls of modules can be answered from memory."""
    for module in net.module_.modules():
        if is_compiled(module):
            raise ValueError(
                "frozen_cache: `module_` is compiled by torch.compile, which leaves no calls of frozen modules to be "
                "answered from memory; leave out compile=True, or the callback"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                "frozen_cache: `module_` is copied to several devices by DataParallel at every call, so that no module "
                "can keep what it computed; use DistributedDataParallel, or leave out the callback"
            )
