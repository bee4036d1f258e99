"""Measure the phases of a plan: a few steps of each, on a copy of the net."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.forecast.backward import BackwardWatch
from mlr3torch_py.forecast.memory import TensorMemory
from mlr3torch_py.forecast.probe import NetProbe
from mlr3torch_py.network.unwrap import bare, modules_of

__all__ = ["Measurement", "PhaseCost", "measure_phase", "measure_validation"]

_LEAST_STEPS: Final = 3
_MOST_STEPS: Final = 50
_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What the training batches of a phase cost.

    Parameters
    ----------
    seconds : float
        For one batch, loading it included.
    peak_bytes : int
        The most that tensors take in a step: weights, buffers, gradients, the state of the optimizer, activations.
    passed : frozenset of str
        The frozen parameters that the backward pass goes through.
    below : tuple of str
        The trainable parameters for whose sake it does so.
    """

    seconds: float
    peak_bytes: int
    passed: frozenset[str]
    below: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a training costs.

    Parameters
    ----------
    phases : tuple of PhaseCost
        One for each phase of the plan.
    seconds : float
        All batches of the whole training, those of validation included.
    seconds_cached : float, optional
        The same with frozen_cache, filling included, if the net has it.
    """

    phases: tuple[PhaseCost, ...]
    seconds: float
    seconds_cached: float | None = None


def measure_phase(probe: NetProbe) -> PhaseCost:
    """Take a few training steps, with the flags and pins of a phase set."""
    first = [probe.first_batch]
    probe.train(first)  # makes what is made once: lazy parameters, the state of the optimizer, compiled code
    watch = _watched(probe, first)
    for tensor in _parameters(probe):
        tensor.grad = None
    with TensorMemory(_tensors(probe)) as memory:
        probe.train(first)
    seconds = _seconds_per_batch(probe.train, probe.batches)
    return PhaseCost(seconds, memory.peak, frozenset(watch.passed), tuple(watch.below))


def measure_validation(probe: NetProbe) -> float:
    """Return the seconds for the validation batches of an epoch."""
    if probe.valid_batches is None:
        return 0.0
    seconds = _seconds_per_batch(probe.validate, probe.valid_batches)
    return seconds * probe.n_valid_batches


def _watched(probe: NetProbe, batches: list[Any]) -> BackwardWatch:
    """Watch a step of the network that is planned, not compiled, since compiled code calls no hooks."""
    module, held = probe.module, vars(probe.net)
    watch = BackwardWatch(module)
    held[f"{probe.name}_"] = bare(module)
    try:
        with watch.watching():
            probe.train(batches)
    finally:
        held[f"{probe.name}_"] = module
    return watch


def _seconds_per_batch(run: Any, batches: Iterable[Any]) -> float:
    """Run batches until it is known how long they take; the first one, which may start workers, does not count."""
    times: list[float] = []
    run(_timed(batches, times))
    took = [end - start for start, end in pairwise(times)]
    took = took[1:] or took
    return sum(took) / len(took)


def _timed(batches: Iterable[Any], times: list[float]) -> Iterator[Any]:
    """Yield batches, in several epochs if need be, and note when each of them has been used."""
    times.append(perf_counter())
    n_before = -1
    while len(times) > n_before:
        n_before = len(times)
        for batch in batches:
            yield batch
            times.append(perf_counter())
            if len(times) > _MOST_STEPS or (len(times) > 1 + _LEAST_STEPS and times[-1] - times[1] > _SECONDS):
                return


def _parameters(probe: NetProbe) -> Iterator[nn.Parameter]:
    for module in modules_of(probe.net).values():
        yield from module.parameters()


def _tensors(probe: NetProbe) -> Iterator[torch.Tensor]:
    """Yield what is there between two steps."""
    yield from _parameters(probe)
    for module in modules_of(probe.net).values():
        yield from module.buffers()
    for optimizer in probe.optimizers():
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
