"""A module whose outputs are kept by row while nothing in it changes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.evaluation import DROPOUT, NORMALISATION
from mlr3torch_py.fingerprint import Fingerprint
from mlr3torch_py.randomness import generators, random_states
from mlr3torch_py.row_cache import Budget, RowCache
from mlr3torch_py.rows import Call, OutputForm, Row, UnfitError, is_near

__all__ = ["NEEDS_GRADIENT", "CachedModule", "Tally"]

NEEDS_GRADIENT: Final = "its input needs a gradient; it can be cached only while all that comes before it is frozen too"

_REMEDY: Final = "name others in `modules`"


@dataclass(slots=True)
class Tally:
    """What came of the calls of a module.

    Parameters
    ----------
    hits, misses : int
        Rows that were there, and rows that were computed.
    saved : float
        Seconds that computing the hits would have taken, less what finding and keeping rows took.
    """

    hits: int = 0
    misses: int = 0
    saved: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.misses + other.misses, self.saved + other.saved)


@dataclass(slots=True)
class _Form:
    """What calls have in common that differ in the contents of their rows alone."""

    seed: int
    output: OutputForm | None = None


class CachedModule:
    """Stands in for the call of a frozen module: rows that it has seen are taken from memory.

    Parameters
    ----------
    name : str
        How messages call the module.
    module : torch.nn.Module
    budget : Budget
        What the rows may take.
    check : int
        How many hits of one batch, drawn at random, are computed afresh and compared in each epoch.
    leave_alone : callable
        Called with a reason when the module turns out not to be made for it.

    Notes
    -----
    Whether an output is a function of its row is tried out whenever a call is of a new kind: some rows are computed
    once more, in another batch. What else a call may do, such as draw random numbers or keep something of it, is looked
    for at the same time.
    """

    def __init__(
        self, name: str, module: nn.Module, budget: Budget, check: int, leave_alone: Callable[[str], None]
    ) -> None:
        self.name = name
        self.module = module
        self.check = check
        self.leave_alone = leave_alone
        self.rows = RowCache(budget)
        self.tally = Tally()
        self.is_called = False
        self._n_before = 0
        self._hits_until_check = 0
        self._needed = 0.0
        self.forget()
        # Where torch puts a compiled call: hooks of the module belong to it, and pickle and deepcopy pass it over.
        module._compiled_call_impl = self

    @property
    def is_in_place(self) -> bool:
        """Whether calls of the module still come here."""
        return vars(self.module).get("_compiled_call_impl") is self

    def remove(self) -> None:
        """Give the module its own call back, and forget all rows."""
        self.rows.clear()
        if self.is_in_place:
            del self.module._compiled_call_impl

    def forget(self) -> None:
        """Forget all rows, and take down anew what the module holds."""
        self.rows.clear()
        self._fingerprint = Fingerprint(self.module)
        self._layers = list(self.module.modules())
        self._to_hold = [layer for layer in self._layers if isinstance(layer, NORMALISATION + DROPOUT)]
        self._hooks = [hooks for one in self._layers for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._forms: dict[Hashable, _Form] = {}
        self._verdicts: dict[Hashable, bool] = {}
        self._seconds_per_row = math.inf

    def begin_epoch(self) -> None:
        """Compare all that the module holds, bit by bit, with what it was, and forget the rows if it differs."""
        if Fingerprint(self.module) != self._fingerprint:
            self.forget()
        self.tally, self._n_before = Tally(), len(self.rows)
        # Not by a generator that a training draws from, nor by one that a checkpoint would keep.
        self._hits_until_check = secrets.randbelow(max(1, len(self.rows)))

    @property
    def is_idle(self) -> bool:
        """Whether there were rows when the epoch began, and none of them came again."""
        return self._n_before > 0 and self.tally.misses > 0 and self.tally.hits == 0

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # should a network pickle all that it has

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a call of the module."""
        self.is_called = True
        begin, self._needed = perf_counter(), 0.0
        if (question := self._read(args, kwargs)) is not None:
            hits_before = self.tally.hits
            output = self._answer(*question)
            hits = self.tally.hits - hits_before
            self.tally.saved += (hits * self._seconds_per_row if hits else 0.0) - (
                perf_counter() - begin - self._needed
            )
            return output
        return self.module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Hashable, _Form, list[bytes]] | None:
        """Make the keys of the rows of a call; None if it cannot be answered from memory."""
        try:
            if not (self._fingerprint.seems_current or self._look_again()):
                return None
            self._check_layers()
            call = Call(args, kwargs)
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
                raise UnfitError(NEEDS_GRADIENT)
            kind = call.pattern, tuple(layer.training for layer in self._layers), _autocast(call)
            form = self._forms.setdefault((kind, call.shared), _Form(secrets.randbits(64)))
            keys = call.row_keys(form.seed)
        except UnfitError as error:
            self.leave_alone(str(error))
        except (RuntimeError, TypeError) as error:
            self.leave_alone(f"its input cannot be read by rows: {error}")
        else:
            return (call, kind, form, keys) if keys and self._verdicts.get(kind, True) else None
        return None

    def _check_layers(self) -> None:
        for layer in self._to_hold:
            if layer.training and (option := _option_that_holds(layer)):
                raise UnfitError(
                    f"its {type(layer).__name__} is in training mode, so that an output is no function of its row; set "
                    f"{option}='eval' in the callback that freezes it"
                )
        if any(self._hooks):
            raise UnfitError(
                f"it has forward hooks, which would not run for a row from memory; remove them, or {_REMEDY}"
            )

    def _look_again(self) -> bool:
        if any(tensor.requires_grad for tensor in self.module.parameters()):
            self.remove()
            return False
        now = Fingerprint(self.module, before=self._fingerprint)
        if now == self._fingerprint:
            self._fingerprint = now
        else:
            self.forget()
        return True

    def _answer(self, call: Call, kind: Hashable, form: _Form, keys: list[bytes]) -> Any:
        rows = self.rows.get(keys)
        missing = [i for i, row in enumerate(rows) if row is None]
        if form.output is None or len(missing) == len(rows):
            self.tally.misses += len(rows)
            output = self._compute(call) if kind in self._verdicts else self._try(call, kind)
            if self._verdicts.get(kind):
                self._keep(form, keys, output, len(rows))
            return output
        there = {i: row for i, row in enumerate(rows) if row is not None}
        if self.check:
            self._check_hits(call, form.output, there)
        if missing:
            fresh = self._keep(form, [keys[i] for i in missing], self._compute(call.take(missing)), len(missing))
            if fresh is None:
                return self._compute(call)
            there |= zip(missing, fresh, strict=True)
        self.tally.hits += len(rows) - len(missing)
        self.tally.misses += len(missing)
        return form.output.join([there[i] for i in range(len(rows))])

    def _keep(self, form: _Form, keys: Sequence[bytes], output: Any, n_rows: int) -> list[Row] | None:
        try:
            form.output = form.output or OutputForm.of(output, n_rows)
            rows = form.output.split(output, n_rows)
        except UnfitError as error:
            self.leave_alone(str(error))
            return None
        self.rows.add(keys, rows)
        return rows

    def _try(self, call: Call, kind: Hashable) -> Any:
        """Compute a call of a new kind, and see whether its rows are independent of all else."""
        before, self._fingerprint = self._fingerprint, Fingerprint(self.module)
        if before != self._fingerprint:
            self.rows.clear()
        sources = generators(module=self.module)
        drawn, attributes = random_states(sources), [dict(vars(layer)) for layer in self._layers]
        output = self._compute(call)
        try:
            if random_states(sources) != drawn:
                raise UnfitError(f"it draws random numbers; {_REMEDY}")
            if call.has_changed():
                raise UnfitError(f"it writes into its input; {_REMEDY}")
            if Fingerprint(self.module) != self._fingerprint:
                raise UnfitError(f"it changes its own buffers; {_REMEDY}")
            for layer, values in zip(self._layers, attributes, strict=True):
                for name, value in vars(layer).items():
                    if values.get(name, self) is not value:
                        raise UnfitError(f"its {type(layer).__name__} sets its {name!r} in a call; {_REMEDY}")
            form = OutputForm.of(output, len(call))
            if len(call) > 1:
                self._verdicts[kind] = self._is_by_row(call, form, output)
        except UnfitError as error:
            self.leave_alone(str(error))
        return output

    def _is_by_row(self, call: Call, form: OutputForm, output: Any) -> bool:
        """Compute some rows once more, in another order and among others."""
        rows = form.split(output, len(call))
        is_by_row = self._gives_again(call, form, {i: rows[i] for i in range(len(call) - 1, -1, -2)})
        if not is_by_row and not any(self._verdicts.values()):
            raise UnfitError(f"the output of a row depends on the other rows of its batch; {_REMEDY}")
        return is_by_row

    def _check_hits(self, call: Call, form: OutputForm, hits: dict[int, Row]) -> None:
        is_due = 0 <= self._hits_until_check < len(hits)
        self._hits_until_check -= len(hits)
        if is_due and not self._gives_again(call, form, dict(list(hits.items())[-self.check :])):
            raise RuntimeError(
                f"frozen_cache: what {self.name} gives for a row is not what it gave when the row was kept, though "
                "nothing in it seems to have changed; it depends on something that is not its own, or was written into "
                "through .data or numpy since the epoch began. Name other modules in `modules`"
            )

    def _gives_again(self, call: Call, form: OutputForm, rows: dict[int, Row]) -> bool:
        try:
            again = form.split(self._compute(call.take(list(rows)), needed=False), len(rows))
        except Exception:  # whatever a module raises that takes whole batches only
            return False
        return is_near(list(rows.values()), again, self._precision(call, again[0]))

    def _precision(self, call: Call, row: Row) -> float:
        """Return the precision of the coarsest type that a call computes with, as far as one can see."""
        tensors = (*self.module.parameters(), *self.module.buffers(), *call.tensors, *row)
        kinds = {torch.float32, *(tensor.dtype for tensor in tensors), _autocast(call)}
        return max(torch.finfo(kind).eps for kind in kinds if kind is not None and kind.is_floating_point)

    def _compute(self, call: Call, *, needed: bool = True) -> Any:
        begin = perf_counter()
        output = self.module._call_impl(*call.args, **call.kwargs)  # type: ignore[no-untyped-call]
        seconds = perf_counter() - begin
        self._seconds_per_row = min(self._seconds_per_row, seconds / len(call))
        self._needed += seconds * needed
        return output


def _option_that_holds(layer: nn.Module) -> str | None:
    """Return the option of freezing callbacks that a layer needs in order to be a function of its rows."""
    if isinstance(layer, NORMALISATION) and layer.track_running_stats:
        return "frozen_norm"
    chance = getattr(layer, "dropout", 0) if isinstance(layer, nn.MultiheadAttention) else getattr(layer, "p", 0)
    return "frozen_dropout" if isinstance(layer, DROPOUT) and chance else None


def _autocast(call: Call) -> torch.dtype | None:
    device = call.tensors[0].device.type if call.tensors else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
