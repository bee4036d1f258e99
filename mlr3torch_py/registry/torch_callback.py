"""TorchCallback: a callback with its name and description; torch_callback makes one from functions."""

from __future__ import annotations

import inspect
import pydoc
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn

from sklearn.base import clone

from mlr3torch_py.arguments import check_mapping, check_names, check_text
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.training.callback_html import callback_html, code, given
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.training.from_functions import callback_set
from mlr3torch_py.values import plain, shown

__all__ = ["TorchCallback", "check_id", "parameters_of", "torch_callback"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    C = TypeVar("C", bound=CallbackSet, default=CallbackSet, covariant=True)
else:
    from typing import TypeVar

    C = TypeVar("C", covariant=True)


class TorchCallback(NamedTuple, Generic[C]):
    """A callback with its name, as skorch takes it in ``callbacks=[...]``.

    Parameters
    ----------
    id : str
        The name of the callback in a net.
    callback : CallbackSet
        Its parameters are ``callbacks__<id>__<parameter>`` of the net.

    See Also
    --------
    t_clbk, torch_callback

    Examples
    --------
    >>> from mlr3torch_py import t_clbk
    >>> t_clbk("unfreeze").label
    'Unfreeze'
    """

    id: str
    callback: C

    @property
    def label(self) -> str:
        """Human-readable label."""
        return type(self.callback).label or type(self.callback).__name__

    @property
    def packages(self) -> list[str]:
        """The packages that the callback needs."""
        return list(type(self.callback).packages)

    @property
    def man(self) -> str:
        """Where the callback is documented: what was given, or the full name of its class."""
        return type(self.callback).man or f"{type(self.callback).__module__}.{type(self.callback).__qualname__}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with their values; REQUIRED for one that must still be set."""
        values: dict[str, Any] = self.callback.get_params(deep=False)
        return values

    @property
    def weight(self) -> float:
        """Where the callback runs among the others, see `CallbackSet`."""
        return self.callback.weight

    def generate(self) -> C:
        """Return a new callback with the same parameters and no state.

        Returns
        -------
        CallbackSet
        """
        generated: C = clone(self.callback)
        return generated

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the pair; explain the mistake when skorch finds the name twice in a net."""
        # skorch unpacks the pairs before it says, without the remedy, that a name is there twice.
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_yield_callbacks":
            _check_unique(self.id, getattr(caller.f_locals.get("self"), "callbacks", None))
        return tuple.__iter__(self)

    def set_params(self, **params: Any) -> NoReturn:
        """Explain the mistake when the pair is passed where skorch expects a bare callback.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            f"`callbacks` has the pair t_clbk({self.id!r}, ...) in place of a bare callback; give the "
            f"pair alone, or its second part: t_clbk({self.id!r}, ...).callback"
        )

    def help(self) -> None:
        """Show the documentation of the callback, without its methods."""
        kind = type(self.callback)
        pydoc.pager(f"{kind.__name__}{inspect.signature(kind)}\n\n{inspect.getdoc(kind)}")

    def __radd__(self, callbacks: Any) -> Any:
        """Join a list, so that a net takes ``callbacks=t_clbk(...)`` for ``callbacks=[t_clbk(...)]``."""
        return [*callbacks, self] if isinstance(callbacks, list) else NotImplemented

    def __sklearn_clone__(self) -> TorchCallback:
        return TorchCallback(self.id, self.generate())

    def __repr__(self) -> str:
        from mlr3torch_py.registry.dictionary import mlr3torch_callbacks  # which imports this module

        key = mlr3torch_callbacks.key_of(type(self.callback))
        if key not in mlr3torch_callbacks:
            return f"TorchCallback({self.id!r}, {self.callback!r})"
        own: dict[str, Any] = {} if self.id == key else {"id": self.id}
        own |= {} if self.callback.weight_ is None else {"weight": self.callback.weight_}
        own |= {name: value for name, value in given(self.callback).items() if value is not REQUIRED}
        return f"t_clbk({', '.join([repr(key), *(f'{name}={code(value)}' for name, value in own.items())])})"

    def _repr_html_(self) -> str:
        return callback_html(repr(self), self.callback)

    def __str__(self) -> str:
        lines = [f"<TorchCallback:{self.id}>", f"* Label: {self.label}", f"* Generator: {type(self.callback).__name__}"]
        lines += [f"* {name}: {value!r}" for name, value in self.parameters.items()]
        return "\n".join(lines)


def _check_unique(id: str, callbacks: Any) -> None:
    pairs = [one for one in callbacks or () if isinstance(one, tuple | list) and len(one) == 2]
    if sum(pair[0] == id for pair in pairs) > 1:
        raise ValueError(
            f"`callbacks` has two callbacks with the name {id!r}; give each its own, by t_clbk('<key>_1', ...) and "
            "t_clbk('<key>_2', ...), or by t_clbk('<key>', id='<name>', ...)"
        )


def parameters_of(generator: type[CallbackSet]) -> dict[str, Any]:
    """Map the parameters of a class to their defaults or REQUIRED."""
    parameters = inspect.signature(generator).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: REQUIRED if p.default is p.empty else p.default for p in named}


@short_traceback
def torch_callback(
    id: str,
    *,
    label: str | None = None,
    classname: str | None = None,
    packages: str | Sequence[str] = (),
    man: str | None = None,
    **description: Any,
) -> TorchCallback:
    """Make a callback from functions, ready for ``callbacks=[...]``.

    Parameters
    ----------
    id : str
        Its name in the net.
    label : str, optional
        Human-readable label.
    classname : str, optional
        The name of its class; derived from `id` by default.
    packages : str or list of str
        The packages that it needs beside those of the class that it derives from.
    man : str, optional
        Where it is documented; the full name of its class by default.
    **description
        The arguments of `callback_set`: functions for the stages, ``initialize``, ``state_dict``, ``load_state_dict``,
        ``weight``, ``public`` and ``inherit``. Set parameters of ``initialize`` without a default through the net;
        it is called once they are set.

    Returns
    -------
    TorchCallback

    Raises
    ------
    TypeError, ValueError
        As `callback_set` does, or if `id` is not a valid name.

    See Also
    --------
    callback_set : For the class alone.

    Examples
    --------
    >>> def say(self):
    ...     print(self.ctx.epoch)
    >>> print(torch_callback("say", label="Says the epoch", on_epoch_end=say))
    <TorchCallback:say>
    * Label: Says the epoch
    * Generator: CallbackSetSay
    """
    key = check_id("id", id)
    inherited = getattr(description.get("inherit", CallbackSet), "packages", ())
    public = check_mapping("public", description.pop("public", None), "names to attributes and methods")
    for argument, text in (("label", label), ("man", man)):
        if text is not None:
            public[argument] = check_text(argument, text)
    public["packages"] = (*inherited, *check_names("packages", packages))
    name = "CallbackSet" + "".join(word.capitalize() for word in key.split("_")) if classname is None else classname
    generator = callback_set(name, public=public, **description)
    return TorchCallback(key, generator.with_params(parameters_of(generator)))


def check_id(argument: str, value: object) -> str:
    """Return a name; raise if it is not valid within ``callbacks__<name>__<parameter>``."""
    if not isinstance(value, str) or not value.isidentifier() or "__" in value:
        raise TypeError(f"`{argument}` is {shown(value)}; give a name that fits into callbacks__<name>__<parameter>")
    return str(plain(value))
