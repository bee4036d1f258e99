"""The code that a forward pass may reach, as a hash that is the same in other processes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from torch import nn

from mlr3torch_py.cache.identity.code_reader import CodeReader, unusual_settings
from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.identity.snapshot import Snapshot

__all__ = ["Code"]

_GRAD_MODES: Final = frozenset({"is_grad_enabled", "is_inference_mode_enabled", "is_inference", "requires_grad"})
_MAX_KNOWN: Final = 64

_lock: Final = threading.Lock()
_known: Final[dict[tuple[tuple[str, type], ...], Code]] = {}


@dataclass(frozen=True, slots=True)
class Code:
    """What the code of a module's forward pass is, and what it looks at.

    Functions are followed to whatever they name: globals, methods, functions in closures and in attributes. What
    belongs to Python, or to an installed package such as torch, is known by its version, and its layers by the code of
    their methods, too.

    Parameters
    ----------
    digest : str
        The same in other processes for the same code.
    moded : tuple of int
        The layers whose ``training`` the code may look at, in the order of ``modules()``.
    sees_grad_mode : bool
        Whether it may look at whether gradients are enabled.
    snapshot : Snapshot
        The functions, classes and globals that were read.
    lacks : tuple of str
        What cannot be read, so that other processes cannot tell the code.
    settings : str
        A hash of the functions and objects that its layers hold.
    has_settings : bool
        Whether they hold any.

    Examples
    --------
    >>> code = Code.of(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    >>> code.moded, code.sees_grad_mode
    ((2,), False)
    """

    digest: str
    moded: tuple[int, ...]
    sees_grad_mode: bool
    snapshot: Snapshot = field(compare=False, repr=False)
    lacks: tuple[str, ...] = field(default=(), compare=False)
    settings: str = ""
    has_settings: bool = False

    @property
    def seems_current(self) -> bool:
        """Whether nothing has changed, as far as can be seen at a glance; objects that layers hold are left out."""
        return self.snapshot.is_lasting and self.snapshot.is_current

    @classmethod
    def of(cls, module: nn.Module) -> Code:
        """Read the code of a module and of all modules in it.

        Raises
        ------
        NotPortableError
            If some of it cannot be read; the message names it.
        """
        return cls.as_far_as_known(module).complete

    @property
    def complete(self) -> Code:
        """The code itself, if all of it could be read.

        Raises
        ------
        NotPortableError
            If not; the message names what could not.
        """
        if self.lacks:
            raise NotPortableError(self.lacks[0])
        return self

    @classmethod
    def as_far_as_known(cls, module: nn.Module) -> Code:
        """Read what can be read of the code of a module and of all modules in it."""
        classes = tuple((name, type(layer)) for name, layer in module.named_modules())
        if (found := _known.get(classes)) is not None and found.seems_current and not _has_unusual_settings(module):
            return found
        reader = CodeReader(module)
        reader.read()
        sees_grad_mode = bool(_GRAD_MODES & reader.names)
        code = cls(
            reader.digest,
            reader.moded,
            sees_grad_mode,
            reader.snapshot,
            tuple(reader.lacks),
            reader.settings_digest,
            reader.has_settings,
        )
        if reader.snapshot.is_lasting and not reader.has_settings:
            with _lock:
                _known[classes] = code
                while len(_known) > _MAX_KNOWN:
                    del _known[next(iter(_known))]
        return code


def _has_unusual_settings(module: nn.Module) -> bool:
    return any(True for layer in module.modules() for _ in unusual_settings(layer))
