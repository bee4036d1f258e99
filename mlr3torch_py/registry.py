"""The dictionary of callbacks, and making them by their keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from sklearn.base import clone

from mlr3torch_py.callbacks.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.callbacks.custom import callback_set
from mlr3torch_py.callbacks.early_stopping import CallbackSetEarlyStopping
from mlr3torch_py.callbacks.freezer import Freezer
from mlr3torch_py.callbacks.history import CallbackSetHistory
from mlr3torch_py.callbacks.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.names import nearest

__all__ = [
    "CallbackDictionary",
    "TorchCallback",
    "as_torch_callback",
    "as_torch_callbacks",
    "mlr3torch_callbacks",
    "t_clbk",
    "t_clbks",
    "torch_callback",
]


def _check_id(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.isidentifier() or "__" in value:
        raise TypeError(f"`{argument}` is {value!r}; it must be a name that fits into callbacks__<name>__<parameter>")


class TorchCallback(NamedTuple):
    """A callback under its name, as skorch takes it in ``callbacks=[...]``.

    Parameters
    ----------
    id : str
        The name of the callback in a net.
    callback : CallbackSet
        Its parameters are reached as ``callbacks__<id>__<parameter>``.

    See Also
    --------
    t_clbk, torch_callback

    Examples
    --------
    >>> t_clbk("unfreeze").label
    'Unfreeze'
    """

    id: str
    callback: CallbackSet

    @property
    def label(self) -> str:
        """A few words for people."""
        return type(self.callback).label or type(self.callback).__name__

    @property
    def packages(self) -> list[str]:
        """The packages that the callback needs."""
        return list(type(self.callback).packages)

    @property
    def man(self) -> str:
        """Where its documentation is: the full name of its class."""
        return f"{type(self.callback).__module__}.{type(self.callback).__qualname__}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with their values; REQUIRED stands for one that must still be set."""
        values: dict[str, Any] = self.callback.get_params(deep=False)
        return values

    @property
    def weight(self) -> float:
        """Where the callback runs among the others, see `CallbackSet`."""
        return self.callback.weight

    def generate(self) -> CallbackSet:
        """Return a new callback with the same parameters and no state.

        Returns
        -------
        CallbackSet
        """
        generated: CallbackSet = clone(self.callback)
        return generated

    def help(self) -> None:
        """Show the documentation of the callback."""
        help(type(self.callback))

    def __sklearn_clone__(self) -> TorchCallback:
        return TorchCallback(self.id, self.generate())

    def __repr__(self) -> str:
        lines = [f"<TorchCallback:{self.id}>", f"* Label: {self.label}", f"* Generator: {type(self.callback).__name__}"]
        lines += [f"* {name}: {value!r}" for name, value in self.parameters.items()]
        return "\n".join(lines)


class _Entry(NamedTuple):
    key: str
    generator: type[CallbackSet]

    def parameters(self) -> dict[str, Any]:
        """Map the parameters to REQUIRED, or to their defaults."""
        parameters = inspect.signature(self.generator).parameters.values()
        return {p.name: REQUIRED if p.default is p.empty else p.default for p in parameters}


