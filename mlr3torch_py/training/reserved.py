"""Names that every callback has already, and that no class of the user's may give to something else."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from mlr3torch_py.network.holdings import is_of_this_package
from mlr3torch_py.training.stages import StagedCallback, machinery_of

__all__ = ["check_members", "check_public"]

_OPEN = {"initialize", "default_weight"}  # of skorch, and what a class may set
_ARGUMENTS = ("weight", "state_dict", "load_state_dict")


def check_members(cls: type) -> None:
    """Check that the parameters of a class, and what it defines outside of this package, have names of their own.

    Raises
    ------
    TypeError
        If one has a name by which this package would find it.
    """
    if taken := _taken(["ctx", "weight"], inspect.signature(cls).parameters):
        raise TypeError(
            f"{cls.__name__} has the parameter {taken!r}, which every callback has already; give it another name"
        )
    if taken := None if is_of_this_package(cls) else _taken(["ctx"], vars(cls)):
        raise TypeError(f"{cls.__name__} defines {taken!r}, which every callback has already; give it another name")


def check_public(names: Iterable[str]) -> None:
    """Check that what is given as `public` has names of its own.

    Raises
    ------
    TypeError
        If one has a name by which this package would find it, or that of another argument.
    """
    names = list(names)
    if taken := next((name for name in names if name in _ARGUMENTS), None):
        raise TypeError(f"`public` has {taken!r}, which is an argument of its own; give `{taken}`")
    if taken := _taken(["ctx"], names):
        raise TypeError(f"`public` has {taken!r}, which every callback has already; give it another name")


def _taken(more: list[str], names: Iterable[str]) -> str | None:
    """Return the first of some names that is taken."""
    reserved = {name for name in machinery_of(StagedCallback) if not name.startswith("_")} - _OPEN
    return next((name for name in names if name in {"stages", *more, *reserved}), None)
