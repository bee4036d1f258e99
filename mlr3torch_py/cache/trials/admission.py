"""Decide which calls of a module may be answered from memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from copy import deepcopy
from time import thread_time
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.identity.fingerprint import Fingerprint
from mlr3torch_py.cache.identity.state import ModuleState
from mlr3torch_py.cache.identity.surroundings import Look, Surroundings
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.storage.layout import Relation
from mlr3torch_py.cache.trials.again import Again
from mlr3torch_py.cache.trials.draws import draws_itself, is_only_thread, torch_generators
from mlr3torch_py.cache.trials.reads import TrainableReads
from mlr3torch_py.cache.trials.trial import Schedule, Trial, halves, sample_rows
from mlr3torch_py.network.randomness import generators, kept_random_states, random_states

__all__ = ["NEEDS_GRADIENT", "Admission", "Request", "dependent", "is_fit_in_eval_mode"]

NEEDS_GRADIENT: Final = "its input requires a gradient"

_FEW_ROWS: Final = 4
_REMEDY: Final = "let it return what others need"


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


class _Step(NamedTuple):
    """What a call has made of the module, and the keys of the rows that it was given."""

    before: Fingerprint
    after: Fingerprint
    rows: Set[bytes]

    def is_repeated(self, other: _Step) -> bool:
        """Whether another call does the same, for other rows."""
        pairs = (self.before, other.before), (self.after, other.after)
        return self.rows != other.rows and all(one.difference(again) is None for one, again in pairs)


class Admission:
    """Decide which calls of a module may be answered from memory.

    What it learns holds for the module as it is. Replace it by a new one when the module changes.

    Parameters
    ----------
    module : torch.nn.Module

    Attributes
    ----------
    state : ModuleState
        The module as it is.

    Raises
    ------
    NotCacheableError
        If a tensor of the module cannot be read, or it has forward hooks.

    Notes
    -----
    A module is *row-wise* if its output for a row depends on that row alone. Trials check this separately for each
    signature, at calls 1 to 4, 8, 16, 32 and so on, and at each batch that is larger than any before; where they take
    long, later, see `Schedule`. Each recomputes every fourth row, in a small batch and in reverse order, the first also
    a row alone. Each begins at another row, so that every position of a batch is tried in four trials. That finds
    statistics, sums, sorting and maxima over the batch, outliers that affect others, branches on its size, and rows
    that are mixed by position. What affects few rows of few batches only is found if it happens to rows that are tried,
    or by a check of hits. In half precision and TF32, a difference between batches of two sizes counts as rounding, if
    that explains it.

    Trials also look for effects that an answer from memory would lack, such as drawing random numbers or modifying the
    module, or what it refers to; see `Surroundings`. The first one also looks for weights that the module reads though
    they are trained elsewhere; see `TrainableReads`. After a call that has such effects no row is computed again, so
    that a trial has none itself. It is no effect if a module sets up the same table whenever something else has cleared
    it, whatever the input, and leaves it alone otherwise.

    Examples
    --------
    >>> admission, batch = Admission(nn.Flatten()), torch.rand(3, 2, 2)
    >>> request = admission.read(call := Call((batch,), {}))
    >>> trial = admission.start_trial(request, call)
    >>> admission.finish_trial(trial, request, call, output=batch.flatten(1))
    True
    >>> admission.is_row_wise(request)
    True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.state: ModuleState = ModuleState(module)
        self._row_wise: dict[Hashable, bool] = {}
        self._schedules: defaultdict[Hashable, Schedule] = defaultdict(Schedule)
        self._step: _Step | None = None  # by the last call that changed the module
        self._is_in_doubt = True  # whether it is calls that change the module
        self._generators: Mapping[str, Any] | None = None
        self._surroundings: Surroundings | None = None  # once they were looked for

    @property
    def has_verdict(self) -> bool:
        """Whether trials have found something out about some calls."""
        return bool(self._row_wise)

    def read(self, call: Call) -> Request | None:
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
        self.state.check_hooks()
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise NotCacheableError(NEEDS_GRADIENT, "freeze everything that comes before it, too", may_fit_below=False)
        settings = call.pattern, self.state.settings(call.device)
        signature = settings, len(call) == 1
        if call.is_ambiguous or not self._row_wise.get(signature, True):
            return None
        return Request(call, signature, layout=(settings, call.shared))

    def is_row_wise(self, request: Request) -> bool:
        """Whether trials have found calls of this signature to be row-wise."""
        return self._row_wise.get(request.signature, False)

    def trust(self, request: Request, largest_batch: int) -> None:
        """Take calls of this signature to be row-wise, as trials of batches up to a size have found elsewhere."""
        self._row_wise[request.signature] = True
        self._schedules[request.signature].trust(largest_batch)

    def start_trial(self, request: Request, call: Call, *, catches_up: bool = False) -> Trial:
        """Prepare a trial of a call that is about to be computed; if none is due, the call is only watched.

        Parameters
        ----------
        request : Request
        call : Call
            The call with all of its values.
        catches_up : bool
            Whether to try all rows, since trials have to wait.
        """
        schedule = self._schedules[request.signature]
        if catches_up:
            schedule.catch_up()
        elif not schedule.is_due(has_verdict=request.signature in self._row_wise and not self.is_larger(request)):
            return self.start_watch()
        self.state.note_code()
        if self._generators is None:
            self._generators = generators(module=self._module)
        found = {**torch_generators(), **self._generators}
        chosen = halves(len(call)) if catches_up else sample_rows(len(call), schedule.n_trials)
        samples = [(rows, call.take(rows)) for rows in chosen]
        is_changed = self._is_in_doubt and self._find_change() is not None
        surroundings: Look | NotCacheableError
        try:
            surroundings = self._look_around(schedule, found)
        except NotCacheableError as error:
            surroundings = error
        return Trial(is_changed, found, random_states(found), samples, surroundings, began=thread_time())

    def _find_change(self) -> str | None:
        change = self.state.find_change()
        if change is not None:
            self._generators = self._surroundings = None
        return change

    def _look_around(self, schedule: Schedule, generators: Mapping[str, Any]) -> Look:
        """Look at what the module can reach outside of itself, apart from random generators."""
        began = thread_time()
        if self._surroundings is None:
            self._surroundings = Surroundings(self._module)
        look = self._surroundings.look(generators.values())
        schedule.seconds_trying += thread_time() - began
        return look

    def is_behind(self, request: Request) -> bool:
        """Whether trials of this signature have to wait; see `Schedule`."""
        return request.signature in self._schedules and self._schedules[request.signature].is_behind

    def is_larger(self, request: Request) -> bool:
        """Whether the batch is larger than any that was tried."""
        return len(request.call) > self.largest_batch(request)

    def largest_batch(self, request: Request) -> int:
        """Return the number of rows in the largest batch of this signature that was tried."""
        return self._schedules[request.signature].largest_batch

    def n_tried(self, request: Request) -> int:
        """For how many trials the last computed call of this signature counts."""
        return self._schedules[request.signature].n_tried

    def finish_trial(self, trial: Trial, request: Request, call: Call, output: Any, relation: Relation = "new") -> bool:
        """Judge a call by its output and by what else it has done.

        Returns
        -------
        bool
            Whether the module is unchanged since it was last compared, so that rows known before are still right.

        Raises
        ------
        NotCacheableError
            If the module cannot be cached.
        """
        schedule = self._schedules[request.signature]
        schedule.seconds_computing += thread_time() - trial.began
        moved = trial.moved
        if trial.surroundings is None:
            self._check_draws(moved, call, output)
            return True
        if relation != "written" and call.has_changed():
            raise NotCacheableError("it modifies its input in place", "use out-of-place operations")
        if isinstance(trial.surroundings, NotCacheableError):
            raise trial.surroundings
        surroundings = self._look_around(schedule, trial.generators)
        is_unchanged, repeated = self._effect(call, self._difference(trial.surroundings, surroundings))
        if repeated is not None:
            surroundings = self._look_around(schedule, trial.generators)
        elif not is_unchanged:
            return False
        self._check_draws(moved, call, output)
        before, now = self._row_wise.get(request.signature), self._seems_row_wise(trial, request, call, output)
        if outside := self._difference(surroundings, self._look_around(schedule, trial.generators)):
            Again(self._module, call, output).repeats()  # which leaves all as the call has left it
            raise _changing(outside, _REMEDY)
        if repeated is not None and now:
            self._take_as_alike(repeated)
        self._row_wise[request.signature] = now
        if not now and (before or not any(self._row_wise.values())):
            raise dependent()
        schedule.largest_batch = max(schedule.largest_batch, len(call))
        return True

    def _difference(self, before: Look, now: Look) -> str | None:
        return None if self._surroundings is None else self._surroundings.difference(before, now)

    def _seems_row_wise(self, trial: Trial, request: Request, call: Call, output: Any) -> bool:
        """Compute the samples again; the first time, one of them alone if that is costly."""
        schedule, again = self._schedules[request.signature], Again(self._module, call, output)
        for sample in trial.samples:
            if sample is not trial.samples[0] and schedule.is_costly and request.signature not in self._row_wise:
                schedule.postpone()
                break
            begin = thread_time()
            is_first = sample is trial.samples[0] and request.signature not in self._row_wise
            if not (_agrees_without_trainable(again, *sample) if is_first else again.agrees(*sample)):
                return False
            schedule.seconds_trying += thread_time() - begin
        return True

    def start_watch(self) -> Trial:
        """Prepare to watch a call that is computed without a trial."""
        return Trial(False, found := torch_generators(), random_states(found), began=thread_time())

    def finish_watch(self, watch: Trial, call: Call, output: Any) -> None:
        """Check that a call has drawn no random numbers.

        Raises
        ------
        NotCacheableError
            If it has.
        """
        self._check_draws(watch.moved, call, output)

    def _check_draws(self, moved: Mapping[str, Any], call: Call, output: Any) -> None:
        """Check that no generator was moved by this call; other threads may have moved them."""
        if moved and (is_only_thread() or draws_itself(Again(self._module, call, output).repeats, moved)):
            raise NotCacheableError("it draws random numbers", may_depend_on_mode=True)

    def _effect(self, call: Call, outside: str | None) -> tuple[bool, _Step | None]:
        """Find what a call did to the module and outside, as one may, to set up a table or the like.

        Returns
        -------
        bool
            Whether it left all unchanged.
        _Step or None
            What it did to the module, if a call did the same before, as after ``train()`` has cleared a table.
        """
        before, was_in_doubt = self.state.fingerprint, self._is_in_doubt
        change = self._find_change() or outside
        self._is_in_doubt = change is not None
        if change is None:
            return True, None
        step = _Step(before, self.state.fingerprint, frozenset(call.row_keys()))
        last, self._step = self._step, step
        if last is None or not was_in_doubt:
            return False, None
        if outside is not None:
            raise _changing(change, _REMEDY)
        if not last.is_repeated(step):
            raise _changing(change, may_depend_on_mode=before.parameter_hashes == step.after.parameter_hashes)
        return False, step

    def _take_as_alike(self, step: _Step) -> None:
        """Take the module for the same before and after it is set up, if further calls leave it as it is."""
        if (change := self._find_change()) is not None:
            raise _changing(change, may_depend_on_mode=True)
        self.state.take_as_alike([step.before, step.after])
        self._is_in_doubt = False


