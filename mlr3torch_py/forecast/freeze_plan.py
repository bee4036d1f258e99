"""freeze_plan: what the freezing callbacks of a net will do, before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_flag, check_text, check_whole
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.forecast.probe import NetProbe, cloned, is_one_of, split_pipeline, transformed
from mlr3torch_py.forecast.rehearsal import Rehearsal
from mlr3torch_py.forecast.report import FreezePlan, Pending, Phase
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.freezing.advice import doubts_about_network, heads_left_out, in_no_optimizer, shared_by
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.freezing.rate_factors import unscalable
from mlr3torch_py.names import listed
from mlr3torch_py.network.blocks import Block, find_blocks
from mlr3torch_py.network.parameters import can_train, frozen_by_us, trainable_names
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.unwrap import bare, named_parameters, names_by_tensor
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser
from mlr3torch_py.schedule.blocks import name_of
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.plateau import Plateau
from mlr3torch_py.schedule.rates import Factor, factors_at, scaling_column
from mlr3torch_py.schedule.steps import Moment, Step
from mlr3torch_py.schedule.timeline import timeline
from mlr3torch_py.values import is_list, shown

__all__ = ["freeze_plan"]

_KINDS = (FreezingCallback, CallbackSetFrozenCache)


@short_traceback
def freeze_plan(
    net: nn.Module | NetOfUser | PipelineOfUser,
    X: Any = None,
    y: Any = None,
    max_epochs: int | None = None,
    batches_per_epoch: int | None = None,
    callbacks: Sequence[Any] = (),
    measure: bool = False,
    *,
    module: str | None = None,
) -> FreezePlan:
    """Plan what all freezing callbacks of a net, or of one of its modules, will do together.

    Parameters
    ----------
    net : skorch.NeuralNet, torch.nn.Module or sklearn.pipeline.Pipeline
        A net, initialized or not, a network, or a pipeline that ends in a net. It is not modified.
    X, y : array-like, optional
        The training data of a net, as ``fit`` takes them; a pipeline transforms them as in training. They determine the
        number of batches in an epoch, and what frozen_cache will save.
    max_epochs : int, optional
        The number of epochs. By default that of the net, or of its ``fit`` if this sets another and data are given, and
        for a network up to the last row of a table.
    batches_per_epoch : int, optional
        The number of batches in an epoch, where the data are not given or do not tell it.
    callbacks : sequence of callbacks
        The freezing callbacks, if `net` is a network.
    measure : bool
        Whether to train a copy of the net for a few steps in each phase, and to say what a batch takes in time and
        memory, how long the whole training takes, with and without frozen_cache, and which frozen tensors the backward
        pass goes through. This needs a net with `X` and `y`.
    module : str, optional
        The module of the net that is planned, by the name that the callbacks have as `module`. It need not be given if
        all of them govern the same module.

    Returns
    -------
    FreezePlan
        If nothing can be measured or forecast, its notes say why.

    Raises
    ------
    TypeError, ValueError
        If an argument, or an argument of a callback, is wrong, as data beside a network; if rows count batches and
        their number is unknown.

    See Also
    --------
    plot_history : The same after training, with the losses.

    Notes
    -----
    The plan is that of a training from the start, with the states that were loaded into callbacks. Conditions are
    assumed to be met at their `no_later_than`, or never. Unless it is measured, the parameters are assumed to be in the
    order from the input to the head. What frozen_cache saves is measured on the first batch and extrapolated, on the
    assumption that all rows of the data differ and are the same in each epoch.

    Steps are taken by the ``train_step`` of a copy of the net, which has prepared itself and the data in its ``fit``,
    on batches from its own iterator. Of its callbacks only those that freeze, `frozen_cache` and skorch's
    `InputShapeSetter` are at work, so what others take, such as scores and checkpoints, is not counted. The copy trains
    alone, also if several processes train the net. Networks, random states and files are left as they are.

    Examples
    --------
    >>> from mlr3torch_py import MLP, gradual_unfreezing, t_clbk
    >>> network = MLP(4, 3, neurons=(8, 8))
    >>> print(freeze_plan(network, callbacks=[t_clbk("unfreeze", **gradual_unfreezing(network))]))
           epoch  tensors  trainable  total share  frozen_prefix
    phase
    1          1        2         27    139   19%              4
    2          2        4         99    139   71%              2
    3          3        6        139    139  100%              0
    1 + 6.weight, 6.bias
    2 + 3.weight, 3.bias
    3 + 0.weight, 0.bias
    """
    if max_epochs is not None:
        max_epochs = check_whole("max_epochs", max_epochs, "epochs")
    if batches_per_epoch is not None:
        batches_per_epoch = check_whole("batches_per_epoch", batches_per_epoch, "batches")
    measure, clones = check_flag("measure", measure), _clones(callbacks)
    _check_kind(net, X, y, clones)
    if isinstance(net, nn.Module):
        return _completed(_Subject(bare(net), clones, max_epochs, batches_per_epoch, _planned(clones, module)), measure)
    with kept_random_states(net=net, X=X, y=y):
        return _completed(_subject_of(net, X, y, max_epochs, batches_per_epoch, module), measure)


def _check_kind(net: object, X: Any, y: Any, callbacks: Sequence[Any]) -> None:
    """Reject what is no net or network, and arguments that only the other of the two has."""
    if isinstance(net, type):
        raise TypeError(_no_net(net))
    if not isinstance(net, nn.Module):
        if callbacks:
            raise TypeError("`callbacks` are given beside a net, which has its own; give only one of the two")
        return
    for name, data in {"X": X, "y": y}.items():
        if data is not None:
            remedy = "give the callbacks as `callbacks=[...]`, or a net with the data"
            raise TypeError(f"`net` is a network alone, which takes no data, but `{name}` is {shown(data)}; {remedy}")


def _no_net(net: object) -> str:
    return f"`net` is {shown(net)}; give a net of skorch, or a torch.nn.Module and `callbacks`"


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
    name : str
        What the net calls the network.
    probe : NetProbe, optional
        The net, if there is one.
    asked_by : str
        The argument that sets the number of epochs.
    """

    module: nn.Module
    callbacks: list[Any]
    max_epochs: int | None
    batches_per_epoch: int | None
    name: str = "module"
    probe: NetProbe | None = None
    asked_by: str = "max_epochs"

    @property
    def freezing(self) -> list[FreezingCallback]:
        return [one for one in self.callbacks if isinstance(one, FreezingCallback) and one.module == self.name]

    @property
    def others(self) -> dict[str, nn.Module]:
        """The other modules of the net that callbacks govern, as far as they exist."""
        governed = {one.module for one in self.callbacks if isinstance(one, FreezingCallback)} - {self.name}
        modules = {name: getattr(self.probe and self.probe.net, f"{name}_", None) for name in sorted(governed)}
        return {name: one for name, one in modules.items() if isinstance(one, nn.Module)}


