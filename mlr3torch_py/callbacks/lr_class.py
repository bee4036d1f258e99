"""Make the callback class of a learning-rate scheduler."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from mlr3torch_py.callbacks.lr_arguments import is_of_torch, name_of
from mlr3torch_py.callbacks.lr_scheduler import CallbackSetLRScheduler
from mlr3torch_py.training.recipe import recipe_class

__all__ = ["lr_scheduler_class"]


def lr_scheduler_class(
    scheduler_class: Any,
    *,
    step_on_epoch: bool = True,
    base: type[CallbackSetLRScheduler] = CallbackSetLRScheduler,
    label: str = "",
    **more: Any,
) -> type[CallbackSetLRScheduler]:
    """Make the callback class of a scheduler class, or of a function that makes a scheduler for an optimizer.

    `more` are further parameters, and other defaults of those of the scheduler.
    """
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {
        p.name: p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty)
        for p in list(inspect.signature(scheduler_class).parameters.values())[1:]
        if p.kind in named and (p.name != "verbose" or not is_of_torch(scheduler_class))
    }
    for name, value in more.items():
        parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
    name = name_of(scheduler_class)
    namespace = {
        "__doc__": f"``{name}`` as a callback, see `CallbackSetLRScheduler`.",
        "__signature__": inspect.Signature(list(parameters.values())),
        "scheduler_class": scheduler_class if isinstance(scheduler_class, type) else staticmethod(scheduler_class),
        "step_on_epoch": step_on_epoch,
        "label": label,
    }
    given = {"step_on_epoch": step_on_epoch, "base": base, "label": label, **more}
    recipe = partial(lr_scheduler_class, scheduler_class, **given)
    return recipe_class(f"CallbackSetLRScheduler_{name}", base, namespace, recipe)
