"""Scores that callbacks monitor: whether anything can record them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any, Final

from mlr3torch_py.names import nearest
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.stages import StagedCallback
from mlr3torch_py.values import shown
from mlr3torch_py.warn import warn

__all__ = ["check_monitor", "warn_of_missing_scores"]

_LIBRARIES: Final = ("skorch", "mlr3torch_py", "sklearn", "builtins", "abc", "typing")


def check_monitor(net: Net, monitor: str, *, has_valid: bool) -> None:
    """Check, before the first step, that a score can come.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
        The key of the score in a row of the history.
    has_valid : bool
        Whether the net has validation data.

    Raises
    ------
    ValueError
        If nothing in the net records it.
    """
    if any(monitor in row for row in net.history.to_list()) or _is_recorded_by_code(net, monitor):
        return
    scorers = dict(_scorers(net))
    if monitor in scorers:
        if has_valid or scorers[monitor]:
            return
        raise ValueError(
            f"`monitor` is {monitor!r}, but the net has no validation data; give it a `train_split`, or monitor a "
            "score of training, such as 'train_loss'"
        )
    if not _is_recorded_otherwise(monitor):
        raise ValueError(
            f"`monitor` is {shown(monitor)}, which nothing in the net records; {nearest([monitor], scorers)} "
            "For another score add a callback such as skorch's EpochScoring"
        )


def warn_of_missing_scores(net: Net, callbacks: Iterable[StagedCallback]) -> None:
    """Warn of the scores that no finished epoch has."""
    rows = [row for row in net.history.to_list() if "train_batch_count" in row]
    for monitor in dict.fromkeys(monitor for callback in callbacks for monitor in callback.monitors):
        if rows and not any(row.get(monitor) is not None for row in rows):
            known = [key for key, value in rows[-1].items() if isinstance(value, float)]
            warn(f"`monitor` is {shown(monitor)}, which no epoch has recorded; {nearest([monitor], known)}")


def _scorers(net: Net) -> Iterator[tuple[str, bool]]:
    """Yield what the scoring callbacks of the net record, and whether they take it from training."""
    for _, callback in net.callbacks_:
        attributes = getattr(callback, "__dict__", {})
        if "on_train" in attributes:
            name = attributes.get("name_") or attributes.get("name")
            if isinstance(name, str):
                yield name, bool(attributes["on_train"])


def _is_recorded_otherwise(monitor: str) -> bool:
    """Check whether a key is one that skorch or this package writes beside scores."""
    begins_so = monitor.startswith(("event_", "cache_", "n_trainable"))
    return monitor in ("epoch", "dur") or begins_so or monitor.endswith(("_best", "_batch_count"))


def _is_recorded_by_code(net: Net, monitor: str) -> bool:
    """Check whether code of the user may record a score: in the class of the net, or in a callback."""
    owners = (net, *(callback for _, callback in net.callbacks_))
    return any(_may_record(code, monitor) for owner in owners for code in _codes(owner))


def _may_record(code: CodeType, monitor: str) -> bool:
    """Check whether a function may record a score, by the names and texts in it."""
    texts = [constant for constant in code.co_consts if isinstance(constant, str) and " " not in constant]
    if monitor in texts:
        return True
    records = not {"record", "record_batch"}.isdisjoint(code.co_names)
    return records and (not texts or any(text in monitor for text in texts))  # or parts of it, in an f-string


def _codes(owner: Any) -> Iterator[CodeType]:
    """Yield the code of all functions in an object's classes, except those of libraries."""
    for kind in type(owner).__mro__:
        is_made_of_functions = kind.__module__ == "mlr3torch_py.training.from_functions"
        if is_made_of_functions or kind.__module__.partition(".")[0] not in _LIBRARIES:
            for member in vars(kind).values():
                yield from _codes_in(member)


def _codes_in(function: Any) -> Iterator[CodeType]:
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return
    codes: list[CodeType] = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    yield from codes
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield from _codes_in(cell.cell_contents)