def _planned(callbacks: Sequence[Any], module: str | None) -> str:
    """Return the name of the module that a plan is about: the one asked for, or the only one that is governed."""
    if module is not None:
        return check_text("module", module, "the name of a module of the net")
    freezing = [one for one in callbacks if isinstance(one, FreezingCallback)]
    for callback in freezing:
        callback.check_params()
    governed = list(dict.fromkeys(callback.module for callback in freezing))
    if len(governed) > 1:
        raise ValueError(f"the callbacks govern {listed(map(repr, governed))}; give one of them as `module`")
    return governed[0] if governed else "module"


def _subject_of(
    net: Any, X: Any, y: Any, max_epochs: int | None, batches_per_epoch: int | None, module: str | None
) -> _Subject:
    steps, net = split_pipeline(net)
    if not hasattr(net, "initialized_"):
        raise TypeError(_no_net(net))
    probe = NetProbe(net, _KINDS)
    probe.name = _planned(probe.callbacks, module)
    if X is not None:
        probe.load(X if steps is None else transformed(steps, X, y), y)
        batches_per_epoch = batches_per_epoch or _batches_of(probe)
    asked_by = "max_epochs" if probe.epochs is None or max_epochs is not None else "epochs"
    epochs = next(n for n in (max_epochs, probe.epochs, net.max_epochs) if n is not None)
    return _Subject(bare(probe.module), probe.callbacks, epochs, batches_per_epoch, probe.name, probe, asked_by)


def _batches_of(probe: NetProbe) -> int | None:
    """Return the number of batches in an epoch, None if the data cannot be loaded.

    Raises
    ------
    TypeError, ValueError
        If the data cannot even be split.
    """
    if probe.unfit is not None:
        raise probe.unfit
    return probe.n_batches


