"""A frozen module as it is: what it holds, what its code is, and whether both are still the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.code import Code
from mlr3torch_py.cache.identity.fingerprint import Fingerprint
from mlr3torch_py.network.internals import internal

__all__ = ["ModuleState"]

_TRAINING: Final = "training"
_MODE: Final = attrgetter(_TRAINING)
_MANY_FUNCTIONS: Final = 500
_GLOBAL_HOOKS: Final = [
    internal("torch.nn.modules.module", name) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
]


class ModuleState:
    """What a module holds, and what its code is.

    Parameters
    ----------
    module : torch.nn.Module

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read, or it has forward hooks.

    Examples
    --------
    >>> linear = nn.Linear(2, 1).requires_grad_(False)
    >>> state = ModuleState(linear)
    >>> linear.bias.data += 1
    >>> state.find_change(), state.find_change()
    ("the 'bias' of its Linear", None)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.last_change: str | None = None  # found so far
        self._fingerprint = Fingerprint(module)
        self._alike: Sequence[Fingerprint] = ()  # states that count as one
        self._code: Code | None = None  # once it was read
        self._layers = list(module.modules())
        states = list(map(vars, self._layers))
        is_usual = all(_TRAINING in state for state in states)  # torch.jit keeps it elsewhere
        self._modes: tuple[Any, list[Any]] = (itemgetter(_TRAINING), states) if is_usual else (_MODE, self._layers)
        self._hooks = [hooks for one in self._layers for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self.check_hooks()

    @property
    def seems_current(self) -> bool:
        """Whether the module seems unchanged, at a glance; see `Fingerprint.seems_current`."""
        return self._fingerprint.seems_current

    @property
    def seems_usual(self) -> bool:
        """Whether the module seems unchanged, and there are no hooks."""
        return not (any(_GLOBAL_HOOKS) or any(self._hooks)) and self.seems_current

    @property
    def fingerprint(self) -> Fingerprint:
        """What the module was at the last comparison."""
        return self._fingerprint

    def take_as_alike(self, fingerprints: Sequence[Fingerprint]) -> None:
        """Take these for one state, until the module is in another one."""
        self._alike = fingerprints

    @property
    def parameter_hashes(self) -> list[bytes]:
        """The hashes of all parameters at the last comparison."""
        return self._fingerprint.parameter_hashes

    @property
    def digest(self) -> str:
        """A hash of the module's state and code, which is the same in other processes.

        Raises
        ------
        NotPortableError
            If there is none; the message names what is to blame.
        """
        return f"{[*self._alike, self._fingerprint][0].digest} {self.code.digest}"

    @property
    def code(self) -> Code:
        """The module's code when it was first asked for.

        Raises
        ------
        NotPortableError
            If some of it cannot be read.
        """
        return self._readable_code().complete

    def code_now(self) -> Code:
        """Return the module's code, which is read again where it may have changed, without what cannot be read."""
        if self._code is not None and (self._code.has_settings or not self._code.seems_current):
            self._code = None
        return self._readable_code()

    def note_code(self) -> None:
        """Read the module's code, to notice when it changes."""
        self._readable_code()

    def has_other_code(self) -> bool:
        """Whether functions, classes or globals that the code refers to have changed since they were first read.

        Of very much code, such as a library's that is installed to be edited, what is inside of globals, as in lists,
        does not count: to read all of it again would take seconds.
        """
        code = self._readable_code()
        if code.seems_current or (code.snapshot.n_functions > _MANY_FUNCTIONS and code.snapshot.is_current):
            return False
        return Code.as_far_as_known(self._module).digest != code.digest

    def _readable_code(self) -> Code:
        if self._code is None:
            self._code = Code.as_far_as_known(self._module)
        return self._code

    def settings(self, device: torch.device) -> Hashable:
        """Return the modes of the layers, of autograd and of autocast."""
        kind = device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return bytes(map(*self._modes)), torch.is_grad_enabled(), autocast

    def find_change(self, *, trust_versions: bool = False) -> str | None:
        """Compare the module with what it was at the last comparison.

        Parameters
        ----------
        trust_versions : bool
            Whether tensors whose version counter has not moved count as unchanged.

        Returns
        -------
        str or None
            Something that has changed.
        """
        if self._fingerprint.is_current:
            return None
        now = Fingerprint(self._module, before=self._fingerprint if trust_versions else None)
        change = self._fingerprint.difference(now)
        if change is None:
            now.take_digest(self._fingerprint)
        elif any(one.difference(now) is None for one in self._alike):
            change = None
        else:
            self._alike = ()
        self._fingerprint = now
        self.last_change = change or self.last_change
        return change

    def check_hooks(self) -> None:
        """Check that there are no forward hooks.

        Raises
        ------
        NotCacheableError
            If there are.
        """
        why = "it has forward hooks, which would not run for a row from memory"
        if any(self._hooks):
            raise NotCacheableError(why, "remove them")
        if any(_GLOBAL_HOOKS):
            raise NotCacheableError(why, "remove them", may_fit_below=False)
