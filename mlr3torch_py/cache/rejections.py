"""What is not cached, and why; told to the user by cause, once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.names import ancestors, listed
from mlr3torch_py.warn import warn

__all__ = ["Rejection", "Rejections", "mode_remedy", "quoted"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_OTHER_MODULES: Final = "name other modules in `modules`"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a module is not cached.

    Parameters
    ----------
    reason, remedy : str
    cause : str
        The same for modules to be named in one warning.
    is_final : bool
        Whether the module is given up, so that the user should know. It is not if its children are tried instead, or
        if there is nothing to mend.
    """

    reason: str
    remedy: str
    cause: str
    is_final: bool = True

    @classmethod
    def of(cls, error: NotCacheableError, *, mode_remedy: str | None = None, is_final: bool = True) -> Rejection:
        """Make it of an error; with a `mode_remedy` for a module that could be cached in eval mode."""
        if mode_remedy is not None:
            return cls(f"in training mode {error.reason}", mode_remedy, mode_remedy, is_final)
        remedy = " or ".join([*filter(None, [error.remedy]), *([_OTHER_MODULES] if error.may_fit_below else [])])
        return cls(error.reason, remedy, error.reason, is_final)


class Rejections:
    """The modules that are not cached, by path.

    Examples
    --------
    >>> rejections = Rejections()
    >>> rejections.add("encoder", Rejection.of(NotCacheableError("it draws random numbers")))
    >>> rejections.add("embed", Rejection.of(NotCacheableError("it draws random numbers")))
    >>> rejections.has_news
    True
    >>> print(rejections.describe(["encoder", "embed"]))
    not caching 'encoder', 'embed': it draws random numbers; name other modules in `modules`
    """

    def __init__(self) -> None:
        self._by_path: dict[str, Rejection] = {}
        self._news: list[str] = []
        self._told: set[str] = set()
        self._has_told_nothing = False

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._news)

    def add(self, path: str, rejection: Rejection) -> None:
        """Note that a module is not cached."""
        logger.info("frozen_cache: not caching %s: %s", quoted(path), rejection.reason)
        self._by_path[path] = rejection
        if rejection.is_final and rejection.cause not in self._told and path not in self._news:
            self._news.append(path)

    def forget(self, paths: Iterable[str]) -> None:
        """Forget why modules were not cached, as they are again, or are not frozen any more."""
        for path in list(paths):
            self._by_path.pop(path, None)

    def tell(self, *, is_nothing_cached: bool) -> None:
        """Warn about what is new, by cause.

        Parameters
        ----------
        is_nothing_cached : bool
            Whether no module at all is cached, which is then said too, once.
        """
        news = [path for path in self._news if path in self._by_path]
        self._news.clear()
        if is_nothing_cached and not self._has_told_nothing:
            self._has_told_nothing = True
            self._told.update(rejection.cause for rejection in self._by_path.values())
            why = self.describe(self._by_path) or "no module is frozen as a whole, those of TorchScript left out"
            warn(f"frozen_cache: {why}; so nothing is cached")
        else:
            for cause, paths in self._by_cause(news).items():
                self._told.add(cause)
                warn(f"frozen_cache: {self.describe(paths)}")

    def describe(self, paths: Iterable[str]) -> str:
        """Describe why modules are not cached, those with one cause together."""
        return "; ".join(self._sentences(paths))

    def _sentences(self, paths: Iterable[str]) -> Iterator[str]:
        for alike in self._by_cause(self._outermost(paths)).values():
            reasons = dict.fromkeys(self._by_path[path].reason for path in alike)
            remedy = self._by_path[alike[0]].remedy
            why = ", or ".join(reasons) + (f"; {remedy}" if remedy else "")
            yield f"not caching {listed(map(quoted, alike))}: {why}"

    def _by_cause(self, paths: Iterable[str]) -> Mapping[str, list[str]]:
        by_cause: dict[str, list[str]] = {}
        for path in paths:
            by_cause.setdefault(self._by_path[path].cause, []).append(path)
        return by_cause

    def _outermost(self, paths: Iterable[str]) -> list[str]:
        """Leave out modules inside of others that are not cached for the same cause."""
        causes = {path: self._by_path[path].cause for path in paths}
        return [path for path in causes if all(causes.get(around) != causes[path] for around in ancestors(path))]


def mode_remedy(module: nn.Module, *, norm_is_pinned: bool, others_are_pinned: bool) -> str:
    """Say how a frozen module gets into eval mode.

    Parameters
    ----------
    module : torch.nn.Module
    norm_is_pinned, others_are_pinned : bool
        What the callbacks that freeze keep in eval mode already: normalisation layers, and all other modules.

    Returns
    -------
    str

    Examples
    --------
    >>> mode_remedy(nn.Linear(2, 2), norm_is_pinned=True, others_are_pinned=False)
    "freeze it with frozen_dropout='eval'"
    """
    if norm_is_pinned and others_are_pinned:
        path = next((path for path, layer in module.named_modules() if layer.training), "")
        which = f"its {path!r}" if path else "it"
        return f"no callback pins {which} in eval mode, so freeze it by one that does, and use no part of it elsewhere"
    option = "frozen_dropout" if norm_is_pinned else "frozen_norm" if others_are_pinned else "frozen_mode"
    return f"freeze it with {option}='eval'"


def quoted(path: str) -> str:
    """Name a module in a message."""
    return repr(path) if path else "the network"
