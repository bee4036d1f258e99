"""The parts of a network that are frozen as a whole, and those of them that are cached."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.cache.admission import NEEDS_GRADIENT
from mlr3torch_py.cache.module import CachedModule, Tally
from mlr3torch_py.cache.rows import NotCacheableError
from mlr3torch_py.cache.store import Budget
from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.parameters import trainable_names
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["CachedParts", "frozen_parts"]

logger = logging.getLogger("mlr3torch_py")


def frozen_parts(
    module: nn.Module, trainable: Set[str], *, among: Set[str] | None = None, containers: Set[str] = frozenset()
) -> dict[str, nn.Module]:
    """Find the largest submodules that are frozen as a whole.

    Parameters
    ----------
    module : torch.nn.Module
    trainable : set of str
        The names of the trainable parameters.
    among : set of str, optional
        The paths to consider; all if missing.
    containers : set of str
        Paths of modules to descend into, such as a container that is never called itself.

    Returns
    -------
    dict of str to torch.nn.Module
        By path, in the order of the network; a shared module once.

    Examples
    --------
    >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.Linear(2, 1))
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}))
    ['0', '1']
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}, containers={"0"}))
    ['0.0', '1']
    """
    with_frozen, with_trainable = set[str](), set[str]()
    for name, tensor in named_parameters(module).items():
        (with_trainable if name in trainable or is_lazy(tensor) else with_frozen).update(ancestors(name))
    wanted = with_frozen - with_trainable - containers
    if among is not None:
        wanted &= among
    first_path: dict[int, str] = {}
    outermost = _outermost(bare(module), "", wanted)
    return {path: part for path, part in outermost if first_path.setdefault(id(part), path) == path}


def _outermost(module: nn.Module, path: str, wanted: Set[str]) -> Iterator[tuple[str, nn.Module]]:
    if path in wanted and _is_callable(module):
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _outermost(bare(child), f"{path}.{name}" if path else name, wanted)


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

    Raises
    ------
    ValueError
        If the network lacks a module in `names`, or one of them can never be cached.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> parts = CachedParts(network, max_bytes=100_000)
    >>> parts.refresh(), parts.begin_epoch()
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
        self, module: nn.Module, names: Sequence[str] | None = None, *, max_bytes: int = 2**30, check: int = 1
    ) -> None:
        self._module = bare(module)
        self._names = None if names is None else frozenset(names)
        self._check = check
        self.budget = Budget(max_bytes)
        self._modules: dict[str, CachedModule] = {}
        self._past_tallies: list[Tally] = []
        self._rejected: set[str] = set()
        self._containers: set[str] = set()
        self._never_called = set(names or ())
        self._warned: set[tuple[str, str]] = set()
        if names is not None:
            _check_names(self._module, names)

    @property
    def modules(self) -> Mapping[str, CachedModule]:
        """The modules that are cached now, by path."""
        return self._modules

    @property
    def never_called(self) -> list[str]:
        """The given names that were never called while frozen as a whole."""
        return sorted(self._never_called)

    def refresh(self, *, retry_rejected: bool = True) -> None:
        """Cache what is frozen as a whole now, and nothing else.

        Parameters
        ----------
        retry_rejected : bool
            Whether to try modules again that were rejected before.
        """
        if retry_rejected:
            self._rejected.clear()
        trainable = set(trainable_names(self._module))
        found = frozen_parts(self._module, trainable, among=self._names, containers=self._containers)
        for path, cached in list(self._modules.items()):
            if found.get(path) is not cached.module or not cached.is_in_place:
                self._release(path)
        for path, module in found.items():
            if path not in self._modules and path not in self._rejected:
                reject = partial(self._reject, path)
                try:
                    self._modules[path] = CachedModule(_quoted(path), module, self.budget, self._check, reject)
                except NotCacheableError as error:
                    reject(str(error))

    def replace_uncalled(self) -> bool:
        """Replace the modules that no batch has called by their children.

        Modules that were asked for by name stay.

        Returns
        -------
        bool
            Whether there were any.
        """
        if self._names is not None:
            return False
        uncalled = [path for path, cached in self._modules.items() if not cached.is_called]
        for path in uncalled:
            self._release(path)
        if uncalled:
            self._containers.update(uncalled)
            self.refresh(retry_rejected=False)
        return bool(uncalled)

    def begin_epoch(self) -> None:
        """Start new tallies, and forget the rows of modules in which anything has changed."""
        for path, cached in list(self._modules.items()):
            try:
                cached.begin_epoch()
            except NotCacheableError as error:
                self._reject(path, str(error))

    def end_epoch(self) -> Tally:
        """Drop rows and modules that were not used in this epoch, and return the tally."""
        tallies = self._past_tallies + [cached.tally for cached in self._modules.values()]
        for path, cached in list(self._modules.items()):
            cached.rows.end_epoch()
            if self._names is None and cached.is_idle:
                logger.info("%s is no longer cached: none of its rows came again", cached.name)
                self._release(path)
                self._rejected.add(path)
        self.budget.is_short, self._past_tallies = False, []
        return sum(tallies, Tally())

    def close(self) -> None:
        """Restore the own calls of all modules, and forget all rows."""
        for path in list(self._modules):
            self._release(path)

    def _release(self, path: str) -> None:
        cached = self._modules.pop(path)
        cached.remove()
        self._past_tallies.append(cached.tally)
        if cached.is_called:
            self._never_called -= {name for name in self._never_called if path in {name, *ancestors(name)}}

    def _reject(self, path: str, reason: str) -> None:
        if path in self._modules:
            self._release(path)
        self._rejected.add(path)
        is_expected = reason == NEEDS_GRADIENT and self._names is None
        if not is_expected and (path, reason) not in self._warned:
            self._warned.add((path, reason))
            warnings.warn(f"frozen_cache: not caching {_quoted(path)}: {reason}", stacklevel=2)


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    known = dict(named_modules(module))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"`modules` has {listed(map(repr, unknown))}, which the network lacks; {nearest(unknown, known)}"
        )
    for name in names:
        if not any(True for _ in known[name].parameters()):
            raise ValueError(f"`modules` has {name!r}, which has no parameters and so is never frozen; leave it out")
        if not _is_callable(known[name]):
            raise ValueError(
                f"`modules` has {name!r}, a {type(known[name]).__name__}, which is never called; name its elements"
            )


def _quoted(path: str) -> str:
    return repr(path) if path else "the network"


def _is_callable(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and type(module).forward is not nn.Module.forward
