"""The parts of a network that are cached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.cache.admission import NEEDS_GRADIENT
from mlr3torch_py.cache.boundary import Boundary
from mlr3torch_py.cache.disk import Disk
from mlr3torch_py.cache.doors import guard, unguard
from mlr3torch_py.cache.frozen import frozen_parts, is_callable, links
from mlr3torch_py.cache.module import CachedModule
from mlr3torch_py.cache.operations import Operations
from mlr3torch_py.cache.packing import Keeper, packed, recalled
from mlr3torch_py.cache.placeholder import Passes
from mlr3torch_py.cache.portable import NotPortableError
from mlr3torch_py.cache.rejections import Rejection, Rejections, mode_remedy, quoted
from mlr3torch_py.cache.rows import NotCacheableError
from mlr3torch_py.cache.shelf import Shelf
from mlr3torch_py.cache.store import Budget, Table
from mlr3torch_py.cache.tally import Tally
from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.parameters import can_train, trainable_names
from mlr3torch_py.network.unwrap import Structure, bare, named_modules, named_parameters

__all__ = ["CachedParts"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")


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
        self._check = check
        self._mode_remedy = partial(mode_remedy, norm_is_pinned=norm_is_pinned, others_are_pinned=others_are_pinned)
        self._shelf = None if store is None else Shelf(store, self._module, dtype)
        self.budget: Budget = Budget(max_bytes, self._shelf, device)
        self._operations = Operations(self.budget, check)
        self._passes = Passes(self._operations.answer)
        self._modules: dict[str, CachedModule] = {}
        self._links: dict[str, CachedModule] = {}
        self._boundaries: list[Boundary] = []
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
            _check_names(self._module, names)

    @property
    def modules(self) -> Mapping[str, CachedModule]:
        """The modules that are cached now, by path."""
        return self._modules

    @property
    def stages(self) -> Mapping[str, CachedModule]:
        """Whose calls are answered: these, and the modules without parameters and operations between them."""
        return {**self._modules, **self._links, **self._operations.stages}

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
        is_in_place = all(one.is_in_place for one in self.stages.values()) and all(
            one.is_in_place for one in self._boundaries
        )
        if structure == self._structure and self._is_refreshed and is_in_place and not retry_rejected:
            return
        trainable = set(trainable_names(self._module))
        self._structure, self._is_refreshed, self._was_lazy = structure, False, _is_lazy(self._module)
        while not self._is_refreshed:  # a module may be rejected at first sight
            self._is_refreshed = True
            found = frozen_parts(self._module, trainable, among=self._names, containers=self._containers)
            self._replace(self._modules, found, self._put_in_place)
            found = links(self._module, found.values(), containers=self._containers) if self._modules else {}
            self._replace(self._links, found, self._put_link_in_place)
        self._put_boundaries_in_place()
        self._operations.follow(self._module)

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
        if self._was_lazy and not _is_lazy(self._module):
            self.refresh(retry_rejected=False)
            return bool(self._new)
        if self._is_settled:
            return False
        if self._names is None:
            for path in [path for path in self._new if not self._modules[path].is_called]:
                self._release(path)
                self._rejections.add(path, Rejection("it is never called", "", "uncalled", is_final=False))
                self._descend_into(path)
        self._new.clear()
        if not self._is_refreshed:
            self.refresh(retry_rejected=False)
        is_trying = any(cached.is_called and not cached.has_verdict for cached in self._modules.values())
        self._is_settled = not (self._new or is_trying)
        if self._is_settled and self._rejections.has_news:
            self._rejections.tell(is_nothing_cached=not self._modules)
        if not self._modules:
            self.close()
        return bool(self._new)

    def begin_epoch(self) -> None:
        """Start new tallies, and forget the rows of modules in which anything has changed."""
        self.budget.epoch += 1
        for cached in self.stages.values():
            try:
                cached.begin_epoch()
            except NotCacheableError as error:
                cached.reject(error, False)

    def end_epoch(self) -> Tally:
        """Drop rows and modules that were not used in this epoch, and return the tally.

        Warns
        -----
        UserWarning
            Once, if nothing at all was cached in an epoch although something is frozen.
        """
        tally = sum(self._past_tallies + [cached.tally for cached in self.stages.values()], Tally())
        if not (tally.hits or self.budget.used) and self._has_something_to_cache():
            self._explain_nothing()
        elif self._rejections.has_news:
            self._rejections.tell(is_nothing_cached=False)
        used_epochs = {epoch for table in self._tables for epoch in table.used_epochs}
        for cached in self.stages.values():
            cached.end_epoch(used_epochs)
        self._operations.end_epoch(used_epochs)
        for path in [path for path, cached in self._modules.items() if self._names is None and cached.is_idle]:
            self._modules[path].unstore(own=True)
            self._release(path)
            self._rejected.add(path)
            remedy = "rows that are augmented at random, or padded to another length, never do"
            self._rejections.add(path, Rejection("none of its rows came again", remedy, "idle", is_final=False))
        self.write()
        self.budget.is_short, self._past_tallies = False, []
        self._new_in_epoch.clear()
        if not self._modules:
            self.close()
        return tally

    @property
    def version(self) -> Hashable:
        """What differs after each change of what `packed` returns."""
        n_known = sum(len(one.complete) + len(one.seen) for stage in self._keepers for one in stage.layouts)
        rejected = frozenset(self._rejected), frozenset(self._containers), len(self._operations.rejected)
        return self.budget.n_changes, n_known, rejected, tuple(self._digests.items())

    def packed(self) -> dict[str, Any]:
        """Return tensors and plain values from which `recall` takes the rows, in this process or another."""
        return {
            "epoch": self.budget.epoch,
            "containers": sorted(self._containers),
            "rejected": sorted(self._rejected),
            "operations": self._operations.cached,
            "rejected_operations": self._operations.rejected,
            **packed(self._keepers),
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Cache what was cached when `packed` was called, with the rows that there were."""
        self.budget.epoch = kept["epoch"]
        self._containers, self._rejected = set(kept["containers"]), set(kept["rejected"])
        self.refresh(retry_rejected=False)
        rows = recalled(kept, {**self._digests, **dict.fromkeys(kept["operations"])}, self.budget)
        for one in (*self._modules.values(), *self._links.values()):
            if one.identity in rows:
                one.recall(rows[one.identity])
        operations = [rows[identity] for identity in kept["operations"] if identity in rows]
        self._operations.recall(kept["rejected_operations"], operations)

    @property
    def lost_on_resume(self) -> Sequence[str]:
        """The rows that a checkpoint cannot keep, and why."""
        reasons = [(one.name, one.lost_on_resume) for one in self.stages.values()]
        return [f"the rows of {name}, {reason}" for name, reason in reasons if reason]

    @property
    def _keepers(self) -> Sequence[Keeper]:
        return [*self.stages.values(), *self._operations.recalled]

    @property
    def _tables(self) -> Iterator[Table]:
        return (table for one in self._keepers for layout in one.layouts for table in layout.tables)

    @property
    def _digests(self) -> dict[str, str]:
        """What the modules are."""
        found = {}
        for one in (*self._modules.values(), *self._links.values()):
            with suppress(NotPortableError):
                found[one.identity] = one.digest
        return found

    def write(self) -> None:
        """Write new rows to disk, unless what has computed them was modified meanwhile."""
        if self._shelf is None:
            return
        for cached in self.stages.values() if self._shelf.n_waiting else ():
            try:
                cached.follow_changes()
            except NotCacheableError as error:
                cached.reject(error, False)
        self._shelf.write()

    def keep(self) -> None:
        """Answer calls after training, too, until `close`; each follows changes of every kind first."""
        self.write()
        for cached in (*self._modules.values(), *self._links.values()):
            cached.is_kept = True
        if self._shelf is not None:
            self._shelf.is_kept = True

    @property
    def n_bytes_on_disk(self) -> int:
        """The bytes that the store takes."""
        return 0 if self._shelf is None else self._shelf.disk.n_bytes

    def close(self) -> None:
        """Call all modules directly again, and forget all rows in memory."""
        self.write()
        for path in [*self._modules, *self._links]:
            self._release(path)
        self._operations.close()
        self._put_boundaries_in_place()

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

    def _put_link_in_place(self, path: str, module: nn.Module) -> None:
        reject = partial(self._reject_link, path, module)
        with suppress(NotCacheableError):
            self._links[path] = CachedModule(
                quoted(path), module, self.budget, self._check, reject, passes=self._passes, is_link=True
            )

    def _put_boundaries_in_place(self) -> None:
        """Keep placeholders from all modules that are not cached."""
        for boundary in self._boundaries:
            boundary.remove()
        cached = self.stages.values() if self._modules else []
        inside = {id(layer) for one in cached for layer in one.module.modules()}
        outside = [one for one in self._module.modules() if id(one) not in inside and is_callable(one)]
        self._boundaries = [Boundary(one, self._passes) for one in outside] if cached else []
        (guard if cached else unguard)(self._passes)

    def _put_in_place(self, path: str, module: nn.Module) -> None:
        reject = partial(self._reject, path, module)
        try:
            self._modules[path] = CachedModule(
                quoted(path), module, self.budget, self._check, reject, passes=self._passes
            )
        except NotCacheableError as error:
            reject(error)
        else:
            self._rejections.forget([path])
            self._new.add(path)
            self._new_in_epoch.add(path)
            self._is_settled = False

    def _release(self, path: str) -> None:
        cached = self._links.pop(path) if path in self._links else self._modules.pop(path)
        cached.remove()
        self._boundaries.append(Boundary(cached.module, self._passes))
        self._structure = None
        self._new.discard(path)
        self._past_tallies.append(cached.tally)
        if cached.is_called:
            self._never_called -= {name for name in self._never_called if path in {name, *ancestors(name)}}

    def _reject(self, path: str, module: nn.Module, error: NotCacheableError, fits_in_eval_mode: bool = False) -> None:
        if path in self._modules:
            if error.reason != NEEDS_GRADIENT:
                self._modules[path].unstore()
            self._release(path)
        self._rejected.add(path)
        self._is_settled = False
        is_expected = error.reason == NEEDS_GRADIENT and self._names is None
        has_children = any(is_callable(one) for one in module.modules() if one is not module and _has_parameters(one))
        if is_descended := self._names is None and error.may_fit_below and not fits_in_eval_mode and has_children:
            self._descend_into(path)
        remedy = self._mode_remedy(module) if fits_in_eval_mode else None
        is_final = not (is_expected or is_descended)
        self._rejections.add(path, Rejection.of(error, mode_remedy=remedy, is_final=is_final))

    def _reject_link(self, path: str, module: nn.Module, error: NotCacheableError, fits_in_eval_mode: bool) -> None:
        """Call a module without parameters itself from now on; the user need not know."""
        self._links[path].unstore()
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
        is_early = any(path in self._new_in_epoch and not one.has_verdict for path, one in self._modules.items())
        return is_frozen and not is_early

    def _explain_nothing(self) -> None:
        for path, cached in self._modules.items():
            reason, remedy = "none of its calls can be answered from memory", ""
            if self.budget.is_short:
                reason, remedy = f"no row of it fits into {self.budget.max_bytes:,} bytes", "raise `max_bytes`"
            elif not cached.is_called:
                reason = "it is never called"
            self._rejections.add(path, Rejection(reason, remedy, reason, is_final=False))
        self._rejections.tell(is_nothing_cached=True)


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    known = dict(named_modules(module))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`modules` has {listed(map(repr, unknown))}, which the network lacks; {nearest(unknown, known)}"
        )
    for name in names:
        if not _has_parameters(known[name]):
            raise ValueError(f"`modules` has {name!r}, which has no parameters and so is never frozen; leave it out")
        if not is_callable(known[name]):
            raise ValueError(
                f"`modules` has {name!r}, a {type(known[name]).__name__}, which is never called; name its elements"
            )


def _is_lazy(module: nn.Module) -> bool:
    """Whether the shape of a parameter is not known before the first batch."""
    return any(map(is_lazy, module.parameters()))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
