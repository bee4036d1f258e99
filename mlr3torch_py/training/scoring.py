"""Ask the scoring callbacks of a net which direction is better, and for scores before an epoch ends."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

from sklearn.metrics import make_scorer
from skorch.callbacks import BatchScoring, EpochScoring, PassthroughScoring
from skorch.history import History

from mlr3torch_py.protocols import Net
from mlr3torch_py.schedule.plateau import Plateau, Stagnation
from mlr3torch_py.training.clock import scores_by_epoch
from mlr3torch_py.warn import warn

__all__ = ["lower_is_better", "parts_of_scores", "stagnation_of", "warn_of_unknown_direction", "work_out_scores"]


def lower_is_better(net: Net, monitor: str) -> bool:
    """Return whether a lower score is better.

    The callback that records the score knows: ``EpochScoring`` and its kin have ``lower_is_better``. Where no callback
    knows, lower is taken to be better.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
        The key of the score in a row of ``net.history``.

    Examples
    --------
    >>> net = iris_net().initialize()
    >>> lower_is_better(net, "valid_loss"), lower_is_better(net, "valid_acc")
    (True, False)
    """
    return getattr(_recorder(net, monitor), "lower_is_better", True)


def parts_of_scores(net: Net) -> dict[str, str]:
    """Say of the keys that scoring callbacks of the net record whether they are of training or of validation.

    Examples
    --------
    >>> parts_of_scores(iris_net().initialize())
    {'train_loss': 'train', 'valid_loss': 'valid', 'valid_acc': 'valid'}
    """
    parts = {}
    for _, callback in net.callbacks_:
        attributes = getattr(callback, "__dict__", {})
        name = attributes.get("name_") or attributes.get("name")
        if "on_train" in attributes and isinstance(name, str):
            parts[name] = "train" if attributes["on_train"] else "valid"
    return parts


def stagnation_of(net: Net, rule: Plateau, *, since: float = 1, before: float = math.inf) -> Stagnation:
    """Return the best epoch since one, and before another, by a rule that asks the net for its direction."""
    rule = rule.directed(lower_is_better(net, rule.monitor))
    scores = scores_by_epoch(net.history, rule.monitor)
    return rule.stagnation((epoch, score) for epoch, score in scores if since <= epoch < before)


def warn_of_unknown_direction(net: Net, monitor: str, remedy: str) -> None:
    """Warn of a score that is minimised although neither a callback nor its name says so.

    Of scikit-learn's scorers higher is better, and skorch's default says the opposite: a callback with such a scorer
    says nothing by it, whatever the score is called.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
    remedy : str
        What to give.

    Warns
    -----
    UserWarning
    """
    recorder = _recorder(net, monitor)
    is_known = monitor.endswith("_loss") if recorder is None else not _has_scorer(recorder)
    if lower_is_better(net, monitor) and not is_known:
        warn(
            f"`monitor` is {monitor!r}, which is minimised, since no callback of the net says that higher is better; "
            f"give {remedy}"
        )


def work_out_scores(net: Net, part: str, dataset_train: Any, dataset_valid: Any) -> dict[str, Any]:
    """Work out the scores that skorch's scoring callbacks will record when the epoch ends.

    Parameters
    ----------
    net : skorch.NeuralNet
        All batches of the part are finished.
    part : {"train", "valid"}
    dataset_train, dataset_valid : torch.utils.data.Dataset

    Returns
    -------
    dict
        The entries that the last row of the history lacks. Scorings that need another pass through the data are left
        out.
    """
    history, rows = net.history, net.history.to_list()
    pending = [
        one for _, one in net.callbacks_ if _scores_from_outputs(one, net, part) and _name_of(one) not in rows[-1]
    ]
    if not pending:
        return {}
    draft = History([*rows[:-1], dict(rows[-1])])
    net.history = draft
    try:
        for callback in pending:
            copy(callback).on_epoch_end(net, dataset_train=dataset_train, dataset_valid=dataset_valid)
    finally:
        net.history = history
    return {key: value for key, value in draft[-1].items() if key not in rows[-1]}


def _scores_from_outputs(callback: object, net: Net, part: str) -> bool:
    if not isinstance(callback, EpochScoring | BatchScoring | PassthroughScoring):
        return False
    if callback.on_train != (part == "train"):
        return False
    is_cached = getattr(callback, "use_caching", None) if net.use_caching == "auto" else net.use_caching
    return bool(is_cached) or not isinstance(callback, EpochScoring)


def _name_of(callback: object) -> Any:
    """Return the key of the score that a scoring callback records."""
    return getattr(callback, "name_", getattr(callback, "name", None))


def _recorder(net: Net, monitor: str) -> Any:
    """Return the callback that records a score and has a direction; None if there is none."""
    recorders = (callback for _, callback in net.callbacks_ if _name_of(callback) == monitor)
    return next((one for one in recorders if isinstance(getattr(one, "lower_is_better", None), bool)), None)


def _has_scorer(recorder: object) -> bool:
    """Check whether a callback scores by one of scikit-learn's scorers: by name, as an object, or that of the net."""
    scoring = getattr(recorder, "scoring", False)
    return scoring is None or isinstance(scoring, str | type(make_scorer(max)))
