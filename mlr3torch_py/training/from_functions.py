"""callback_set: make a class of callbacks from functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, MutableSet
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from mlr3torch_py.arguments import check_callable, check_mapping, check_number, check_text
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import nearest
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.recipe import recipe_class
from mlr3torch_py.training.reserved import check_public
from mlr3torch_py.training.stages import HOOK_OF_STAGE
from mlr3torch_py.values import shown

__all__ = ["callback_set"]

_TRAINING_ONLY = ("batch_begin", "batch_end", "after_backward")


@short_traceback
def callback_set(
    classname: str,
    *,
    initialize: Callable[..., None] | None = None,
    state_dict: Callable[[Any], Any] | None = None,
    load_state_dict: Callable[[Any, Any], None] | None = None,
    weight: float | None = None,
    public: Mapping[str, Any] | None = None,
    inherit: type[CallbackSet] = CallbackSet,
    **stages: Callable[[Any], None],
) -> type[CallbackSet]:
    """Make a class of callbacks from functions.

    Parameters
    ----------
    classname : str
        The name of the class.
    initialize : callable, optional
        The constructor. It takes the callback and the parameters, and stores each under its name. It is called again
        for a later ``fit`` from scratch, so that nothing is left of an earlier one.
    state_dict, load_state_dict : callable, optional
        Return the state of the callback, and restore it. Give both or neither.
    weight : float, optional
        Where the callback runs among the others, see `CallbackSet`; as `inherit` by default.
    public : mapping, optional
        Further attributes and methods. Each callback has its own copy of a container, an array or a tensor, which a
        later ``fit`` from scratch makes again.
    inherit : type
        The class to derive from, `CallbackSet` or a subclass. The functions replace its methods.
    **stages : callable
        The functions to call at ``on_begin``, ``on_epoch_begin``, ``on_batch_begin``, ``on_after_backward``,
        ``on_batch_end``, ``on_before_valid``, ``on_batch_valid_begin``, ``on_batch_valid_end``, ``on_valid_end``,
        ``on_epoch_end``, ``on_end`` and ``on_exit``. Each takes the callback, whose ``ctx`` is the state of the
        training.

    Returns
    -------
    type
        A subclass of `inherit`. Its instances are picklable if the functions and that class are.

    Raises
    ------
    TypeError, ValueError
        If a stage does not exist, a function takes other arguments, only one of the two for the state is given, or a
        parameter or an entry of `public` has a name that every callback has already, such as ``weight`` or ``ctx``.

    See Also
    --------
    torch_callback

    Examples
    --------
    >>> def say(self):
    ...     print(self.ctx.epoch)
    >>> CallbackSetSay = callback_set("CallbackSetSay", on_epoch_end=say)
    >>> print(CallbackSetSay())
    <CallbackSetSay>
    * Stages: epoch_end
    """
    if "\0" in check_text("classname", classname, "the name of the class"):
        raise ValueError(f"`classname` is {shown(classname)}; give the name of the class")
    states = {"state_dict": state_dict, "load_state_dict": load_state_dict}
    _check_functions(stages, states)
    if not (isinstance(inherit, type) and issubclass(inherit, CallbackSet)):
        raise TypeError(f"`inherit` is {shown(inherit)}; give CallbackSet or a subclass of it")
    if initialize is not None and not _takes_callback(initialize):
        raise TypeError(f"`initialize` is {shown(initialize)}; give a function that takes the callback and parameters")
    weight = inherit.default_weight if weight is None else weight
    weight = check_number("weight", weight, "a number, or math.inf to run last", finite=False)
    public = check_mapping("public", public, "names to attributes and methods")
    check_public(public)
    constructor = {} if initialize is None else {"__init__": initialize}
    methods = {name: function for name, function in states.items() if function is not None}
    hooks = {HOOK_OF_STAGE[name.removeprefix("on_")]: _hook(name, function) for name, function in stages.items()}
    given: dict[str, Any] = {"weight": weight, "public": public, "inherit": inherit, **states, **stages}
    given["initialize"] = initialize
    copied = {name: _OwnValue(value) for name, value in public.items() if _can_be_modified(value)}
    own = {"default_weight": weight, "own_values": (*inherit.own_values, *copied)}
    namespace = {**own, **public, **copied, **constructor, **methods, **hooks}
    return recipe_class(classname, inherit, namespace, partial(callback_set, classname, **given))


class _OwnValue:
    """An attribute of a class of which each instance gets a copy when it asks for it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.value if instance is None else vars(instance).setdefault(self.name, deepcopy(self.value))


def _can_be_modified(value: object) -> bool:
    """Check whether a value is a container, an array or a tensor, whose content may change."""
    return isinstance(value, (MutableSequence, MutableMapping, MutableSet, np.ndarray, torch.Tensor))


def _takes_callback(initialize: Any) -> bool:
    if isinstance(initialize, type) or not callable(initialize):
        return False
    try:
        first = next(iter(inspect.signature(initialize).parameters.values()), None)
    except ValueError:  # some functions written in C have no signature
        return False
    return first is not None and first.kind in (first.POSITIONAL_OR_KEYWORD, first.VAR_POSITIONAL)


def _hook(name: str, function: Callable[[Any], None]) -> Callable[..., None]:
    is_training_only = name.removeprefix("on_") in _TRAINING_ONLY

    def hook(self: Any, net: Net, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        if not is_training_only or kwargs.get("training"):
            function(self)

    return hook


def _check_functions(stages: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    known = [f"on_{stage}" for stage in HOOK_OF_STAGE]
    unknown = [name for name in stages if name not in known]
    if unknown:
        raise TypeError(f"callback_set() has no stage {', '.join(map(repr, unknown))}; {nearest(unknown, known)}")
    given = [name for name, function in states.items() if function is not None]
    if len(given) == 1:
        (missing,) = states.keys() - given
        raise ValueError(f"`{given[0]}` is given without `{missing}`; give both")
    for name, function in stages.items():
        check_callable(name, function, "the callback")
    if given:
        check_callable("state_dict", states["state_dict"], "the callback")
        check_callable("load_state_dict", states["load_state_dict"], "the callback", "a state")
