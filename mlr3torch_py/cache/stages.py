"""The modules and operations of a network whose calls are answered from memory, and the boundaries around them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import RLock
from typing import Any

from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.frozen import is_callable
from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.passes.boundary import Boundary
from mlr3torch_py.cache.passes.doors import guard, unguard
from mlr3torch_py.cache.passes.module import CachedModule
from mlr3torch_py.cache.passes.operations import Operations
from mlr3torch_py.cache.passes.placeholder import Passes
from mlr3torch_py.cache.rejections import quoted
from mlr3torch_py.cache.storage.packing import Keeper, packed, recalled
from mlr3torch_py.cache.storage.store import Budget, Table

__all__ = ["Reject", "Stages"]

Reject = Callable[[NotCacheableError, bool], None]


class Stages:
    """Where calls of a network are answered: cached modules, links between them, and boundaries around both.

    Parameters
    ----------
    module : torch.nn.Module
    budget : Budget
        The bytes that the rows of all modules may take together.
    check : int
        See `CachedModule`.

    Attributes
    ----------
    modules : dict of str to CachedModule
        The modules that are cached now, by path.
    links : dict of str to CachedModule
        The modules without parameters between them, by path.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> stages = Stages(network, Budget(100_000), check=0)
    >>> stages.put("0", network[0], reject=print)
    >>> stages.surround()
    >>> stages.are_held, list(stages.by_name)
    (True, ['0'])
    >>> _ = stages.release("0")
    >>> stages.close()
    """

    def __init__(self, module: nn.Module, budget: Budget, check: int) -> None:
        self.modules: dict[str, CachedModule] = {}
        self.links: dict[str, CachedModule] = {}
        self._module, self._budget, self._check = module, budget, check
        self._operations = Operations(budget, check)
        self._passes = Passes(self._operations.answer)
        self._boundaries: list[Boundary] = []

    @property
    def by_name(self) -> Mapping[str, CachedModule]:
        """All whose calls are answered: modules, links, and operations between them."""
        return {**self.modules, **self.links, **self._operations.stages}

    @property
    def _tables(self) -> Iterator[Table]:
        """All rows."""
        return (table for one in self._keepers for layout in one.layouts for table in layout.tables)

    @property
    def are_held(self) -> bool:
        """Whether calls still arrive at all of them."""
        held: list[CachedModule | Boundary] = [*self.by_name.values(), *self._boundaries]
        return all(one.is_in_place for one in held)

    def put(self, path: str, module: nn.Module, reject: Reject) -> None:
        """Answer the calls of a module.

        Raises
        ------
        NotCacheableError
            If it cannot be cached, as is seen at first sight.
        """
        self.modules[path] = CachedModule(quoted(path), module, self._budget, self._check, reject, passes=self._passes)

    def put_link(self, path: str, module: nn.Module, reject: Reject) -> None:
        """Answer the calls of a module without parameters, if it can be cached."""
        with suppress(NotCacheableError):
            self.links[path] = CachedModule(
                quoted(path), module, self._budget, self._check, reject, passes=self._passes, is_link=True
            )

    def release(self, path: str) -> CachedModule:
        """Call a module itself again."""
        cached = self.links.pop(path) if path in self.links else self.modules.pop(path)
        cached.remove()
        self._boundaries.append(Boundary(cached.module, self._passes))
        return cached

    def surround(self) -> None:
        """Keep placeholders from all modules that are not cached."""
        for boundary in self._boundaries:
            boundary.remove()
        for layout in (layout for one in self.by_name.values() for layout in one.layouts):
            layout.gives_values = False
        cached = self.by_name.values() if self.modules else []
        inside = {id(layer) for one in cached for layer in one.module.modules()}
        outside = [one for one in self._module.modules() if id(one) not in inside and is_callable(one)]
        self._boundaries = [Boundary(one, self._passes) for one in outside] if cached else []
        (guard if cached else unguard)(self._passes)

    def follow_operations(self) -> None:
        """Let operations take the tensors of the network that stay the same now."""
        self._operations.follow(self._module)

    def begin_epoch(self) -> None:
        """Start new tallies, and forget the rows of modules in which anything has changed."""
        self._for_each(CachedModule.begin_epoch)

    def follow_changes(self) -> None:
        """Forget the rows of modules in which anything has changed."""
        self._for_each(CachedModule.follow_changes)

    def keep(self) -> None:
        """Answer calls after training, too; see `CachedStage.keep`."""
        for cached in (*self.modules.values(), *self.links.values()):
            cached.keep()
        turn = RLock()
        for one in (*self.modules.values(), *self.links.values(), *self._boundaries):
            one.take_turns(turn)
        self._operations.keep()

    def _for_each(self, look: Callable[[CachedModule], object]) -> None:
        """Look at all of them; what cannot be read any more is not cached any more."""
        for cached in self.by_name.values():
            try:
                look(cached)
            except NotCacheableError as error:
                cached.reject(error, False)

    def end_epoch(self) -> None:
        """Drop rows that were not used in this epoch."""
        used_epochs = {epoch for table in self._tables for epoch in table.used_epochs}
        for cached in self.by_name.values():
            cached.end_epoch(used_epochs)
        self._operations.end_epoch(used_epochs)

    def close(self) -> None:
        """Call the operations directly again, too, once all modules were released, and forget their rows."""
        self._operations.close()
        self.surround()

    @property
    def version(self) -> Hashable:
        """What differs after each change of what `packed` returns, but for rows that are dropped."""
        n_known = sum(len(one.complete) + len(one.seen) for stage in self._keepers for one in stage.layouts)
        return n_known, len(self._operations.rejected), tuple(self._digests.items())

    def packed(self) -> dict[str, Any]:
        """Return tensors and plain values from which `recall` takes the rows."""
        return {
            "operations": self._operations.cached,
            "rejected_operations": self._operations.rejected,
            **packed(self._keepers),
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Take the rows that there were when `packed` was called, for what is in place now."""
        rows = recalled(kept, {**self._digests, **dict.fromkeys(kept["operations"])}, self._budget)
        for one in (*self.modules.values(), *self.links.values()):
            if one.identity in rows:
                one.recall(rows[one.identity])
        operations = [rows[identity] for identity in kept["operations"] if identity in rows]
        self._operations.recall(kept["rejected_operations"], operations)

    @property
    def lost_on_resume(self) -> Sequence[str]:
        """The rows that a checkpoint cannot keep, and why."""
        reasons = [(one.name, one.lost_on_resume) for one in self.by_name.values()]
        return [f"the rows of {name}, {reason}" for name, reason in reasons if reason]

    @property
    def _keepers(self) -> Sequence[Keeper]:
        return [*self.by_name.values(), *self._operations.recalled]

    @property
    def _digests(self) -> dict[str, str]:
        """What the modules are."""
        found = {}
        for one in (*self.modules.values(), *self.links.values()):
            with suppress(NotPortableError):
                found[one.identity] = one.digest
        return found
