"""The state of a learning-rate scheduler: worked out from a history, or merged with new arguments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, Final

import numpy as np

from mlr3torch_py.callbacks.lr_arguments import described, is_rate, name_of
from mlr3torch_py.callbacks.lr_groups import kept_rates, rates_of, set_rates
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.clock import has_ended

__all__ = [
    "RATE",
    "Progress",
    "accumulation",
    "error_of_step",
    "failure_of",
    "merged",
    "n_updates",
    "simulated_rates",
    "take_step",
    "was_step_left_out",
]

RATE: Final = "event_lr"


class Progress:
    """Steps of a scheduler over the epochs of a history.

    Parameters
    ----------
    scheduler : torch.optim.lr_scheduler.LRScheduler
    net : skorch.NeuralNet

    Attributes
    ----------
    epoch : int
        The last epoch of which the history has the rate; 0 if there is none.
    rate, recorded : float
        The rate of that epoch, worked out and in the history.
    """

    def __init__(self, scheduler: Any, net: Net) -> None:
        self.epoch: int = 0
        self.rate: float = math.nan
        self.recorded: float = math.nan
        self._scheduler = scheduler
        self._net = net
        self._n_seen = 0

    @property
    def differs(self) -> bool:
        return self.epoch > 0 and not math.isclose(self.rate, self.recorded, rel_tol=1e-6, abs_tol=1e-12)

    def repeat(
        self,
        rows: Sequence[dict[str, Any]],
        steps_in: Callable[[Mapping[str, Any]], Iterable[tuple[float, ...]]],
        *,
        is_by_epoch: bool,
    ) -> dict[str, Any] | None:
        """Repeat the steps of epochs; mark the one that a scheduler could not mark, and return it."""
        unmarked = _unmarked_row(rows)
        for row in rows:
            if row is unmarked:
                row[RATE] = self.rate
            self._repeat_epoch(row, steps_in(row), is_by_epoch=is_by_epoch)
            if row is unmarked:
                row[RATE] = self.recorded = self.rate
        return unmarked

    def _repeat_epoch(self, row: Mapping[str, Any], steps: Iterable[tuple[float, ...]], *, is_by_epoch: bool) -> None:
        """Repeat the steps of an epoch."""
        self._n_seen += 1
        before = rates_of(self._net)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of steps before those of the optimizer
            for scores in steps:
                self._scheduler.step(*scores)
        if RATE in row:
            self.epoch, self.recorded = self._n_seen, float(row[RATE])
            self.rate = before if is_by_epoch else rates_of(self._net)[0]


def take_step(scheduler: Any, scores: Iterable[float] = ()) -> Exception | None:
    """Step a scheduler; if it fails or sets no numbers, undo the step and return the error."""
    optimizer = scheduler.optimizer
    state, before = scheduler.state_dict(), kept_rates(optimizer)
    try:
        scheduler.step(*scores)
        for group in optimizer.param_groups:
            float(group["lr"])
    except Exception as error:
        scheduler.load_state_dict(state)
        set_rates(optimizer, before)
        return error
    return None


def failure_of(scheduler: Any, scores: Iterable[float] | None) -> Exception | None:
    """Step a scheduler, unless `scores` is None; return why one cannot train with its rates."""
    error = None if scores is None else take_step(scheduler, scores)
    rates = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    if error is None and not all(map(is_rate, rates)):
        error = ValueError(f"it sets the learning rates {rates}")
    return error


def error_of_step(error: Exception, made_by: Any, when: str, arguments: Mapping[str, Any]) -> Exception:
    """Return an error of a step with what made the scheduler, the time and the arguments in its message."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    why = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
    what = f"{name_of(made_by)} fails {when} with {described(arguments)}"
    return kind(f"{what}: {why}; give it a rate for every step, or take fewer")


def simulated_rates(
    scheduler: Any, n_steps: int, scores: Sequence[float], made_by: Any, arguments: Mapping[str, Any]
) -> np.ndarray[Any, Any]:
    """Return the rates of some steps, before each; the scores, if there are any, repeat."""
    optimizer = scheduler.optimizer
    rates = [optimizer.rates[0]]
    for step in range(1, n_steps):
        optimizer.step()
        if (error := failure_of(scheduler, [scores[(step - 1) % len(scores)]] if scores else [])) is not None:
            raise error_of_step(error, made_by, f"after {step} of {n_steps} steps", arguments) from error
        rates.append(optimizer.rates[0])
    return np.array(rates)


def was_step_left_out(net: Net) -> bool:
    """Check whether accelerate has left out the optimizer's last step."""
    accelerator = getattr(net, "accelerator", None)
    return accelerator is not None and (
        bool(accelerator.optimizer_step_was_skipped) or getattr(accelerator, "sync_gradients", True) is False
    )


def _unmarked_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last row, if a scheduler has stepped in it that could not record its rate before the row was kept.

    skorch's Checkpoint keeps the history before the callbacks that are listed after it record theirs.
    """
    is_unmarked = len(rows) > 1 and RATE in rows[-2] and RATE not in rows[-1] and has_ended(rows[-1])
    return rows[-1] if is_unmarked else None


def n_updates(net: Net, row: Mapping[str, Any]) -> int:
    """Count the updates in an epoch of the history for which a scheduler has stepped."""
    if "train_batch_count" in row:
        n_batches = int(row["train_batch_count"]) if RATE in row else 0
    else:
        n_batches = sum(RATE in entry for entry in row.get("batches", ()))
    return -(-n_batches // accumulation(net))


def accumulation(net: Net) -> int:
    """Return how many batches of accelerate make one update."""
    steps = getattr(getattr(net, "accelerator", None), "gradient_accumulation_steps", 1)
    return steps if isinstance(steps, int) else 1


def merged(
    kept: dict[Any, Any], before: dict[Any, Any] | None, now: dict[Any, Any], arguments: Iterable[str] = ()
) -> dict[Any, Any]:
    """Return a state with what other arguments have changed.

    Parameters
    ----------
    kept : dict
        The state of a scheduler.
    before, now : dict
        The states in which it, and a scheduler with other arguments, start. Where they are equal, `kept` counts,
        elsewhere `now`. `before` is None for a state of an earlier version.
    arguments : iterable of str
        The names of the arguments.

    Returns
    -------
    dict
        `kept` itself, if nothing has changed.

    Examples
    --------
    >>> merged({"gamma": 0.5, "step": 7}, {"gamma": 0.5, "step": 0}, {"gamma": 0.1, "step": 0})
    {'gamma': 0.1, 'step': 7}
    """
    if before is None:
        constant = set(arguments) - {"last_epoch"}
        before = {key: kept.get(key) if key in constant else value for key, value in now.items()}
    whole = {key: value for key, value in kept.items() if key in now or key not in before}
    whole |= {key: _entry(kept, before, key, value) for key, value in now.items()}
    is_kept = whole.keys() == kept.keys() and all(whole[key] is kept[key] for key in kept)
    return kept if is_kept else whole


def _entry(kept: dict[Any, Any], before: dict[Any, Any], key: Any, now: Any) -> Any:
    """Return what a key of a merged state has."""
    if key not in kept or key not in before:
        return now
    three = kept[key], before[key], now
    if all(type(one) is dict for one in three):
        return merged(*three)
    if all(type(one) is list and one and all(type(entry) is dict for entry in one) for one in three):
        parts = [merged(*entries) for entries in zip(*three, strict=False)]  # the schedulers of a SequentialLR
        return kept[key] if all(map(is_, parts, kept[key])) else parts
    return kept[key] if _are_equal(before[key], now) else now


def _are_equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # arrays, or tensors, of several numbers
        return False
