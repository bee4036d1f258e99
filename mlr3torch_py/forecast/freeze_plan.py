"""freeze_plan: what the freezing callbacks of a net will do, before training."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from sklearn.base import clone
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_whole, shown
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.forecast.cache import Span, estimate_epochs, measure_costs
from mlr3torch_py.forecast.probe import NetProbe, is_one_of, split_pipeline, transformed
from mlr3torch_py.forecast.report import FreezePlan, Pending, Phase
from mlr3torch_py.freezing.advice import in_no_optimizer
from mlr3torch_py.freezing.engine import modules_to_pin
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.network.evaluation import Pins
from mlr3torch_py.network.parameters import Flags, can_train, frozen_by_us, trainable_names
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.network.unwrap import bare, named_parameters, names_by_tensor
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser
from mlr3torch_py.schedule.plan import Moment, Plan, Step
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.timeline import timeline

__all__ = ["freeze_plan"]

_KINDS = (FreezingCallback, CallbackSetFrozenCache)


def freeze_plan(
    net: nn.Module | NetOfUser | PipelineOfUser,
    X: Any = None,
    y: Any = None,
    max_epochs: int | None = None,
    batches_per_epoch: int | None = None,
    callbacks: Sequence[Any] = (),
) -> FreezePlan:
    """Plan what all freezing callbacks of a net will do together.

    Parameters
    ----------
    net : skorch.NeuralNet, torch.nn.Module or sklearn.pipeline.Pipeline
        A net, initialized or not, a network, or a pipeline that ends in a net. It is not modified.
    X, y : array-like, optional
        The training data, which a pipeline transforms as in training. They determine the number of batches in an epoch,
        and what frozen_cache will save.
    max_epochs : int, optional
        The number of epochs. By default that of the net, and for a network up to the last row of a table.
    batches_per_epoch : int, optional
        The number of batches in an epoch, in place of the data.
    callbacks : sequence of callbacks
        The freezing callbacks, if `net` is a network.

    Returns
    -------
    FreezePlan

    Raises
    ------
    TypeError, ValueError
        If an argument, or an argument of a callback, is wrong; if rows count batches and their number is unknown.

    See Also
    --------
    plot_history : The same after training, with the losses.

    Notes
    -----
    The plan is that of a training from the start. Conditions are assumed to be met at their `no_later_than`, or never,
    and the parameters to be in the order from the input to the head. What frozen_cache saves is measured on the first
    batch and extrapolated, on the assumption that all rows of the data differ and are the same in each epoch.

    Examples
    --------
    >>> from mlr3torch_py import MLP, gradual_unfreezing, t_clbk
    >>> network = MLP(4, 3, neurons=(8, 8))
    >>> print(freeze_plan(network, callbacks=[t_clbk("unfreeze", **gradual_unfreezing(network))]))
           epoch  trainable_tensors  trainable  total share  frozen_prefix
    phase
    1          1                  2         27    139   19%              4
    2          2                  4         99    139   71%              2
    3          3                  6        139    139  100%              0
    1 + 6.weight, 6.bias
    2 + 3.weight, 3.bias
    3 + 0.weight, 0.bias
    """
    if max_epochs is not None:
        max_epochs = check_whole("max_epochs", max_epochs, "epochs")
    if batches_per_epoch is not None:
        batches_per_epoch = check_whole("batches_per_epoch", batches_per_epoch, "batches")
    clones = _clones(callbacks)
    if isinstance(net, nn.Module):
        subject = _Subject(bare(net), clones, max_epochs, batches_per_epoch)
    elif clones:
        raise TypeError("`callbacks` are given beside a net, which has its own; give only one of the two")
    else:
        subject = _subject_of(net, X, y, max_epochs, batches_per_epoch)
    plan = _plan(subject)
    for cache in subject.callbacks:
        if isinstance(cache, CallbackSetFrozenCache):
            plan = _with_cache(plan, cache, subject)
    return plan


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a plan is about.

    Parameters
    ----------
    module : torch.nn.Module
        The bare network.
    callbacks : list of CallbackSet
        Clones of the callbacks that freeze it, and of those that cache what is frozen.
    max_epochs, batches_per_epoch : int, optional
    probe : NetProbe, optional
        The net, if there is one.
    """

    module: nn.Module
    callbacks: list[Any]
    max_epochs: int | None
    batches_per_epoch: int | None
    probe: NetProbe | None = None

    @property
    def freezing(self) -> list[FreezingCallback]:
        return [callback for callback in self.callbacks if isinstance(callback, FreezingCallback)]


