"""The dictionary of callbacks, and making them by their keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from sklearn.base import clone

from mlr3torch_py.callbacks.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.callbacks.freezer import Freezer
from mlr3torch_py.callbacks.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.names import nearest

__all__ = ["CallbackDictionary", "TorchCallback", "mlr3torch_callbacks", "t_clbk", "t_clbks"]


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
    t_clbk

    Examples
    --------
    >>> t_clbk("unfreeze").id
    'unfreeze'
    """

    id: str
    callback: CallbackSet

    def generate(self) -> CallbackSet:
        """Return a new callback with the same parameters and no state.

        Returns
        -------
        CallbackSet
        """
        generated: CallbackSet = clone(self.callback)
        return generated

    def __sklearn_clone__(self) -> TorchCallback:
        return TorchCallback(self.id, self.generate())

    def __repr__(self) -> str:
        return f"TorchCallback({self.id!r}, {self.callback!r})"


class _Entry(NamedTuple):
    key: str
    label: str
    generator: type[CallbackSet]


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

    def add(self, key: str, generator: type[CallbackSet], label: str | None = None) -> None:
        """Add a callback, or put another one in its place.

        Parameters
        ----------
        key : str
            Its key, and its name in a net.
        generator : type
            A subclass of `CallbackSet`. Parameters of its constructor without a default are required.
        label : str, optional
            A few words for people; the name of the class if missing.

        Raises
        ------
        TypeError
            If `key` is not a string or `generator` not such a class.
        """
        if not isinstance(key, str) or not key.isidentifier() or "__" in key:
            raise TypeError(f"`key` is {key!r}; it must be a name that fits into callbacks__<key>__<parameter>")
        if not (isinstance(generator, type) and issubclass(generator, CallbackSet)):
            raise TypeError(f"`generator` is {generator!r}; it must be a subclass of CallbackSet")
        self._entries[key] = _Entry(key, label or generator.__name__, generator)

    def get(self, key: str, **params: Any) -> TorchCallback:
        """Make the callback of a key.

        Parameters
        ----------
        key : str
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
        generator = self._entries[key].generator
        known = inspect.signature(generator).parameters
        unknown = [name for name in params if name not in known]
        if unknown:
            raise TypeError(
                f"callback {key!r} has no parameter {', '.join(map(repr, unknown))}; {nearest(unknown, known)}"
            )
        required = {name: REQUIRED for name, parameter in known.items() if parameter.default is parameter.empty}
        callback = generator(**(required | params))
        callback.check_params()
        return TorchCallback(key, callback)

    def keys(self) -> list[str]:
        """Return the keys in the order of the alphabet.

        Returns
        -------
        list of str
        """
        return sorted(self._entries)

    def to_frame(self) -> pd.DataFrame:
        """Return a table of the callbacks.

        Returns
        -------
        pandas.DataFrame
            One row per key, with its `label`, its `params` and which of them are `required`.
        """
        rows = []
        for key in self.keys():
            parameters = inspect.signature(self._entries[key].generator).parameters.values()
            required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
            params = [parameter.name for parameter in parameters]
            rows.append({"key": key, "label": self._entries[key].label, "params": params, "required": required})
        return pd.DataFrame(rows, columns=["key", "label", "params", "required"])

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {', '.join(self.keys())}>"


mlr3torch_callbacks = CallbackDictionary()
mlr3torch_callbacks.add("freezer", Freezer, label="Freezer")
mlr3torch_callbacks.add("unfreeze", CallbackSetUnfreeze, label="Unfreeze")


def t_clbk(key: str, **params: Any) -> TorchCallback:
    """Make a callback by its key, ready for ``callbacks=[...]``.

    Parameters
    ----------
    key : str
        A key of `mlr3torch_callbacks`. The callback has this name in the net, so that its parameters are reached as
        ``callbacks__<key>__<parameter>``, where R has ``cb.<key>.<parameter>``.
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
    return mlr3torch_callbacks.get(key, **params)


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
    >>> [callback.id for callback in t_clbks(["unfreeze"])]
    ['unfreeze']
    """
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise TypeError(f"`keys` is {keys!r}; give a list of keys, or use t_clbk({keys!r})")
    return [t_clbk(key) for key in keys]