def _completed(subject: _Subject, measure: bool) -> FreezePlan:
    """Plan all freezing callbacks together, and try it out as far as is asked for."""
    plan = _plan(subject)
    cache = next((one for one in subject.callbacks if isinstance(one, CallbackSetFrozenCache)), None)
    if cache is not None and subject.name != "module":
        plan, cache = replace(plan, notes=(*plan.notes, "frozen_cache: only parts of `module_` are cached")), None
    if not measure and cache is None:
        return plan
    return Rehearsal(plan, subject.module, subject.probe, subject.freezing, cache, measure).complete()


def _plan(subject: _Subject) -> FreezePlan:
    """Plan all freezing callbacks together."""
    declared = _make_plans(subject)
    steps = [step for plans in declared for plan in plans for step in plan.steps]
    doubts = [] if subject.probe is None else subject.probe.doubts
    if subject.batches_per_epoch is None and any(step.row.unit == "batch" and step.time > 0 for step in steps):
        remedy = "pass `batches_per_epoch`" if doubts else "pass `X` and `y`, or `batches_per_epoch`"
        message = f"the plan counts batches, whose number in an epoch is not known: {remedy}"
        raise ValueError("; ".join([message, *doubts]))
    tensors, tied = named_parameters(subject.module), names_by_tensor(subject.module)
    phases, last_epoch = _phases(subject, tied)
    blocks = find_blocks(subject.module)
    return FreezePlan(
        sizes={name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in tensors.items()},
        aliases=frozenset(alias for names in tied for alias in names[1:]),
        phases=tuple(phases),
        max_epochs=subject.max_epochs or last_epoch,
        batches_per_epoch=subject.batches_per_epoch,
        notes=tuple(_notes(subject, declared, phases, blocks)),
        pending=tuple(_pending(subject, steps, phases[-1])),
        blocks=tuple((name_of(block, list(tensors)), block.names) for block in blocks),
    )


def _make_plans(subject: _Subject) -> list[tuple[Plan, ...]]:
    """Make the plans of the callbacks, with conditions met at their latest, and return them as they are given."""
    declared = []
    for callback in subject.freezing:
        callback.require_params()
        declared.append(callback.plan_from_start(subject.module))
    return declared


def _phases(subject: _Subject, tied: Sequence[Sequence[str]]) -> tuple[list[Phase], int]:
    """Walk through the timeline; return the times in which the same tensors are trainable, and the last epoch."""
    governed = frozenset().union(frozen_by_us(subject.module), *(callback.governed for callback in subject.freezing))
    tensors = named_parameters(subject.module)
    sharing = sharing_names(tensors)
    may_train = {name for name in tensors if can_train(tensors[name])} & {*governed, *trainable_names(subject.module)}
    plans = [plan for callback in subject.freezing for plan in callback.plans_]
    tensor_of = {name: names[0] for names in tied for name in names}
    phases: list[Phase] = []
    epoch = 1
    for moment, held in timeline(plans, subject.batches_per_epoch or 1, last_epoch=subject.max_epochs or math.inf):
        free, epoch = may_train - held, moment.epoch
        free |= {name for names in sharing if not free.isdisjoint(names) for name in names} & may_train
        trainable = frozenset(name for names in tied if not free.isdisjoint(names) for name in names)
        factors = factors_at(plans, moment, tensor_of)
        phase = Phase(epoch, moment.batch, trainable, _effective(factors, tied, trainable, moment.batch))
        if not (phases and _is_same(phases[-1], phase)):
            phases.append(phase)
    return phases, epoch


def _effective(
    factors: Mapping[str, Factor], tied: Sequence[Sequence[str]], trainable: frozenset[str], batch: int
) -> dict[str, Factor]:
    """Return the factors on the rates of trainable parameters, by each of their names; those of 1 are left out."""
    at = {names: factors[names[0]] for names in map(tuple, tied) if names[0] in factors and names[0] in trainable}
    return {name: one for names, one in at.items() if one.mult != 1 or one.is_rising(batch) for name in names}


def _is_same(before: Phase, phase: Phase) -> bool:
    """Check whether nothing but the end of a warm-up lies between two phases."""
    still = {name: one.since(phase.batch) for name, one in before.factors.items()}
    return (
        before.trainable == phase.trainable and {n: one for n, one in still.items() if one != Factor()} == phase.factors
    )