def _subject_of(net: Any, X: Any, y: Any, max_epochs: int | None, batches_per_epoch: int | None) -> _Subject:
    steps, net = split_pipeline(net)
    if isinstance(net, type) or not hasattr(net, "initialized_"):
        raise TypeError(f"`net` is {shown(net)}; give a net of skorch, or a torch.nn.Module and `callbacks`")
    with kept_random_states():
        probe = NetProbe(net, _KINDS)
        if X is not None and batches_per_epoch is None:
            probe.load(X if steps is None else transformed(steps, X, y), y)
            batches_per_epoch = probe.n_batches
    epochs = net.max_epochs if max_epochs is None else max_epochs
    return _Subject(bare(probe.module), probe.callbacks, epochs, batches_per_epoch, probe)


def _plan(subject: _Subject) -> FreezePlan:
    """Plan all freezing callbacks together."""
    steps = _make_plans(subject)
    if subject.batches_per_epoch is None and any(step.row.unit == "batch" and step.time > 0 for step in steps):
        raise ValueError(
            "the plan counts batches, whose number in an epoch is not known: pass `X` or `batches_per_epoch`"
        )
    tensors, tied = named_parameters(subject.module), names_by_tensor(subject.module)
    phases, last_epoch = _phases(subject, tied)
    return FreezePlan(
        sizes={name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in tensors.items()},
        aliases=frozenset(alias for names in tied for alias in names[1:]),
        phases=tuple(phases),
        max_epochs=subject.max_epochs or last_epoch,
        batches_per_epoch=subject.batches_per_epoch,
        notes=tuple(_notes(subject, steps)),
        pending=tuple(_pending(subject, steps)),
    )


def _make_plans(subject: _Subject) -> list[Step]:
    """Make the plans of the callbacks, with conditions met at their latest, and return the steps as they are given."""
    steps: list[Step] = []
    for callback in subject.freezing:
        callback.require_params()
        plans = callback.plans_for(subject.module)
        steps += [step for plan in plans for step in plan.steps]
        callback.plans_ = tuple(plan.resolved(_latest(plan)) for plan in plans)
    return steps


def _phases(subject: _Subject, tied: Sequence[Sequence[str]]) -> tuple[list[Phase], int]:
    """Walk through the timeline; return the times in which the same tensors are trainable, and the last epoch."""
    governed = frozenset().union(frozen_by_us(subject.module), *(callback.governed for callback in subject.freezing))
    tensors = named_parameters(subject.module)
    may_train = {name for name in tensors if can_train(tensors[name])} & {*governed, *trainable_names(subject.module)}
    plans = [plan for callback in subject.freezing for plan in callback.plans_]
    phases: list[Phase] = []
    epoch = 1
    for moment, held in timeline(plans, subject.batches_per_epoch or 1, last_epoch=subject.max_epochs or math.inf):
        free, epoch = may_train - held, moment.epoch
        trainable = frozenset(name for names in tied if not free.isdisjoint(names) for name in names)
        if not (phases and phases[-1].trainable == trainable):
            phases.append(Phase(epoch, moment.batch, trainable))
    return phases, epoch


def _notes(subject: _Subject, steps: Sequence[Step]) -> Iterator[str]:
    """Yield what a plan leaves open, and which of its rows have no effect."""
    last_epoch = subject.max_epochs
    for step in steps:
        if isinstance(step.row.time, Plateau):
            yield f"{step.row} depends on the training; here it takes effect at its `no_later_than`, or never"
        elif _is_too_late(step, subject):
            yield f"{step.row} has no effect, since epoch {last_epoch} is the last one by `max_epochs`"
    optimizers = [] if subject.probe is None else subject.probe.optimizers()
    will_train = frozenset[str]().union(*(p.ever_trainable for cb in subject.freezing for p in cb.plans_))
    if missing := in_no_optimizer(subject.module, will_train, optimizers):
        yield missing


