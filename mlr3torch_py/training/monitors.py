"""Scores that callbacks monitor: whether anything can record them."""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any, Final

from skorch.callbacks import LRScheduler
from torch import nn

from mlr3torch_py.names import nearest
from mlr3torch_py.network.holdings import walk
from mlr3torch_py.protocols import History, Net
from mlr3torch_py.training.clock import score_of
from mlr3torch_py.training.scoring import parts_of_scores
from mlr3torch_py.training.stages import StagedCallback, is_staged
from mlr3torch_py.values import shown
from mlr3torch_py.warn import warn

__all__ = ["check_monitor", "warn_of_missing_scores"]

_LOOKS_UP: Final = ("LOAD_ATTR", "LOAD_METHOD")
_RECORDS: Final = ("record", "record_batch")
_CALLS: Final = ("CALL", "PRECALL", "KW_NAMES")
_CONSTANT: Final = ("LOAD_CONST", "LOAD_SMALL_INT")
_WRITES_ROWS: Final = {"update", "setdefault", "__setitem__"}
_LIBRARIES: Final = ("torch", "skorch", "mlr3torch_py", "sklearn", "builtins", "abc", "typing")


def check_monitor(net: Net, monitor: str, *, has_valid: bool, may_be_hidden: bool = True) -> bool:
    """Check that a score can come.

    Parameters
    ----------
    net : skorch.NeuralNet
    monitor : str
        The key of the score in a row of the history.
    has_valid : bool
        Whether the net has validation data.
    may_be_hidden : bool
        Whether code of the user may record it in a way that only an epoch shows; False once there has been one.

    Returns
    -------
    bool
        Whether only an epoch will show it.

    Raises
    ------
    ValueError
        If nothing in the net records it as a number.
    """
    scorers = parts_of_scores(net)
    if monitor not in scorers:
        _check_flag_of_score(net, monitor, scorers)
        is_known = monitor in _numbers(net)
    else:
        is_known = has_valid or scorers[monitor] == "train"
    if is_known or _is_in(net.history, monitor) or _is_recorded_by_code(net, monitor):
        return False
    if monitor in scorers:
        raise ValueError(
            f"`monitor` is {monitor!r}, but the net has no validation data; give it a `train_split`, or monitor a "
            "score of training, such as 'train_loss'"
        )
    is_misspelt = bool(get_close_matches(monitor, scorers, cutoff=0.9))
    if may_be_hidden and not is_misspelt and _may_be_hidden(net):
        return True
    raise ValueError(
        f"`monitor` is {shown(monitor)}, which nothing in the net records as a number; "
        f"{nearest([monitor], scorers)} For another score add a callback such as skorch's EpochScoring"
    )


def warn_of_missing_scores(net: Net, callbacks: Iterable[StagedCallback]) -> None:
    """Warn of the scores that no finished epoch has."""
    rows = [row for row in net.history.to_list() if "train_batch_count" in row]
    for monitor in dict.fromkeys(monitor for callback in callbacks for monitor in callback.monitors):
        if rows and not any(row.get(monitor) is not None for row in rows):
            known = [key for key, value in rows[-1].items() if isinstance(value, float)]
            warn(f"`monitor` is {shown(monitor)}, which no epoch has recorded; {nearest([monitor], known)}")


def _check_flag_of_score(net: Net, monitor: str, scorers: Iterable[str]) -> None:
    """Refuse the key by which skorch says of a score whether it is the best so far."""
    score = monitor.removesuffix("_best")
    if score != monitor and (score in scorers or _is_in(net.history, score)):
        raise ValueError(
            f"`monitor` is {monitor!r}, which only says whether an epoch is the best one so far; give {score!r}"
        )


def _is_in(history: History, monitor: str) -> bool:
    """Check whether a history has a key of scores, or of numbers."""
    rows = (row for row in history.to_list() if monitor in row)
    try:
        return bool([score_of(row, monitor) for row in rows])
    except TypeError:
        return False


def _numbers(net: Net) -> Iterator[str]:
    """Yield the keys of the numbers that are recorded beside scores: by skorch, and by callbacks."""
    yield from ("epoch", "dur", "train_batch_count", "valid_batch_count")
    for _, callback in net.callbacks_:
        if is_staged(callback):
            yield from callback.numbers
        elif isinstance(callback, LRScheduler):
            yield callback.event_name


