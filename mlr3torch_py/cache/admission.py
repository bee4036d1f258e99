"""Decide which calls of a module may be answered from memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from mlr3torch_py.cache.fingerprint import Fingerprint
from mlr3torch_py.cache.rounding import largest_values, reproduces
from mlr3torch_py.cache.rows import Call, NotCacheableError, OutputSpec
from mlr3torch_py.network.evaluation import DROPOUT, NORMALISATION
from mlr3torch_py.network.randomness import generators, random_states

__all__ = ["NEEDS_GRADIENT", "REMEDY", "Admission", "Request", "Trial", "is_transformed"]

REMEDY: Final = "name other modules in `modules`"
NEEDS_GRADIENT: Final = "its input requires a gradient; freeze everything that comes before it, too"

_FIRST_TRIALS: Final = 4
# What the output for a row is in training mode, unless the callback that freezes a layer has this option.
_IN_TRAINING_MODE: Final = {"frozen_norm": "depends on the rest of the batch", "frozen_dropout": "is random"}


class Request(NamedTuple):
    """A call that may be answered from memory.

    Parameters
    ----------
    call : Call
    signature : hashable
        The same for calls that differ only in sizes and values; batches of a single row have signatures of their own.
    layout : hashable
        The same for calls that differ only in the number and contents of their rows.
    """

    call: Call
    signature: Hashable
    layout: Hashable


class Trial(NamedTuple):
    """The state of things before a call that is being tried.

    Parameters
    ----------
    is_module_changed : bool
        Whether the module was modified unseen, through ``.data`` or numpy, since the epoch began.
    generators : mapping
        All random generators that the call might draw from.
    random_states : mapping
        Their states.
    """

    is_module_changed: bool
    generators: Mapping[str, Any]
    random_states: Mapping[str, Any]


class Admission:
    """Decide which calls of a module may be answered from memory.

    What it learns holds for the module as it is. Replace it by a new one when the module changes.

    Parameters
    ----------
    module : torch.nn.Module

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read.

    Notes
    -----
    A module is *row-wise* if its output for a row depends on that row alone. Trials check this separately for each
    signature, at calls 1 to 4, 8, 16, 32 and so on: they recompute the rows in smaller batches. They also look for
    effects that an answer from memory would lack, such as drawing random numbers or modifying the module.

    Examples
    --------
    >>> admission, batch = Admission(nn.Flatten()), torch.rand(3, 2, 2)
    >>> request = admission.read((batch,), {})
    >>> trial = admission.start_trial(request)
    >>> admission.finish_trial(trial, request, output=batch.flatten(1))
    >>> admission.is_row_wise(request)
    True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._fingerprint = Fingerprint(module)
        self._layers = list(module.modules())
        self._mode_sensitive = [layer for layer in self._layers if isinstance(layer, NORMALISATION + DROPOUT)]
        own_hooks = (hooks for one in self._layers for hooks in (one._forward_hooks, one._forward_pre_hooks))
        self._hooks = [*own_hooks, torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._row_wise: dict[Hashable, bool] = {}
        self._n_computed: Counter[Hashable] = Counter()
        self._was_changed_by_call = False

    @property
    def seems_current(self) -> bool:
        """Whether the module seems unchanged, at a glance; see `Fingerprint.seems_current`."""
        return self._fingerprint.seems_current

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
        now = Fingerprint(self._module, before=self._fingerprint if trust_versions else None)
        change = self._fingerprint.difference(now)
        self._fingerprint = now
        return change

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request | None:
        """Read the arguments of a call.

        Returns
        -------
        Request or None
            None if this call must be computed.

        Raises
        ------
        NotCacheableError
            If the module cannot be cached at all.
        """
        self._check_layers()
        call = Call(args, kwargs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise NotCacheableError(NEEDS_GRADIENT)
        modes = tuple(layer.training for layer in self._layers)
        settings = call.pattern, modes, torch.is_grad_enabled(), call.autocast_dtype
        signature = settings, len(call) == 1
        if call.is_ambiguous or not self._row_wise.get(signature, True):
            return None
        return Request(call, signature, layout=(settings, call.shared))

    def is_row_wise(self, request: Request) -> bool:
        """Whether trials have found calls of this signature to be row-wise."""
        return self._row_wise.get(request.signature, False)

    def start_trial(self, request: Request) -> Trial | None:
        """Prepare a trial of a call that is about to be computed; None if no trial is due."""
        self._n_computed[request.signature] = number = self._n_computed[request.signature] + 1
        if number > _FIRST_TRIALS and number.bit_count() > 1:
            return None
        found = generators(module=self._module)
        return Trial(self.find_change() is not None, found, random_states(found))

    def finish_trial(self, trial: Trial, request: Request, output: Any) -> None:
        """Judge a call by its output and by what else it has done.

        Raises
        ------
        NotCacheableError
            If the module cannot be cached.
        """
        if random_states(trial.generators) != trial.random_states:
            raise NotCacheableError(
                f"it draws random numbers; set frozen_dropout='eval' if its dropout layers do, or {REMEDY}"
            )
        if request.call.has_changed():
            raise NotCacheableError(f"it modifies its input in place; use out-of-place operations, or {REMEDY}")
        if self._left_module_unchanged():
            before, now = self._row_wise.get(request.signature), self._gives_rows_again(request.call, output)
            self._row_wise[request.signature] = now
            if not now and (before or not any(self._row_wise.values())):
                raise NotCacheableError(
                    "its output for a row depends on the rest of the batch, or it does not accept every batch; "
                    f"{REMEDY}"
                )

    def _check_layers(self) -> None:
        for layer in self._mode_sensitive:
            if layer.training and (option := _missing_option(layer)):
                raise NotCacheableError(
                    f"its {type(layer).__name__} is in training mode, so its output for a row "
                    f"{_IN_TRAINING_MODE[option]}; set {option}='eval' in the callback that freezes it"
                )
        if any(self._hooks):
            raise NotCacheableError(
                f"it has forward hooks, which would not run for a row from memory; remove them, or {REMEDY}"
            )

    def _left_module_unchanged(self) -> bool:
        """Check what a call did to the module; one call may change it, to set up a table or the like."""
        change = self.find_change()
        if change and self._was_changed_by_call:
            raise NotCacheableError(f"a call changes {change}, which would not happen for a row from memory; {REMEDY}")
        self._was_changed_by_call |= change is not None
        return change is None

    def _gives_rows_again(self, call: Call, output: Any) -> bool:
        """Recompute the rows in smaller batches and another order."""
        n_rows = len(call)
        spec = OutputSpec.of(output, n_rows)
        rows = spec.split(output, n_rows)
        largest = largest_values(rows)
        batches = [range(n_rows - 1, -1, -2), range(n_rows - 2, -1, -2), range(min(1, n_rows))]
        try:
            return all(
                reproduces(self._module, call, {i: rows[i] for i in batch}, spec, largest) for batch in batches if batch
            )
        except Exception:  # whatever a module raises that accepts whole batches only
            return False


def is_transformed() -> bool:
    """Whether calls are being traced, compiled or differentiated in forward mode."""
    is_traced: bool = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or forward_ad._current_level >= 0


def _missing_option(layer: nn.Module) -> str | None:
    """Return the option of freezing callbacks that makes a layer row-wise; None if it is anyway."""
    if isinstance(layer, NORMALISATION) and layer.track_running_stats:
        return "frozen_norm"
    chance = getattr(layer, "dropout", 0) if isinstance(layer, nn.MultiheadAttention) else getattr(layer, "p", 0)
    return "frozen_dropout" if isinstance(layer, DROPOUT) and chance else None
