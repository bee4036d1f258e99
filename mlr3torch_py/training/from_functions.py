"""Callbacks from functions: callback_set makes a class of them, torch_callback a callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mlr3torch_py.names import nearest
from mlr3torch_py.training.callback_set import HOOK_OF_STAGE, CallbackSet

__all__ = ["callback_set"]

_IN_TRAINING = ("batch_begin", "batch_end", "after_backward")


def callback_set(
    classname: str,
    *,
    initialize: Callable[..., None] | None = None,
    state_dict: Callable[[Any], Any] | None = None,
    load_state_dict: Callable[[Any, Any], None] | None = None,
    weight: float = 0,
    public: Mapping[str, Any] | None = None,
    **stages: Callable[[Any], None],
) -> type[CallbackSet]:
    """Make a class of callbacks from functions.

    Parameters
    ----------
    classname : str
        The name of the class.
    initialize : callable, optional
        The constructor. It takes the callback and the parameters, and stores them under their names.
    state_dict, load_state_dict : callable, optional
        Return, and take up, what the callback wants to keep. One needs the other.
    weight : float
        Where the callback runs among the others, see `CallbackSet`.
    public : mapping, optional
        Further attributes and methods.
    **stages : callable
        What is done at ``on_begin``, ``on_epoch_begin``, ``on_batch_begin``, ``on_after_backward``, ``on_batch_end``,
        ``on_before_valid``, ``on_batch_valid_begin``, ``on_batch_valid_end``, ``on_valid_end``, ``on_epoch_end``,
        ``on_end`` and ``on_exit``. A function takes the callback itself, whose ``ctx`` shows the training.

    Returns
    -------
    type
        A subclass of `CallbackSet`. Its instances are picklable when the functions are.

    Raises
    ------
    TypeError, ValueError
        If a stage does not exist, a function takes other arguments, or one of the two for states is missing.

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
    known = {f"on_{stage}": hook for stage, hook in HOOK_OF_STAGE.items()}
    unknown = [name for name in stages if name not in known]
    if unknown:
        raise TypeError(f"callback_set() has no stage {', '.join(map(repr, unknown))}; {nearest(unknown, known)}")
    if (state_dict is None) != (load_state_dict is None):
        given = "state_dict" if load_state_dict is None else "load_state_dict"
        lacking = "load_state_dict" if load_state_dict is None else "state_dict"
        raise ValueError(f"`{given}` is given without `{lacking}`; what is kept must be taken up again, so give both")
    for name, function in stages.items():
        _check_arguments(name, function, 1)
    namespace: dict[str, Any] = {"default_weight": weight} | dict(public or {})
    if initialize is not None:
        namespace["__init__"] = initialize
    if state_dict is not None and load_state_dict is not None:
        _check_arguments("state_dict", state_dict, 1)
        _check_arguments("load_state_dict", load_state_dict, 2)
        namespace |= {"state_dict": state_dict, "load_state_dict": load_state_dict}
    namespace |= {known[name]: _hook(name.removeprefix("on_"), function) for name, function in stages.items()}
    recipe: dict[str, Any] = {
        "initialize": initialize,
        "state_dict": state_dict,
        "load_state_dict": load_state_dict,
        "weight": weight,
        "public": public,
        **stages,
    }
    namespace |= {"__reduce__": lambda self: (_revive, (classname, recipe, self.__getstate__()))}
    CallbackSet().weight = weight
    return type(classname, (CallbackSet,), namespace)


def _hook(stage: str, function: Callable[[Any], None]) -> Callable[..., None]:
    def hook(self: Any, net: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        if stage not in _IN_TRAINING or kwargs.get("training"):
            function(self)

    return hook


def _revive(classname: str, recipe: dict[str, Any], state: dict[str, Any]) -> CallbackSet:
    cls = callback_set(classname, **recipe)
    revived: CallbackSet = cls.__new__(cls)
    revived.__dict__.update(state)
    return revived


def _check_arguments(name: str, function: Any, n: int) -> None:
    takes = "the callback" if n == 1 else "the callback and a state"
    if not callable(function):
        raise TypeError(f"`{name}` is {function!r}; give a function that takes {takes}")
    try:
        inspect.signature(function).bind(*[None] * n)
    except TypeError as error:
        raise TypeError(f"`{name}` must be a function that takes {takes}: {error}") from error