def _is_recorded_by_code(net: Net, monitor: str) -> bool:
    """Check whether code of the user may record a score: of the net's class, of a callback, or what they call."""
    return any(_may_record(code, monitor) for function in _functions(net) for code in _codes_in(function.__code__))


def _may_record(code: CodeType, monitor: str) -> bool:
    """Check whether a function may record a score: by a text in it, or under a key that is worked out."""
    constants = set(_constants(code.co_consts))
    if monitor in constants or any(_is_key_worked_out(called) for called in _recordings(code)):
        return True
    if not _mentions_history(code):
        return False
    called = list(dis.get_instructions(code))
    items = [key for key, store in pairwise(called) if store.opname == "STORE_SUBSCR"]
    has_items = any(not key.opname.startswith(_CONSTANT) for key in items)
    return has_items or "record" in constants or not _WRITES_ROWS.isdisjoint(code.co_names)


def _may_be_hidden(net: Net) -> bool:
    """Check whether code of the user may record scores of any name: it has a history at hand, or imports what may."""
    codes = (code for function in _functions(net) for code in _codes_in(function.__code__))
    if any(_mentions_history(code) or _imports(code) for code in codes):
        return True
    return any(
        _mentions_history(code) for function in _methods_of_modules(net) for code in _codes_in(function.__code__)
    )


def _mentions_history(code: CodeType) -> bool:
    return "history" in (*_constants(code.co_consts), *code.co_names, *code.co_varnames, *code.co_freevars)


def _imports(code: CodeType) -> bool:
    return any(one.opname == "IMPORT_NAME" for one in dis.get_instructions(code))


def _constants(values: Iterable[Any]) -> Iterator[str]:
    """Yield the texts of a function, those of keys and of keyword arguments included."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from _constants(value)


def _recordings(code: CodeType) -> Iterator[list[dis.Instruction]]:
    """Yield what follows in a function wherever it looks up a method that records."""
    called = list(dis.get_instructions(code))
    for i, one in enumerate(called, start=1):
        if one.opname in _LOOKS_UP and one.argval in _RECORDS:
            yield called[i + (called[i].opname == "PUSH_NULL") :]


def _is_key_worked_out(following: list[dis.Instruction]) -> bool:
    """Check whether a method is passed on, or called with a first argument that is no constant."""
    key, *rest = following
    if key.opname.startswith(_CALLS):
        return bool(key.arg)  # which has the method among its arguments
    if not key.opname.startswith(_CONSTANT) or rest[0].opname in _LOOKS_UP:
        return True
    depth = 0  # of the stack above the constant
    for one in rest:
        depth += dis.stack_effect(one.opcode, one.arg, jump=False)
        if depth <= 0:
            return not one.opname.startswith(_CALLS)
    return True


def _functions(net: Net) -> Iterator[FunctionType]:
    """Yield the functions of the user by which the net and its callbacks may record: their own, and what these call."""
    roots: dict[str, object] = {}
    for i, owner in enumerate((net, *(callback for _, callback in net.callbacks_))):
        kinds = [kind for kind in type(owner).__mro__ if _is_of_user(kind)]
        roots |= {f"{i}.{j}": list(map(_unwrapped, vars(kind).values())) for j, kind in enumerate(kinds)}
        if kinds and owner is not net:
            roots[f"{i}"] = vars(owner)
        elif owner is not net:  # what skorch, or this package, is to call, such as a `scoring`
            roots[f"{i}"] = {name: one for name, one in owner.get_params(deep=False).items() if callable(one)}
    return (one for _, one in walk(roots, [net]) if isinstance(one, FunctionType))


def _methods_of_modules(net: Net) -> Iterator[FunctionType]:
    """Yield the methods of the user's modules and criteria, which may hold the net."""
    parts = (getattr(net, f"{name}_", None) for name in (*net._modules, *net._criteria))
    modules = (one for part in parts if isinstance(part, nn.Module) for one in part.modules())
    kinds = {kind for module in modules for kind in type(module).__mro__ if _is_of_user(kind)}
    members = (_unwrapped(member) for kind in kinds for member in vars(kind).values())
    return (one for one in members if isinstance(one, FunctionType))


def _is_of_user(kind: type) -> bool:
    is_made_of_functions = kind.__module__ == "mlr3torch_py.training.from_functions"
    return is_made_of_functions or kind.__module__.partition(".")[0] not in _LIBRARIES


def _unwrapped(member: Any) -> Any:
    return getattr(member, "__func__", member)


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of those that are made in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)
