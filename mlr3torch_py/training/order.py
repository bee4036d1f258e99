"""The order of a net's callbacks: skorch's, and that of a run, by weight."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from skorch.callbacks import PrintLog

from mlr3torch_py.names import nearest
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.stages import is_staged

__all__ = [
    "NamedCallback",
    "by_weight",
    "check_names_of_callbacks",
    "has",
    "in_skorchs_order",
    "is_of_run",
    "own_callbacks",
]

_PREFIX: Final = "callbacks__"
_DEFAULTS: Final = ("epoch_timer", "train_loss", "valid_loss", "valid_acc", "print_log")  # of skorch's nets
NamedCallback: TypeAlias = tuple[str, Any]


def is_of_run(callback: object) -> bool:
    """Whether a callback stands in a net for the time of a run only."""
    is_adaptor: bool = getattr(type(callback), "adapts_a_run", False)
    return is_adaptor


def own_callbacks(net: Net) -> dict[str, Any]:
    """Return the callbacks of a net by name, without those of a run."""
    return {name: callback for name, callback in net.callbacks_ if not is_of_run(callback)}


def check_names_of_callbacks(net: Net) -> None:
    """Check that ``callbacks__...`` among the attributes of a net names callbacks that it has; skorch ignores others.

    skorch's default callbacks may be named in a net without them, as skorch's AccelerateMixin does, and so may whatever
    is to be left out by None, unless it looks like a misspelt name.

    Raises
    ------
    ValueError
        If one does not; the message names the nearest.
    """
    own = [] if net.callbacks == "disable" else net._uniquely_named_callbacks()
    known = dict.fromkeys(name for name, _ in (*own, *net.callbacks_))
    for argument, value in vars(net).items():
        path = argument.removeprefix(_PREFIX)
        name = path.partition("__")[0]
        if path == argument or name in known or name in _DEFAULTS:
            continue
        meant = max((one for one in known if path.startswith((f"{one}_", f"{one}."))), key=len, default="")
        if value is None and not meant and not get_close_matches(name, known):
            continue
        parameter = path[len(meant) + 1 :]
        remedy = f"did you mean `{_PREFIX}{meant}__{parameter}`?" if meant else nearest([name], known)
        raise ValueError(f"`{argument}` names {name!r}, which no callback of the net is called; {remedy}")


def in_skorchs_order(callbacks: list[NamedCallback]) -> list[NamedCallback]:
    """Drop the callbacks of a run, and restore the order before it.

    Callbacks that were added since come last.
    """
    names: list[str] = next((callback.names_ for _, callback in callbacks if is_of_run(callback)), [])
    place = {name: i for i, name in enumerate(names)}
    others = [item for item in callbacks if not is_of_run(item[1])]
    return sorted(others, key=lambda item: place.get(item[0], len(place)))


def by_weight(callbacks: list[NamedCallback]) -> tuple[list[NamedCallback], list[NamedCallback]]:
    """Sort callbacks by weight, and return those of finite weight and those that run last."""
    in_order = sorted(callbacks, key=_rank)
    n_finite = sum(_rank(item)[0] < math.inf for item in in_order)
    return in_order[:n_finite], in_order[n_finite:]


def has(objects: list[Any], wanted: object) -> bool:
    """Whether a list holds an object itself."""
    return any(wanted is one for one in objects)


def _rank(item: NamedCallback) -> tuple[float, int]:
    """Return the weight of a callback as a key to sort by."""
    callback = item[1]
    if isinstance(callback, PrintLog):  # it prints what the others have recorded
        return math.inf, 0
    return callback.weight if is_staged(callback) else 0, 1
