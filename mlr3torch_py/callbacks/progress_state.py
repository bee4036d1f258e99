"""What a progress display shows: the epochs of a call of ``fit``, as texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from mlr3torch_py.names import percent
from mlr3torch_py.training.context import scores_of
from mlr3torch_py.training.trained import EVENT, governed_modules, key_of
from mlr3torch_py.values import is_number

__all__ = ["Epoch", "ProgressState", "scores_in", "seconds_text"]

_NO_SCORES: Final = ("train_", "valid_", "event_", "lr_", "cache_", "trainable_", "n_trainable")
_KEYS_OF_OTHERS: Final = {"epoch", "dur"}


@dataclass(frozen=True, slots=True)
class Epoch:
    """A finished epoch.

    Parameters
    ----------
    number : int
    scores : mapping of str to str
        The scores by their names, such as ``"train.loss"``.
    rate : str
        The learning rates, in few words.
    share : str
        The share of trainable weights; empty without a freezing callback.
    seconds : str
    changes : str
        What was unfrozen and frozen; empty if nothing was.
    """

    number: int
    scores: Mapping[str, str]
    rate: str
    share: str
    seconds: str
    changes: str

    @property
    def line(self) -> str:
        """The epoch as a line of text, without its number."""
        further = {"lr": self.rate, "trainable": self.share}
        cells = [f"{name} {text}" for name, text in {**self.scores, **further}.items() if text]
        return f"{', '.join(cells)} ({self.seconds})" + (f"; {self.changes}" if self.changes else "")

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        number: int,
        rates: list[float],
        n_weights: int,
        digits: int | None,
        in_use: Collection[str] = (),
    ) -> Epoch:
        """Read an epoch from its row of the history.

        Parameters
        ----------
        row : mapping
        number : int
        rates : list of float
            The learning rates of the param groups with trainable parameters at its last batch.
        n_weights : int
            The number of all weights of the modules that are governed.
        digits : int or None
        in_use : collection of str
            The names of the rates of trainable parts in the history; empty if there are no parts with factors.
        """
        scores = {name: number_text(value, digits) for name, value in scores_in(row)}
        n_trainable = sum(row[key_of("n_trainable", module)] for module in governed_modules(row))
        share = percent(n_trainable / n_weights) if n_weights else ""
        changes = "; ".join(_changes(row))
        return cls(
            number, scores, _rates_text([*_rates_of_parts(row, in_use)] or rates), share, seconds_text([row]), changes
        )


def _changes(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was unfrozen and frozen in each governed module."""
    for module in governed_modules(row):
        if text := row.get(key_of(EVENT, module)):
            place = "" if module == "module" else f"{module}_: "
            yield place + text.replace("+ ", "unfroze ").replace("- ", "froze ")


@dataclass(slots=True)
class ProgressState:
    """All that a display shows.

    Parameters
    ----------
    total_epochs : int
        The last epoch of the call.
    epochs : list of Epoch
        The finished epochs of the call.
    losses : list of tuple
        Number, training loss and validation loss of each, None where there is none.
    notes : list of str
        How the call started, if it is not the first, and how it ended.
    number, part, n_batches, of_batches
        The current epoch, "train" or "valid", the finished batches, and how many there are; None if nobody knows.
    """

    total_epochs: int
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[tuple[int, float | None, float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    number: int = 0
    part: str = "train"
    n_batches: int = 0
    of_batches: int | None = None
    started: float = field(default_factory=monotonic)

    @property
    def time_left(self) -> str:
        """How long the remaining epochs will take, if they take as long as those before; empty if nobody knows."""
        in_epoch = self.n_batches / self.of_batches if self.of_batches and self.part == "train" else 0.0
        done = len(self.epochs) + (0.9 * in_epoch if self.part == "train" else 0.9)  # the rest is validation
        left = self.total_epochs - self.number + 1 + len(self.epochs) - done
        if done <= 0 or left <= 0:
            return ""
        seconds = round((monotonic() - self.started) / done * left)
        minutes, hours = seconds // 60, seconds // 3600
        if hours:
            return f"{hours} h {minutes % 60} min left"
        return f"{minutes} min {seconds % 60} s left" if minutes else f"{seconds} s left"


def seconds_text(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    """Add up how long epochs took."""
    return f"{sum(row.get('dur', 0.0) for row in rows):.1f} s"


def number_text(value: float, digits: int | None) -> str:
    """Write a score with some significant digits; without `digits`, with four decimals, or four digits if it is small.

    Examples
    --------
    >>> number_text(0.93333, 2), number_text(0.93333, None), number_text(0.00001234, None)
    ('0.93', '0.9333', '1.234e-05')
    """
    if digits is not None:
        return f"{value:.{int(digits)}g}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def scores_in(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the scores of an epoch: of training, of validation, and those with other names."""
    for part in ("train", "valid"):
        for name, value in sorted(scores_of(row, part, {}).items()):
            if is_number(value):
                yield f"{part}.{name}", float(value)
    for name, value in row.items():
        if is_number(value) and name not in _KEYS_OF_OTHERS and not name.startswith(_NO_SCORES):
            yield name, float(value)


def _rates_of_parts(row: Mapping[str, Any], in_use: Collection[str]) -> Iterator[float]:
    """Yield the rates of trainable parts of param groups at the last batch that has them."""
    for entry in reversed(row.get("batches", ())):
        rates = [float(value) for key, value in entry.items() if key in in_use]
        if rates:
            yield from rates
            return


def _rates_text(rates: list[float]) -> str:
    if not rates:
        return ""
    low, high = f"{min(rates):.3g}", f"{max(rates):.3g}"
    return low if low == high else f"{low} to {high}"
