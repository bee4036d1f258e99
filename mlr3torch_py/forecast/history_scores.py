"""Which scores of a history are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mlr3torch_py.names import nearest
from mlr3torch_py.values import is_number, shown

__all__ = ["LOSSES", "scores_to_draw"]

LOSSES: Final = ("train_loss", "valid_loss")
_MOST: Final = 4


def scores_to_draw(metrics: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the keys of each score in training and validation, by its name.

    Parameters
    ----------
    metrics : str or sequence of str, optional
        The keys; by default those of the first four scores of the history.
    rows : sequence of mapping

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
        If the keys are no texts, or the history does not have one.

    Examples
    --------
    >>> scores_to_draw(None, [{"epoch": 1, "train_loss": 0.3, "train_acc": 0.8, "valid_acc": 0.9}])
    {'acc': ['train_acc', 'valid_acc']}
    """
    known = {key for row in rows for key, value in row.items() if is_number(value)}
    if metrics is None:
        scores = _by_score(key for row in rows for key in row if key in known and _is_score(key))
        return dict([*scores.items()][:_MOST])
    given = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(given, Sequence) or not all(isinstance(score, str) for score in given):
        raise TypeError(f"`metrics` is {shown(metrics)}; give names of scores, such as 'valid_acc'")
    if unknown := [score for score in given if score not in known]:
        raise ValueError(f"`metrics` has {shown(unknown[0])}, which no epoch has; {nearest(unknown, known)}")
    return _by_score(given)


def _is_score(key: str) -> bool:
    """Check whether a number of the history is a score, and no loss, duration or count."""
    is_other = key in {*LOSSES, "epoch", "dur"} or key.startswith(("event_", "lr_", "cache_", "n_trainable"))
    return not (is_other or key.endswith(("_best", "_batch_count")))


def _by_score(keys: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        found.setdefault(key.removeprefix("train_").removeprefix("valid_"), []).append(key)
    return found