def _changing(what: str, remedy: str = "", *, may_depend_on_mode: bool = False) -> NotCacheableError:
    """Say what a call changes."""
    reason = f"a call changes {what}, which would not happen for a row from memory"
    return NotCacheableError(reason, remedy, may_depend_on_mode=may_depend_on_mode)


def _agrees_without_trainable(again: Again, rows: Sequence[int], part: Call) -> bool:
    """Compute rows again as `Again.agrees` does, and check that no trainable weight is read from elsewhere."""
    with TrainableReads() as reads:
        agrees = again.agrees(rows, part)
    if reads.found:
        raise NotCacheableError(
            "it reads weights that are trained elsewhere in the network", "give it what it needs as an argument"
        )
    return agrees or again.agrees(rows, part)  # not every module can be watched


def dependent() -> NotCacheableError:
    """Say that rows depend on each other."""
    reason = "its output for a row depends on the rest of the batch, or it does not accept every batch"
    return NotCacheableError(reason, may_depend_on_mode=True)


def is_fit_in_eval_mode(module: nn.Module, call: Call) -> bool:
    """Try whether a module could be cached if all of it were in eval mode.

    Parameters
    ----------
    module : torch.nn.Module
        A copy of it is tried, with the parameters of the original, which calls must not write.
    call : Call

    Returns
    -------
    bool
        False if it is in eval mode already.
    """
    if not any(layer.training for layer in module.modules()):
        return False
    try:
        with kept_random_states(), torch.no_grad():
            copied = deepcopy(module, {id(tensor): tensor for tensor in module.parameters()})
            for layer in copied.modules():
                layer.training = False
            admission = Admission(copied)
            for _ in range(3):  # since one call may set up a table; in turns, to see whether any row is remembered
                call = call.take(range(min(len(call), _FEW_ROWS))[::-1])
                request = admission.read(call)
                trial = request and admission.start_trial(request, call)
                if request is None or trial is None:
                    return False
                admission.finish_trial(trial, request, call, copied(*call.args, **call.kwargs))
    except Exception:  # whatever a module raises that cannot be copied
        return False
    return admission.has_verdict