def _is_too_late(step: Step, subject: _Subject) -> bool:
    per_epoch = (subject.batches_per_epoch or 1) if step.row.unit == "batch" else 1
    return subject.max_epochs is not None and step.time > subject.max_epochs * per_epoch


def _pending(subject: _Subject, steps: Sequence[Step]) -> Iterator[Pending]:
    """Yield the rows that wait for a condition, or come after the last epoch."""
    for step in steps:
        time, freezes = step.row.time, step.row.action == "freeze"
        if isinstance(time, Plateau):
            until = time.no_later_than or math.inf
            yield Pending(step.names, freezes, f"a plateau of {time.monitor}", is_condition=True, until=until)
        elif _is_too_late(step, subject):
            yield Pending(step.names, freezes, f"{step.row.unit} {time}", is_condition=False)


def _latest(plan: Plan) -> dict[int, int]:
    """Return the epochs at which conditions are met at the latest, as `Plan.resolved` takes them."""
    times = ((step.row.position, step.row.time) for step in plan.conditions)
    return {at: time.no_later_than for at, time in times if isinstance(time, Plateau) and time.no_later_than}


def _clones(callbacks: Sequence[Any]) -> list[Any]:
    remedy = "give a list of freezing callbacks, as t_clbk('unfreeze') makes them"
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, (str, bytes)):
        raise TypeError(f"`callbacks` is {shown(callbacks)}; {remedy}")
    for item in callbacks:
        if not is_one_of(item, _KINDS):
            raise TypeError(f"`callbacks` holds {shown(item)}; {remedy}")
    return [clone(item[1] if isinstance(item, tuple) else item) for item in callbacks]


def _with_cache(plan: FreezePlan, cache: CallbackSetFrozenCache, subject: _Subject) -> FreezePlan:
    """Run the first batch through a copy of the network in each phase, and extrapolate to all epochs."""
    probe = subject.probe
    if probe is None or not probe.n_batches:
        note = "frozen_cache: give a net and `X` instead of `batches_per_epoch` to see what it saves"
        return replace(plan, notes=(*plan.notes, note))
    with kept_random_states():
        spans, said = _spans(plan, cache, probe, subject.freezing)
    table = estimate_epochs(
        spans,
        n_train=probe.n_train,
        n_valid=probe.n_valid,
        per_epoch=plan.batches_per_epoch or 1,
        max_epochs=plan.max_epochs,
        max_bytes=int(cache.max_bytes),
    )
    total = table.sum()
    n_asked, n_bytes = total["cache_hits"] + total["cache_misses"], table["cache_bytes"].max()
    summary = (
        f"frozen_cache: {total['cache_hits']:,.0f} of {n_asked:,.0f} rows come from memory, which holds up to "
        f"{n_bytes / 1e6:,.1f} MB; about {total['cache_saved']:.1f} s are saved"
    )
    return replace(plan, cache=table, notes=(*plan.notes, summary, *said))


def _spans(
    plan: FreezePlan, cache: CallbackSetFrozenCache, probe: NetProbe, freezing: list[FreezingCallback]
) -> tuple[list[Span], list[str]]:
    """Measure what is cached in each phase, and return it with the warnings of the cache."""
    module, per_epoch = deepcopy(bare(probe.module)).to(probe.net.device), plan.batches_per_epoch or 1
    call, n_rows = probe.first_batch()
    boundless = CallbackSetFrozenCache(cache.modules, max_bytes=sys.maxsize, check=cache.check)
    spans, pins = [], Pins()
    with warnings.catch_warnings(record=True, action="always") as said:
        for phase in plan.phases:
            moment = Moment(phase.epoch, phase.batch, tuple(1 + per_epoch * i for i in range(phase.epoch)))
            Flags(phase.trainable, frozenset()).restore(module)
            held_by = [(callback, callback.held(moment)) for callback in freezing]
            pins.set(modules_to_pin(module.train(), held_by))
            parts = boundless.make_parts(module, freezing)
            spans.append(Span(phase.batch, measure_costs(parts, lambda: call(module), n_rows)))
    return spans, list(dict.fromkeys(str(one.message) for one in said))
