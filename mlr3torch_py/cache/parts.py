"""The parts of a network that are cached."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.frozen import check_cacheable, frozen_parts, has_lazy, is_callable, links
from mlr3torch_py.cache.passes.module import CachedModule
from mlr3torch_py.cache.rejections import Rejection, Rejections, mode_remedy
from mlr3torch_py.cache.stages import Stages
from mlr3torch_py.cache.storage.disk import Disk
from mlr3torch_py.cache.storage.shelf import Shelf
from mlr3torch_py.cache.storage.store import Budget
from mlr3torch_py.cache.storage.tally import Tally
from mlr3torch_py.cache.trials.admission import NEEDS_GRADIENT
from mlr3torch_py.names import ancestors
from mlr3torch_py.network.parameters import can_train, has_parameters, trainable_names
from mlr3torch_py.network.unwrap import Structure, bare, named_parameters

__all__ = ["CachedParts"]

_N_IN_VAIN: Final = 2


class CachedParts:
    """The parts of a network that are cached.

    Parameters
    ----------
    module : torch.nn.Module
    names : sequence of str, optional
        The paths of the submodules to cache while they are frozen; the largest frozen ones if missing.
    max_bytes : int
        The bytes that the rows of all parts may take together.
    check : int
        See `CachedModule`.
    norm_is_pinned, others_are_pinned : bool
        What is kept in eval mode while it is frozen: normalisation layers, and all other modules.
    store : Disk, optional
        Where rows are kept beyond this training.
    dtype : torch.dtype, optional
        In which rows are kept there, if that is coarser than they are.
    device : torch.device, optional
        Where rows are kept in memory; by default where the outputs are.

    Raises
    ------
    ValueError
        If the network lacks a module in `names`, or one of them can never be cached.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> parts = CachedParts(network, max_bytes=100_000)
    >>> parts.begin_epoch(), parts.refresh()
    (None, None)
    >>> batch = torch.rand(3, 2)
    >>> torch.equal(network(batch), network(batch))
    True
    >>> tally = parts.end_epoch()
    >>> tally.hits, tally.misses
    (3, 3)
    >>> parts.close()
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str] | None = None,
        *,
        max_bytes: int = 2**30,
        check: int = 1,
        norm_is_pinned: bool = False,
        others_are_pinned: bool = False,
        store: Disk | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._module = bare(module)
        self._names = None if names is None else frozenset(names)
        self._mode_remedy = partial(mode_remedy, norm_is_pinned=norm_is_pinned, others_are_pinned=others_are_pinned)
        self._shelf = None if store is None else Shelf(store, self._module, dtype)
        self.budget: Budget = Budget(max_bytes, self._shelf, device)
        self._stages = Stages(self._module, self.budget, check)
        self._past_tallies: list[Tally] = []
        self._rejections = Rejections()
        self._rejected: set[str] = set()
        self._containers: set[str] = set()
        self._new: set[str] = set()  # no batch has begun and ended since these were put in place
        self._new_in_epoch: set[str] = set()
        self._is_settled, self._is_refreshed = True, True
        self._structure: Structure | None = None  # when it was refreshed
        self._was_lazy = False  # then
        self._never_called = set(names or ())
        if names is not None:
            check_cacheable(self._module, names)

    @property
    def modules(self) -> Mapping[str, CachedModule]:
        """The modules that are cached now, by path."""
        return self._stages.modules

    @property
    def stages(self) -> Mapping[str, CachedModule]:
        """Whose calls are answered: these, and the modules without parameters and operations between them."""
        return self._stages.by_name

    @property
    def never_called(self) -> list[str]:
        """The given names that were never called while frozen as a whole."""
        return sorted(self._never_called)

    def refresh(self, *, retry_rejected: bool = True) -> None:
        """Cache what is frozen as a whole now, and nothing else.

        Parameters
        ----------
        retry_rejected : bool
            Whether to try modules again that were rejected before, but for those whose children are tried instead.
        """
        if retry_rejected:
            self._rejections.forget(self._rejected - self._containers)
            self._rejected.clear()
        structure = Structure.of(self._module)
        is_unchanged = structure == self._structure and self._is_refreshed and self._stages.are_held
        if is_unchanged and not retry_rejected:
            return
        trainable = set(trainable_names(self._module))
        self._structure, self._is_refreshed, self._was_lazy = structure, False, has_lazy(self._module)
        while not self._is_refreshed:  # a module may be rejected at first sight
            self._is_refreshed = True
            found = frozen_parts(self._module, trainable, among=self._names, containers=self._containers)
            self._replace(self._stages.modules, found, self._put)
            found = links(self._module, found.values(), containers=self._containers) if self.modules else {}
            self._replace(self._stages.links, found, self._put_link)
        self._stages.surround()
        self._stages.follow_operations()

    def settle(self) -> bool:
        """Try the children of modules that a batch has shown not to fit, and warn about what is given up.

        To be called after a batch. Modules that were asked for by name are not replaced by their children.

        Returns
        -------
        bool
            Whether others are cached than before, so that another batch will show whether they fit.
        """
        if self._shelf is not None and self._shelf.is_due():
            self.write()
        if self._was_lazy and not has_lazy(self._module):
            self.refresh(retry_rejected=False)
            return bool(self._new)
        if self._is_settled:
            return False
        if self._names is None:
            for path in [path for path in self._new if not self.modules[path].is_called]:
                self._release(path)
                self._rejections.add(path, Rejection("it is never called", "", "uncalled", is_final=False))
                self._descend_into(path)
        self._new.clear()
        if not self._is_refreshed:
            self.refresh(retry_rejected=False)
        is_trying = any(cached.is_called and not cached.has_verdict for cached in self.modules.values())
        self._is_settled = not (self._new or is_trying)
        if self._is_settled and self._rejections.has_news:
            self._rejections.tell(is_nothing_cached=not self.modules)
        if not self.modules:
            self.close()
        return bool(self._new)

    def begin_epoch(self) -> None:
        """Start new tallies, and forget the rows of modules in which anything has changed."""
        self.budget.epoch += 1
        self._stages.begin_epoch()

    def end_epoch(self) -> Tally:
        """Drop rows and modules that were not used in this epoch, and return the tally.

        Warns
        -----
        UserWarning
            Once, if nothing at all was cached in an epoch although something is frozen, or if the rows of a module were
            forgotten in two epochs in a row before any came again.
        """
        self._explain_losses()
        tally = sum(self._past_tallies + [cached.tally for cached in self.stages.values()], Tally())
        if not (tally.hits or self.budget.used) and self._has_something_to_cache():
            self._explain_nothing()
        elif self._rejections.has_news:
            self._rejections.tell(is_nothing_cached=False)
        self._stages.end_epoch()
        for path in [path for path, cached in self.modules.items() if self._names is None and cached.is_idle]:
            self.modules[path].unstore(own=True)
            self._release(path)
            self._rejected.add(path)
            remedy = "rows that are augmented at random, or padded to another length, never do"
            self._rejections.add(path, Rejection("none of its rows came again", remedy, "idle", is_final=False))
        self.write()
        self.budget.is_short, self._past_tallies = False, []
        self._new_in_epoch.clear()
        if not self.modules:
            self.close()
        return tally

    @property
    def version(self) -> Hashable:
        """What differs after each change of what `packed` returns."""
        rejected = frozenset(self._rejected), frozenset(self._containers)
        return self.budget.n_changes, rejected, self._stages.version

    def packed(self) -> dict[str, Any]:
        """Return tensors and plain values from which `recall` takes the rows, in this process or another."""
        return {
            "epoch": self.budget.epoch,
            "containers": sorted(self._containers),
            "rejected": sorted(self._rejected),
            **self._stages.packed(),
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Cache what was cached when `packed` was called, with the rows that there were."""
        self.budget.epoch = kept["epoch"]
        self._containers, self._rejected = set(kept["containers"]), set(kept["rejected"])
        self.refresh(retry_rejected=False)
        self._stages.recall(kept)

    @property
    def lost_on_resume(self) -> Sequence[str]:
        """The rows that a checkpoint cannot keep, and why."""
        return self._stages.lost_on_resume

    def write(self) -> None:
        """Write new rows to disk, unless what has computed them was modified meanwhile."""
        if self._shelf is None:
            return
        if self._shelf.n_waiting:
            self._stages.follow_changes()
        self._shelf.write()

    def keep(self) -> None:
        """Answer calls after training, too, until `close`; each follows changes of every kind first."""
        self.write()
        self._stages.keep()
        if self._shelf is not None:
            self._shelf.is_kept = True

    @property
    def n_bytes_on_disk(self) -> int:
        """The bytes that the store takes."""
        return 0 if self._shelf is None else self._shelf.disk.n_bytes

    def close(self) -> None:
        """Call all modules directly again, and forget all rows in memory."""
        self.write()
        for path in [*self._stages.modules, *self._stages.links]:
            self._release(path)
        self._stages.close()

    def _replace(
        self, cached: dict[str, CachedModule], found: Mapping[str, nn.Module], put: Callable[[str, nn.Module], None]
    ) -> None:
        """Cache the modules that were found, and no others."""
        for path, one in list(cached.items()):
            if found.get(path) is not one.module or not one.is_in_place:
                self._release(path)
        for path, module in found.items():
            if path not in cached and path not in self._rejected:
                put(path, module)

    def _put(self, path: str, module: nn.Module) -> None:
        reject = partial(self._reject, path, module)
        try:
            self._stages.put(path, module, reject)
        except NotCacheableError as error:
            reject(error)
        else:
            self._rejections.forget([path])
            self._new.add(path)
            self._new_in_epoch.add(path)
            self._is_settled = False

    def _put_link(self, path: str, module: nn.Module) -> None:
        self._stages.put_link(path, module, partial(self._reject_link, path, module))

    def _release(self, path: str) -> None:
        cached = self._stages.release(path)
        self._structure = None
        self._new.discard(path)
        self._past_tallies.append(cached.tally)
        if cached.is_called:
            self._never_called -= {name for name in self._never_called if path in {name, *ancestors(name)}}

    def _reject(self, path: str, module: nn.Module, error: NotCacheableError, fits_in_eval_mode: bool = False) -> None:
        if path in self.modules:
            if error.reason != NEEDS_GRADIENT:
                self.modules[path].unstore()
            self._release(path)
        self._rejected.add(path)
        self._is_settled = False
        is_expected = error.reason == NEEDS_GRADIENT and self._names is None
        has_children = any(is_callable(one) for one in module.modules() if one is not module and has_parameters(one))
        if is_descended := self._names is None and error.may_fit_below and not fits_in_eval_mode and has_children:
            self._descend_into(path)
        remedy = self._mode_remedy(module) if fits_in_eval_mode else None
        is_final = not (is_expected or is_descended)
        self._rejections.add(path, Rejection.of(error, mode_remedy=remedy, is_final=is_final))

    def _reject_link(self, path: str, module: nn.Module, error: NotCacheableError, fits_in_eval_mode: bool) -> None:
        """Call a module without parameters itself from now on; the user need not know."""
        self._stages.links[path].unstore()
        self._release(path)
        self._rejected.add(path)
        if next(module.children(), None) is not None:
            self._descend_into(path)
            self._is_settled = False

    def _descend_into(self, path: str) -> None:
        self._containers.add(path)
        self._is_refreshed = False

    def _has_something_to_cache(self) -> bool:
        """Whether something is frozen, and it is not too early to tell that nothing of it is cached."""
        trainable = set(trainable_names(self._module))
        if self._names is None:
            tensors = named_parameters(self._module).items()
            is_frozen = any(name not in trainable and can_train(tensor) for name, tensor in tensors)
        else:
            is_frozen = bool(frozen_parts(self._module, trainable, among=self._names))
        is_early = any(path in self._new_in_epoch and not one.has_verdict for path, one in self.modules.items())
        return is_frozen and not is_early

    def _explain_losses(self) -> None:
        for path, cached in self.modules.items():
            if cached.n_in_vain == _N_IN_VAIN - 1 and cached.is_in_vain:
                reason = f"none of its rows came again in {_N_IN_VAIN} epochs, since {cached.lost_to} changes meanwhile"
                remedy = "leave that as it is while it is frozen, or name other modules in `modules`"
                self._rejections.add(path, Rejection(reason, remedy, reason))

    def _explain_nothing(self) -> None:
        for path, cached in self.modules.items():
            reason, remedy = "none of its calls can be answered from memory", ""
            if self.budget.is_short:
                reason, remedy = f"no row of it fits into {self.budget.max_bytes:,} bytes", "raise `max_bytes`"
            elif not cached.is_called:
                reason = "it is never called"
            elif cached.last_change is not None:
                reason += f", since {cached.last_change} changes from one to the next"
            self._rejections.add(path, Rejection(reason, remedy, reason, is_final=False))
        self._rejections.tell(is_nothing_cached=True)