class CallbackDictionary:
    """A dictionary of callbacks by their keys.

    See Also
    --------
    mlr3torch_callbacks, t_clbk

    Examples
    --------
    >>> "unfreeze" in mlr3torch_callbacks
    True
    >>> mlr3torch_callbacks.get("unfreeze").id
    'unfreeze'
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def add(self, key: str, generator: type[CallbackSet]) -> None:
        """Add a callback, or put another one in its place.

        Parameters
        ----------
        key : str
            Its key, and its name in a net.
        generator : type
            A subclass of `CallbackSet`. Parameters of its constructor without a default are required; its `label` is
            shown to people.

        Raises
        ------
        TypeError
            If `key` is not a string or `generator` not such a class.
        """
        _check_id("key", key)
        if not (isinstance(generator, type) and issubclass(generator, CallbackSet)):
            raise TypeError(f"`generator` is {generator!r}; it must be a subclass of CallbackSet")
        self._entries[key] = _Entry(key, generator)

    def get(self, key: str, *, weight: float | None = None, **params: Any) -> TorchCallback:
        """Make the callback of a key.

        Parameters
        ----------
        key : str
        weight : float, optional
            Where it runs among the others, see `CallbackSet`.
        **params
            Parameters of the callback. A required one may be left to be set through the net.

        Returns
        -------
        TorchCallback

        Raises
        ------
        KeyError
            If there is no such key; the message names the nearest.
        TypeError, ValueError
            If a parameter is unknown or has a wrong type or value.
        """
        if key not in self.keys():
            raise KeyError(f"no callback has the key {key!r}; {nearest([str(key)], self._entries)}")
        entry = self._entries[key]
        known = entry.parameters()
        unknown = [name for name in params if name not in known]
        if unknown:
            hint = nearest(unknown, [*known, "weight"])
            raise TypeError(f"callback {key!r} has no parameter {', '.join(map(repr, unknown))}; {hint}")
        callback = entry.generator(**(known | params))
        callback.check_params()
        if weight is not None:
            callback.weight = weight
        return TorchCallback(key, callback)

    def keys(self) -> list[str]:
        """Return the keys in the order of the alphabet.

        Returns
        -------
        list of str
        """
        return sorted(self._entries)

    def key_of(self, generator: type[CallbackSet]) -> str:
        """Return the key of a class; its name if it has none.

        Parameters
        ----------
        generator : type

        Returns
        -------
        str
        """
        return next((key for key, entry in self._entries.items() if entry.generator is generator), generator.__name__)

    def to_frame(self) -> pd.DataFrame:
        """Return a table of the callbacks.

        Returns
        -------
        pandas.DataFrame
            One row per key, with its `label`, its `weight`, its `params`, and which of them are `required`.
        """
        rows = []
        for key in self.keys():
            params = self._entries[key].parameters()
            generator = self._entries[key].generator
            required = [name for name, default in params.items() if default is REQUIRED]
            rows.append((key, generator.label or generator.__name__, generator.default_weight, list(params), required))
        return pd.DataFrame(rows, columns=["key", "label", "weight", "params", "required"])

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {', '.join(self.keys())}>"


mlr3torch_callbacks = CallbackDictionary()
mlr3torch_callbacks.add("early_stopping", CallbackSetEarlyStopping)
mlr3torch_callbacks.add("freezer", Freezer)
mlr3torch_callbacks.add("history", CallbackSetHistory)
mlr3torch_callbacks.add("unfreeze", CallbackSetUnfreeze)


def t_clbk(key: str, *, weight: float | None = None, **params: Any) -> TorchCallback:
    """Make a callback by its key, ready for ``callbacks=[...]``.

    Parameters
    ----------
    key : str
        A key of `mlr3torch_callbacks`. The callback has this name in the net, so that its parameters are reached as
        ``callbacks__<key>__<parameter>``, where R has ``cb.<key>.<parameter>``.
    weight : float, optional
        Where it runs among the others, see `CallbackSet`.
    **params
        Parameters of the callback. A required one may be left to be set through the net; if it never is, ``fit``
        raises when it begins.

    Returns
    -------
    TorchCallback
        A pair of the name and the callback. Where skorch takes a callback without its name, as in
        ``set_params(callbacks__unfreeze=...)`` and in a grid over callbacks, give its `callback`.

    Raises
    ------
    KeyError
        If there is no such key; the message names the nearest.
    TypeError, ValueError
        If a parameter is unknown or has a wrong type or value.

    See Also
    --------
    t_clbks, mlr3torch_callbacks

    Examples
    --------
    >>> from skorch import NeuralNetClassifier
    >>> from mlr3torch_py import MLP, select_last
    >>> net = NeuralNetClassifier(
    ...     MLP, callbacks=[t_clbk("unfreeze")], callbacks__unfreeze__starting_weights=select_last(1)
    ... )
    >>> t_clbk("unfreze")
    Traceback (most recent call last):
        ...
    KeyError: "no callback has the key 'unfreze'; did you mean 'unfreeze', 'freezer'?"
    """
    return mlr3torch_callbacks.get(key, weight=weight, **params)


def t_clbks(keys: Iterable[str]) -> list[TorchCallback]:
    """Make several callbacks by their keys.

    Parameters
    ----------
    keys : iterable of str

    Returns
    -------
    list of TorchCallback

    Raises
    ------
    KeyError
        If one of the keys does not exist.
    TypeError
        If `keys` is a single string.

    Examples
    --------
    >>> [callback.id for callback in t_clbks(["unfreeze", "history"])]
    ['unfreeze', 'history']
    """
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise TypeError(f"`keys` is {keys!r}; give a list of keys, or use t_clbk({keys!r})")
    return [t_clbk(key) for key in keys]


def torch_callback(
    id: str, *, label: str | None = None, classname: str | None = None, **description: Any
) -> TorchCallback:
    """Make a callback from functions, ready for ``callbacks=[...]``.

    Parameters
    ----------
    id : str
        Its name in the net.
    label : str, optional
        A few words for people.
    classname : str, optional
        The name of its class; made of `id` if missing.
    **description
        What `callback_set` takes: the functions of the stages, ``initialize``, ``state_dict``, ``load_state_dict``,
        ``weight`` and ``public``. Parameters of ``initialize`` without a default are to be set through the net.

    Returns
    -------
    TorchCallback

    Raises
    ------
    TypeError, ValueError
        As `callback_set` does, or if `id` is no name.

    See Also
    --------
    callback_set : For the class alone.

    Examples
    --------
    >>> def say(self):
    ...     print(self.ctx.epoch)
    >>> torch_callback("say", label="Says the epoch", on_epoch_end=say)
    <TorchCallback:say>
    * Label: Says the epoch
    * Generator: CallbackSetSay
    """
    _check_id("id", id)
    public = {**(description.pop("public", None) or {}), **({} if label is None else {"label": label})}
    name = classname or "CallbackSet" + "".join(word.capitalize() for word in id.split("_"))
    generator = callback_set(name, public=public, **description)
    return TorchCallback(id, generator(**_Entry(id, generator).parameters()))


def as_torch_callback(x: Any) -> TorchCallback:
    """Make a TorchCallback of what describes one.

    Parameters
    ----------
    x : TorchCallback, CallbackSet, subclass of CallbackSet, or str
        A callback, its class, or a key of `mlr3torch_callbacks`.

    Returns
    -------
    TorchCallback

    Raises
    ------
    KeyError, TypeError
        If it is nothing of that kind.

    See Also
    --------
    as_torch_callbacks

    Examples
    --------
    >>> as_torch_callback("history").id
    'history'
    """
    if isinstance(x, TorchCallback):
        return x
    if isinstance(x, str):
        return t_clbk(x)
    if isinstance(x, type) and issubclass(x, CallbackSet):
        key = mlr3torch_callbacks.key_of(x)
        return TorchCallback(key, x(**_Entry(key, x).parameters()))
    if isinstance(x, CallbackSet):
        return TorchCallback(mlr3torch_callbacks.key_of(type(x)), x)
    raise TypeError(f"`x` is {x!r}; it must be a TorchCallback, a CallbackSet, a class of these, or a key")


def as_torch_callbacks(x: Any) -> list[TorchCallback]:
    """Make a list of TorchCallbacks.

    Parameters
    ----------
    x : list, None, or what `as_torch_callback` takes

    Returns
    -------
    list of TorchCallback
        Empty for None.

    Raises
    ------
    KeyError, TypeError
        If an entry is nothing of that kind.

    See Also
    --------
    as_torch_callback

    Examples
    --------
    >>> [callback.id for callback in as_torch_callbacks(["history", t_clbk("unfreeze")])]
    ['history', 'unfreeze']
    >>> as_torch_callbacks(None)
    []
    """
    if x is None:
        return []
    return [as_torch_callback(entry) for entry in (x if type(x) in (list, tuple) else [x])]
