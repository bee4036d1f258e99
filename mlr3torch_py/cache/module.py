"""A module whose outputs are kept by row while nothing in it changes."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from mlr3torch_py.cache.fingerprint import Fingerprint
from mlr3torch_py.cache.rows import Call, OutputForm, Row, UnfitError, is_near, largest_values
from mlr3torch_py.cache.store import Budget, RowCache
from mlr3torch_py.network.evaluation import DROPOUT, NORMALISATION
from mlr3torch_py.network.randomness import generators, random_states

__all__ = ["NEEDS_GRADIENT", "CachedModule", "Tally"]

NEEDS_GRADIENT: Final = "its input needs a gradient; it can be cached only while all that comes before it is frozen too"

_REMEDY: Final = "name other modules in `modules`"
_MOST_FORMS: Final = 1000
_FIRST_TRIALS: Final = 4


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
    largest: Sequence[float] = ()


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
        Called with a reason when the module turns out to be one that cannot be cached.

    Notes
    -----
    Calls are of one kind if they differ in sizes and values alone (a single row is a kind of its own), and have one
    form if they differ in the contents of their rows alone. Whether an output is a function of its row is tried out for
    each kind, at its first four calls, the eighth, the sixteenth and so on: the rows are computed once more in smaller
    batches. What else a call may do, such as draw random numbers or keep something of it, is looked for at the same
    time.
    """

    is_cache = True  # tells this from a compiled call, which stands in the same place

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
        own_hooks = (hooks for one in self._layers for hooks in (one._forward_hooks, one._forward_pre_hooks))
        self._hooks = [*own_hooks, torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
        self._forms: dict[Hashable, _Form] = {}
        self._verdicts: dict[Hashable, bool] = {}
        self._n_computed: Counter[Hashable] = Counter()
        self._has_changed_once = False
        self._seconds_per_row = math.inf

    def begin_epoch(self) -> None:
        """Compare all that the module holds, bit by bit, with what it was, and forget the rows if it differs."""
        if self._fingerprint.difference(Fingerprint(self.module)):
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
        is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or forward_ad._current_level >= 0:
            return None
        try:
            if not (self._fingerprint.seems_current or self._look_again()):
                return None
            self._check_layers()
            call = Call(args, kwargs)
            if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
                raise UnfitError(NEEDS_GRADIENT)
            modes = tuple(layer.training for layer in self._layers)
            settings = call.pattern, modes, torch.is_grad_enabled(), _autocast(call)
            kind = settings, len(call) == 1
            if call.is_ambiguous or not self._verdicts.get(kind, True):
                return None
            if len(self._forms) > _MOST_FORMS:
                self.rows.clear()
                self._forms.clear()
            form = self._forms.setdefault((settings, call.shared), _Form(secrets.randbits(64)))
            keys = call.row_keys(form.seed)
        except UnfitError as error:
            self.leave_alone(str(error))
        except (RuntimeError, TypeError) as error:
            self.leave_alone(f"its input cannot be read by rows: {error}")
        else:
            return (call, kind, form, keys) if keys else None
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
        if self._fingerprint.difference(now):
            self.forget()
        self._fingerprint = now
        return True

    def _answer(self, call: Call, kind: Hashable, form: _Form, keys: list[bytes]) -> Any:
        rows = self.rows.get(keys)
        missing = [i for i, row in enumerate(rows) if row is None]
        if form.output is None or len(missing) == len(rows):
            self.tally.misses += len(rows)
            self._n_computed[kind] = number = self._n_computed[kind] + 1
            is_trial = number <= _FIRST_TRIALS or number.bit_count() == 1
            output = self._try(call, kind) if is_trial else self._compute(call)
            if self._verdicts.get(kind):
                self._keep(form, keys, output, len(rows))
            return output
        there = {i: row for i, row in enumerate(rows) if row is not None}
        if self.check:
            self._check_hits(call, form.output, form.largest, there)
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
            known = form.output or OutputForm.of(output, n_rows)
            rows = known.split(output, n_rows)
        except UnfitError as error:
            self.leave_alone(str(error))
            return None
        if form.output is None:
            form.output, form.largest = known, largest_values(rows)
        self.rows.add(keys, rows)
        return rows

    def _try(self, call: Call, kind: Hashable) -> Any:
        """Compute a call, and see whether its rows are independent of each other and of all else."""
        now = Fingerprint(self.module)
        if self._fingerprint.difference(now):  # something wrote into it unseen since the epoch began
            self.rows.clear()
        self._fingerprint = now
        sources = generators(module=self.module)
        drawn = random_states(sources)
        output = self._compute(call)
        try:
            if random_states(sources) != drawn:
                raise UnfitError(
                    "it draws random numbers; dropout that is a layer can be held by frozen_dropout='eval'"
                )
            if call.has_changed():
                raise UnfitError(f"it writes into its input; use operations that are not in place, or {_REMEDY}")
            if self._is_settled(Fingerprint(self.module)):
                is_by_row, was_by_row = self._is_by_row(call, output), self._verdicts.get(kind)
                self._verdicts[kind] = is_by_row
                if not is_by_row and (was_by_row or not any(self._verdicts.values())):
                    raise UnfitError(
                        f"the output of a row depends on its batch, or it cannot take every batch; {_REMEDY}"
                    )
        except UnfitError as error:
            self.leave_alone(str(error))
        return output

    def _is_settled(self, now: Fingerprint) -> bool:
        """Whether a call has left the module as it was; it may change it once, to make a table of its own."""
        if (changed := self._fingerprint.difference(now)) and self._has_changed_once:
            raise UnfitError(f"a call changes {changed}, which would not happen for a row from memory; {_REMEDY}")
        self._fingerprint, self._has_changed_once = now, self._has_changed_once or changed is not None
        return changed is None

    def _is_by_row(self, call: Call, output: Any) -> bool:
        """Compute the rows once more, in smaller batches and another order."""
        n_rows = len(call)
        form = OutputForm.of(output, n_rows)
        rows = form.split(output, n_rows)
        largest = largest_values(rows)
        parts = [range(n_rows - 1, -1, -2), range(n_rows - 2, -1, -2), range(min(1, n_rows))]
        try:
            return all(self._gives_again(call, form, largest, {i: rows[i] for i in part}) for part in parts if part)
        except Exception:  # whatever a module raises that takes whole batches only
            return False

    def _check_hits(self, call: Call, form: OutputForm, largest: Sequence[float], hits: dict[int, Row]) -> None:
        is_due = 0 <= self._hits_until_check < len(hits)
        self._hits_until_check -= len(hits)
        if is_due and not self._gives_again(call, form, largest, dict(list(hits.items())[-self.check :])):
            raise RuntimeError(
                f"frozen_cache: what {self.name} gives for a row is not what it gave when the row was kept, though "
                "nothing in it seems to have changed. Either the output of a row depends at times on its batch or on "
                "something that is not its own, or something wrote into it through .data or numpy since the epoch "
                f"began. Leave it out: {_REMEDY}"
            )

    def _gives_again(self, call: Call, form: OutputForm, largest: Sequence[float], rows: dict[int, Row]) -> bool:
        output = self._compute(call.take(list(rows)), needed=False)
        try:
            again = form.split(output, len(rows))
        except UnfitError:
            return False
        precision = self._precision(call, again[0])
        return is_near(list(rows.values()), again, precision=precision, largest=largest)

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
