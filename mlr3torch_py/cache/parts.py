"""The parts of a network that are frozen as a whole, and those of them that are cached."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.cache.module import NEEDS_GRADIENT, CachedModule, Tally
from mlr3torch_py.cache.rows import UnfitError
from mlr3torch_py.cache.store import Budget
from mlr3torch_py.names import listed, nearest
from mlr3torch_py.network.parameters import trainable_names
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters

__all__ = ["CachedParts", "frozen_parts"]

logger = logging.getLogger("mlr3torch_py")


def frozen_parts(
    module: nn.Module, trainable: Set[str], *, among: Set[str] | None = None, opened: Set[str] = frozenset()
) -> dict[str, nn.Module]:
    """Find the largest submodules that have parameters, none of which trains.

    Parameters
    ----------
    module : torch.nn.Module
    trainable : set of str
        The parameters that train.
    among : set of str, optional
        The paths that are looked at; all if missing.
    opened : set of str
        Paths in whose place their children are looked at, as in that of a list of modules, which nobody calls.

    Returns
    -------
    dict of str to torch.nn.Module
        By their paths, in the order of the network; a shared module once.

    Examples
    --------
    >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.Linear(2, 1))
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}))
    ['0', '1']
    >>> list(frozen_parts(network, {"2.weight", "2.bias"}, opened={"0"}))
    ['0.0', '1']
    """
    frozen, trains = set[str](), set[str]()
    for name, tensor in named_parameters(module).items():
        has_gradient = name in trainable or is_lazy(tensor)
        path = name
        while path:
            path = path.rpartition(".")[0]
            (trains if has_gradient else frozen).add(path)
    wanted = frozen - trains - opened if among is None else (frozen - trains - opened) & among
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
    """The modules of a network that are cached.

    Parameters
    ----------
    module : torch.nn.Module
    names : sequence of str, optional
        The paths of the modules that may be; all if missing.
    max_bytes : int
        What all rows together may take.
    check : int
        See `CachedModule`.

    Raises
    ------
    ValueError
        If the network has no such module, or one that can never be cached.

    Examples
    --------
    >>> import torch
    >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> parts = CachedParts(network, max_bytes=100_000)
    >>> parts.find(), parts.begin_epoch()
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
        self._parts: dict[str, CachedModule] = {}
        self._gone: list[Tally] = []
        self._alone: set[str] = set()
        self._opened: set[str] = set()
        self._idle_names = set(names or ())
        self._said: set[tuple[str, str]] = set()
        if names is not None:
            _check_names(self._module, names)

    def find(self, *, after_event: bool = True) -> None:
        """Cache what is frozen as a whole now, and nothing else.

        Parameters
        ----------
        after_event : bool
            Whether modules that are left alone get another trial.
        """
        if after_event:
            self._alone.clear()
        found = frozen_parts(self._module, set(trainable_names(self._module)), among=self._names, opened=self._opened)
        for path, part in list(self._parts.items()):
            if found.get(path) is not part.module or not part.is_in_place:
                self._let_go(path)
        for path, module in found.items():
            if path not in self._parts and path not in self._alone:
                leave_alone = partial(self._leave_alone, path)
                try:
                    self._parts[path] = CachedModule(_name(path), module, self.budget, self._check, leave_alone)
                except UnfitError as error:
                    leave_alone(str(error))

    @property
    def modules(self) -> Mapping[str, CachedModule]:
        """The modules that are cached now, by their paths."""
        return self._parts

    def replace_uncalled(self) -> bool:
        """Turn, after a batch, from modules that nobody called to their children, which somebody may have called.

        Modules that were asked for by name stay.

        Returns
        -------
        bool
            Whether there were any.
        """
        uncalled = [path for path, part in self._parts.items() if self._names is None and not part.is_called]
        for path in uncalled:
            self._let_go(path)
        if uncalled:
            self._opened.update(uncalled)
            self.find(after_event=False)
        return bool(uncalled)

    def begin_epoch(self) -> None:
        """Compare everything in the modules with what it was when their rows were kept."""
        for path, part in list(self._parts.items()):
            try:
                part.begin_epoch()
            except UnfitError as error:
                self._leave_alone(path, str(error))

    def end_epoch(self) -> Tally:
        """Drop rows and modules that were of no use in this epoch, and say what came of it."""
        tallies = self._gone + [part.tally for part in self._parts.values()]
        for path, part in list(self._parts.items()):
            part.rows.end_epoch()
            if self._names is None and part.is_idle:
                logger.info("%s is no longer cached: none of its rows came again", part.name)
                self._let_go(path)
                self._alone.add(path)
        self.budget.is_short, self._gone = False, []
        return sum(tallies, Tally())

    def close(self) -> None:
        """Give all modules their own calls back, and forget all rows."""
        for path in list(self._parts):
            self._let_go(path)

    @property
    def idle_names(self) -> list[str]:
        """The names that were given and were never both frozen as a whole and called."""
        return sorted(self._idle_names)

    def _let_go(self, path: str) -> None:
        part = self._parts.pop(path)
        part.remove()
        self._gone.append(part.tally)
        if part.is_called:
            self._idle_names -= {name for name in self._idle_names if _is_within(name, path)}

    def _leave_alone(self, path: str, reason: str) -> None:
        if path in self._parts:
            self._let_go(path)
        self._alone.add(path)
        is_natural = reason == NEEDS_GRADIENT and self._names is None
        if not is_natural and (path, reason) not in self._said:
            self._said.add((path, reason))
            warnings.warn(f"frozen_cache leaves {_name(path)} alone: {reason}", stacklevel=2)


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


def _name(path: str) -> str:
    return path or "the network"


def _is_within(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _is_callable(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and type(module).forward is not nn.Module.forward
