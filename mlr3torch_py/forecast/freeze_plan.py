"""freeze_plan: what the freezing callbacks of a net will do, to be looked at before training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence, Set
from copy import deepcopy
from dataclasses import replace
from typing import Any

from sklearn.base import clone
from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.forecast.cache import Span, estimate_epochs, measure_costs
from mlr3torch_py.forecast.probe import NetProbe, is_one_of
from mlr3torch_py.forecast.report import FreezePlan, Phase
from mlr3torch_py.freezing.holder import FreezingCallback, layers_to_hold
from mlr3torch_py.network.evaluation import hold_in_evaluation
from mlr3torch_py.network.parameters import Flags, frozen_by_us
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.schedule.plan import Moment, Step
from mlr3torch_py.schedule.plateau import Plateau

__all__ = ["freeze_plan"]

_KINDS = (FreezingCallback, CallbackSetFrozenCache)


def freeze_plan(
    net: Any,
    X: Any = None,
    y: Any = None,
    max_epochs: int | None = None,
    batches_per_epoch: int | None = None,
    callbacks: Sequence[Any] = (),
) -> FreezePlan:
    """Say what all freezing callbacks of a net together will do in a training from the start.

    Parameters
    ----------
    net : skorch.NeuralNet or torch.nn.Module
        A net, initialized or not, which is left as it is, or a network.
    X, y : array-like, optional
        The training data, from which the number of batches in an epoch is found, and what frozen_cache will do.
    max_epochs : int, optional
        How many epochs are looked at. That of the net if missing; for a network up to the last row of a table.
    batches_per_epoch : int, optional
        Instead of the data.
    callbacks : sequence of callbacks
        The freezing callbacks, where `net` is a network.

    Returns
    -------
    FreezePlan

    Raises
    ------
    TypeError, ValueError
        If an argument, or an argument of a callback, is wrong; if batches count and their number is not known.

    See Also
    --------
    plot_history : What happened, after training.

    Notes
    -----
    Conditions are taken to come at their `no_later_than`, or never. The order of the parameters is taken for their
    order from the input to the head. What frozen_cache will do is measured on the first batch, and reckoned for data of
    which all rows differ and come as they are in each epoch.

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
    for argument, value in (("max_epochs", max_epochs), ("batches_per_epoch", batches_per_epoch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`{argument}` is {value!r}; give a whole number from 1")
    if isinstance(net, nn.Module):
        probe, module, planned = None, net, _clones(callbacks)
    else:
        if callbacks or not hasattr(net, "initialized_"):
            what = "`callbacks` are given beside a net, which has its own" if callbacks else f"`net` is {net!r}"
            raise TypeError(f"{what}; give a net of skorch, or a torch.nn.Module and `callbacks`")
        max_epochs = net.max_epochs if max_epochs is None else max_epochs
        with kept_random_states():
            probe = NetProbe(net, _KINDS)
            module, planned = probe.module, probe.callbacks
            if X is not None and batches_per_epoch is None:
                probe.load(X, y)
                batches_per_epoch = probe.n_batches
    module = bare(module)
    freezing = [callback for callback in planned if isinstance(callback, FreezingCallback)]
    for callback in freezing:
        callback.require_params()
        callback.plans_ = callback.make_plans(module)
    steps = [step for callback in freezing for plan in callback.plans_ for step in plan.steps]
    if batches_per_epoch is None and any(step.row.unit == "batch" and step.time > 0 for step in steps):
        raise ValueError(
            "the plan counts batches, whose number in an epoch is not known: pass `X` or `batches_per_epoch`"
        )
    per_epoch = batches_per_epoch or 1
    begins = sorted({1, *(_batch(step, per_epoch) for step in steps)} - {0})
    n_epochs = (begins[-1] - 1) // per_epoch + 1 if max_epochs is None else max_epochs
    tensors = named_parameters(module)
    governed = frozenset().union(frozen_by_us(module), *(callback.governed for callback in freezing))
    may_train = frozenset(name for name, tensor in tensors.items() if name in governed or tensor.requires_grad)
    has_aliases = len({id(tensor) for tensor in tensors.values()}) < len(tensors)
    phases: list[Phase] = []
    for batch in begins:
        epoch = (batch - 1) // per_epoch + 1
        trainable = may_train.difference(*(_held(callback, epoch, batch, per_epoch) for callback in freezing))
        if has_aliases:
            trainable = _with_aliases(trainable, tensors)
        if epoch <= n_epochs and not (phases and phases[-1].trainable == trainable):
            phases.append(Phase(epoch, batch, trainable))
    first_name: dict[int, str] = {}
    plan = FreezePlan(
        sizes={name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in tensors.items()},
        aliases=frozenset(name for name, t in tensors.items() if first_name.setdefault(id(t), name) != name),
        phases=tuple(phases),
        max_epochs=n_epochs,
        batches_per_epoch=batches_per_epoch,
        notes=tuple(
            f"{step.row} depends on the training; here it comes at its `no_later_than`, or never"
            for step in steps
            if isinstance(step.row.time, Plateau)
        ),
    )
    for cache in (callback for callback in planned if isinstance(callback, CallbackSetFrozenCache)):
        if probe is None or not probe.n_batches:
            notes = (
                *plan.notes,
                "frozen_cache: give a net and `X` instead of `batches_per_epoch` to see what it saves",
            )
            plan = replace(plan, notes=notes)
        else:
            with kept_random_states():
                plan = _with_cache(plan, cache, probe, freezing)
    return plan


def _batch(step: Step, per_epoch: int) -> int:
    """Return the first batch at which a step acts; 0 if it never comes."""
    time = step.row.time.no_later_than or 0 if isinstance(step.row.time, Plateau) else step.row.time
    return time if step.row.unit == "batch" or time == 0 else per_epoch * (time - 1) + 1


def _held(callback: FreezingCallback, epoch: int, batch: int, per_epoch: int) -> Set[str]:
    """Return what a callback holds at a moment; conditions are taken to come at their latest."""
    firsts, held = tuple(1 + per_epoch * i for i in range(epoch)), set[str]()
    for plan in callback.plans_:
        times = ((step.row.position, step.row.time) for step in plan.conditions)
        latest = {at: time.no_later_than for at, time in times if isinstance(time, Plateau) and time.no_later_than}
        held |= plan.held(Moment(epoch, batch, firsts, fired=latest))
    return held


def _with_aliases(names: frozenset[str], tensors: dict[str, nn.Parameter]) -> frozenset[str]:
    """Add the further names of tied tensors: a tensor trains when one of its names does."""
    free = {id(tensors[name]) for name in names}
    return frozenset(name for name, tensor in tensors.items() if id(tensor) in free)


def _clones(callbacks: Sequence[Any]) -> list[Any]:
    for item in callbacks:
        if not is_one_of(item, _KINDS):
            raise TypeError(
                f"`callbacks` holds {item!r}; it takes freezing callbacks, as t_clbk('unfreeze') makes them"
            )
    return [clone(item[1] if isinstance(item, tuple) else item) for item in callbacks]


def _with_cache(
    plan: FreezePlan, cache: CallbackSetFrozenCache, probe: NetProbe, freezing: list[FreezingCallback]
) -> FreezePlan:
    """Run the first batch through a copy of the network in each phase, and reckon what that means for all epochs."""
    module, per_epoch = deepcopy(bare(probe.module)).to(probe.net.device), plan.batches_per_epoch or 1
    call, n_rows = probe.first_batch()
    boundless = CallbackSetFrozenCache(cache.modules, max_bytes=sys.maxsize, check=cache.check)
    spans = []
    with warnings.catch_warnings(record=True, action="always") as said:
        for phase in plan.phases:
            Flags(phase.trainable, frozenset()).restore(module)
            held_by = ((cb, _held(cb, phase.epoch, phase.batch, per_epoch)) for cb in freezing)
            hold_in_evaluation(module.train(), layers_to_hold(module, held_by))
            parts = boundless.make_parts(module)
            spans.append(Span(phase.batch, measure_costs(parts, lambda: call(module), n_rows)))
    table = estimate_epochs(
        spans,
        n_train=probe.n_train,
        n_valid=probe.n_valid,
        per_epoch=per_epoch,
        max_epochs=plan.max_epochs,
        max_bytes=int(cache.max_bytes),
    )
    total = table.sum()
    n_asked, n_bytes = total["cache_hits"] + total["cache_misses"], table["cache_bytes"].max()
    summary = (
        f"frozen_cache: {total['cache_hits']:,.0f} of {n_asked:,.0f} rows come from memory, which holds up to "
        f"{n_bytes / 1e6:,.1f} MB; about {total['cache_saved']:.1f} s are saved"
    )
    return replace(plan, cache=table, notes=(*plan.notes, summary, *dict.fromkeys(str(one.message) for one in said)))