def _notes(
    subject: _Subject, declared: Sequence[tuple[Plan, ...]], phases: Sequence[Phase], blocks: Sequence[Block]
) -> Iterator[str]:
    """Yield what a plan leaves open, and what is probably a mistake."""
    for callback, plans in zip(subject.freezing, declared, strict=True):
        yield from callback.doubts(subject.module, plans)
    schedules = [getattr(callback, "schedule", None) for callback in subject.freezing]
    yield from heads_left_out(subject.module, schedules, [plan for plans in declared for plan in plans], blocks)
    yield from _idle(subject, phases)
    is_late = partial(_is_too_late, subject=subject)
    end = f"{subject.max_epochs} is the last one by `{subject.asked_by}`"
    for callback, plans in zip(subject.freezing, declared, strict=True):
        yield from callback.open_ends(plans, is_late, end)
    if subject.probe is not None:
        yield from _doubtful_length(subject.batches_per_epoch, subject.probe)
        if others := subject.probe.others_that_freeze:
            yield (
                f"{listed(map(repr, others))} of skorch may freeze or unfreeze parameters beside the plan, which does "
                "not show it; use t_clbk('freezer')"
            )
    yield from _unsuitable(subject)


def _doubtful_length(per_epoch: int | None, probe: NetProbe) -> Iterator[str]:
    """Yield what is not certain about the number of batches in an epoch."""
    if per_epoch == probe.n_batches:
        yield from probe.doubts
    elif probe.n_batches is not None and not probe.doubts:
        yield f"`batches_per_epoch` is {per_epoch}, but an epoch of the data has {probe.n_batches} batches"


def _unsuitable(subject: _Subject) -> Iterator[str]:
    """Yield what training would warn of, or refuse, in the network and the optimizers."""
    plans = [plan for callback in subject.freezing for plan in callback.plans_]
    yield from doubts_about_network(subject.module, plans)
    if subject.probe is None:
        return
    optimizers, tensors = subject.probe.optimizers(), named_parameters(subject.module)
    will_train = frozenset[str]().union(*(plan.ever_trainable for plan in plans))
    if missing := in_no_optimizer(subject.module, will_train, optimizers):
        yield missing
    steps = [step for plan in plans for step in plan.scaling]
    scaled = {id(tensors[name]) for step in steps for name in step.names}
    refusals = [unscalable(one, scaled, scaling_column(steps)) for one in optimizers if steps]
    for name, other in subject.others.items():
        refusals.append(shared_by(tensors, f"{subject.name}_", named_parameters(other), f"{name}_"))
    yield from (f"training will be refused: {why}" for why in refusals if why)


def _idle(subject: _Subject, phases: Sequence[Phase]) -> Iterator[str]:
    """Yield the phases in which nothing trains, by the rows that come when they begin."""
    steps = [step for callback in subject.freezing for plan in callback.plans_ for step in plan.steps]
    for phase in (phase for phase in phases if not phase.trainable):
        now = Moment(phase.epoch, phase.batch)
        rows = [step.row for step in steps if step.row.action == "freeze" and step.is_of(now, step.row.unit)]
        who = (
            f"`unfreeze`: {listed(rows)}" if rows else f"the schedule from epoch {phase.epoch}, batch {phase.batch} on"
        )
        verb = "leave" if len(rows) > 1 else "leaves"
        yield f"{who} {verb} nothing trainable, so that `fit` fails there unless other modules train"


def _is_too_late(step: Step, subject: _Subject) -> bool:
    per_epoch = (subject.batches_per_epoch or 1) if step.row.unit == "batch" else 1
    return subject.max_epochs is not None and step.time > subject.max_epochs * per_epoch


def _pending(subject: _Subject, steps: Sequence[Step], last: Phase) -> Iterator[Pending]:
    """Yield the rows that wait for a condition, or would change something after the last epoch."""
    for step in steps:
        time, freezes = step.row.time, step.row.action == "freeze"
        if isinstance(time, Plateau):
            until = time.no_later_than or math.inf
            yield Pending(step.names, freezes, f"a plateau of {time.monitor}", is_condition=True, until=until)
        elif _is_too_late(step, subject):
            changed = step.names & last.trainable if freezes else step.names - last.trainable
            if changed:
                yield Pending(changed, freezes, f"{step.row.unit} {time}", is_condition=False)


def _clones(callbacks: Sequence[Any]) -> list[Any]:
    remedy = "give a list of freezing callbacks, as t_clbk('unfreeze') makes them"
    if not is_list(callbacks):
        raise TypeError(f"`callbacks` is {shown(callbacks)}; {remedy}")
    for item in callbacks:
        if not is_one_of(item, _KINDS):
            raise TypeError(f"`callbacks` holds {shown(item)}; {remedy}")
    return [cloned(item[1] if isinstance(item, tuple) else item) for item in callbacks]
