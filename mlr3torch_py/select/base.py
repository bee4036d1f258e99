"""The base of all selectors, and the decorator of their classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from html import escape
from inspect import signature
from typing import Any, ClassVar, Final, TypeVar, dataclass_transform

from torch import nn
from torch.nn.parameter import is_lazy

from mlr3torch_py.arguments import check_network
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.nesting import is_nested_beyond
from mlr3torch_py.network.unwrap import bare, named_parameters
from mlr3torch_py.protocols import NetOfUser
from mlr3torch_py.select.shown import Selection
from mlr3torch_py.select.value import fields_of, value
from mlr3torch_py.values import shown

__all__ = ["SELECTORS", "Select", "check_nesting", "plain_name", "selector"]

_DEEPEST: Final = 100


class Select(ABC):
    """A selector of parameters, as every ``select_…`` function returns it.

    Selectors are immutable, hashable, comparable and picklable, and print as the code that makes them. They combine
    by ``~a``, ``a | b``, ``a & b``, ``a - b`` and ``a ^ b``. How to write another one is shown in
    :doc:`Extend </guide/extend>`.

    Attributes
    ----------
    fn : str
        The name of the function or class that makes it.

    See Also
    --------
    select_name, select_grep, select_prefix, select_type, select_last

    Examples
    --------
    >>> from mlr3torch_py import select_glob, select_name
    >>> biases = select_glob("*.bias") - select_name("9.bias")
    >>> biases(["0.weight", "0.bias", "9.weight", "9.bias"])
    ['0.bias']
    >>> biases
    select_glob('*.bias') - select_name(['9.bias'])
    """

    __slots__ = ()

    fn: ClassVar[str] = ""

    @short_traceback
    def __call__(self, names: Iterable[str]) -> list[str]:
        """Return the selected names in the order of `names`.

        Parameters
        ----------
        names : iterable of str
            Parameter names.

        Returns
        -------
        list of str

        Raises
        ------
        ValueError
            If a required name is missing, or the selector needs a module.
        TypeError
            If `names` is not a list of names.
        """
        check_nesting("select", self)
        if isinstance(names, str):
            raise TypeError(f"`names` is the single string {shown(names)}; pass a list: [{shown(names)}]")
        is_list = isinstance(names, Iterable) and not isinstance(names, type)
        listed: list[Any] = list(names) if is_list else [names]
        if not all(isinstance(name, str) for name in listed):
            raise TypeError(f"`names` is {shown(names)}; pass a list of names, or use {shown(self)}.expand(module)")
        selected = self.matches(dict.fromkeys(listed).keys())
        return [name for name in listed if name in selected]

    @short_traceback
    def expand(self, module: nn.Module | NetOfUser) -> list[str]:
        """Return the names of the selected parameters of a network.

        Parameters
        ----------
        module : torch.nn.Module or skorch.NeuralNet
            A network, or an initialized net.

        Returns
        -------
        list of str
            In the order of the network.

        Raises
        ------
        TypeError
            If `module` is neither.
        ValueError
            If a required name is missing.
        """
        check_nesting("select", self)
        network = check_network("module", module)
        names = named_parameters(network).keys()
        selected = self.matches(names, bare(network))
        return [name for name in names if name in selected]

    @short_traceback
    def show(self, module: nn.Module | NetOfUser) -> Selection:
        """Show the tree of a network, with the selected parameters ticked.

        Parameters
        ----------
        module : torch.nn.Module or skorch.NeuralNet
            A network, or an initialized net.

        Returns
        -------
        Selection
            It prints as text, and shows itself in a notebook.

        Raises
        ------
        TypeError, ValueError
            As `expand` does.

        Examples
        --------
        >>> from mlr3torch_py import MLP, select_last
        >>> select_last(1).show(MLP(4, 3, neurons=(8, 8)))
        select_last(1): 2 of 6 parameters, 27 of 139 weights
        [ ] {0,3}  (4 parameters, 112 weights)
        [x] 6  (2 parameters, 27 weights)
        """
        selected = frozenset(self.expand(module))
        tensors = named_parameters(check_network("module", module))
        sizes = {name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in tensors.items()}
        return Selection(repr(self), sizes, selected)

    @abstractmethod
    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        """Return the selected names as a set.

        Parameters
        ----------
        names : set of str
            The parameter names of a network; they iterate in its order.
        module : torch.nn.Module, optional
            The network; None where only its names are known.

        Returns
        -------
        set of str
        """

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        """List the patterns, paths and types without a match.

        They may be misspelt.

        Parameters
        ----------
        names : set of str
        module : torch.nn.Module, optional
            As in `matches`.

        Returns
        -------
        list of Select
        """
        return [] if self.matches(names, module) else [self]

    def to_plain(self) -> dict[str, Any]:
        """Return the fields for `to_dict`.

        Returns
        -------
        dict
            Of strings, numbers, booleans, None, selectors, and tuples of these. Override it, and `from_plain`, in a
            class with other fields.
        """
        return fields_of(self)

    @classmethod
    def from_plain(cls, fields: Mapping[str, Any]) -> Select:
        """Make a selector from its fields in plain data.

        Parameters
        ----------
        fields : mapping of str to object

        Returns
        -------
        Select
        """
        return cls(**fields)

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    def __repr__(self) -> str:
        # The code that makes it: the first field by position, the others by name unless they have their default.
        parameters = signature(type(self)).parameters
        shown = [
            repr(cell) if i == 0 else f"{name}={cell!r}"
            for i, (name, cell) in enumerate(fields_of(self).items())
            if i == 0 or cell != parameters[name].default
        ]
        return f"{self.fn or type(self).__name__}({', '.join(shown)})"

    def __invert__(self) -> Select:
        made: Select = _class_of("select_invert")(self)
        return made

    def __or__(self, other: Select) -> Select:
        return _combine("|", self, other)

    def __and__(self, other: Select) -> Select:
        return _combine("&", self, other)

    def __sub__(self, other: Select) -> Select:
        return _combine("-", self, other)

    def __xor__(self, other: Select) -> Select:
        return _combine("^", self, other)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Select is neither true nor false; combine selectors by `&`, `|` and `~`, not by and, or, not"
        )


def _class_of(fn: str) -> Any:
    """Return the class of an operator, which registers itself as all selectors do."""
    return SELECTORS[plain_name(fn)]


def _combine(operator: str, left: Select, right: object) -> Select:
    if not isinstance(right, Select):
        raise TypeError(
            f"`{shown(left)} {operator} {shown(right)}` does not combine two selectors; make the right side a selector"
        )
    kind = _class_of(operator)
    combined: Select = kind((*(left.parts if isinstance(left, kind) else (left,)), right))
    return combined


def check_nesting(argument: str, select: Select) -> None:
    """Check that a selector is not nested too deeply to be worked out.

    Parameters
    ----------
    argument : str
        What the message calls it: a name, or a phrase with names in backticks.
    select : Select

    Raises
    ------
    ValueError
        If more than 100 selectors are nested in each other, or there are more than a million.
    """
    place = argument if "`" in argument else f"`{argument}`"
    if is_nested_beyond(_DEEPEST, select, _parts_of):
        raise ValueError(
            f"{place} nests more than {_DEEPEST} selectors in each other, or repeats them too often; join them by one "
            "operator, as in a | b | c"
        )


def _parts_of(select: Select) -> list[Select]:
    names: Iterable[str] = type(select).__slots__
    cells = [getattr(select, name, None) for name in names]
    parts = [part for cell in cells for part in (cell if isinstance(cell, (tuple, list)) else (cell,))]
    return [part for part in parts if isinstance(part, Select)]


_SelectClass = TypeVar("_SelectClass", bound=type[Select])

SELECTORS: Final[dict[str, type[Select]]] = {}
"""The classes of selectors by their names in plain data."""


def plain_name(fn: str) -> str:
    """Return the name of a selector in plain data.

    Examples
    --------
    >>> plain_name("select_first")
    'first'
    """
    return fn.removeprefix("select_")


@dataclass_transform(frozen_default=True)
def selector(cls: _SelectClass) -> _SelectClass:
    """Turn a subclass of `Select` into a class of selectors.

    It becomes a frozen dataclass that `to_dict` and `from_dict` know by its `fn`.

    Parameters
    ----------
    cls : type
        The subclass. Its annotations are its fields. If a function makes its instances, ``fn`` names the function, as
        in ``fn = "select_deeper"``; otherwise they are made by calling the class.

    Returns
    -------
    type

    Raises
    ------
    ValueError
        If ``fn`` is that of a selector of this package. Of other classes with one ``fn``, the last one replaces those
        before, as when a cell of a notebook runs again.

    Examples
    --------
    >>> from mlr3torch_py.select import Select, selector
    >>> @selector
    ... class Ending(Select):
    ...     text: str
    ...
    ...     def matches(self, names, module=None):
    ...         return {name for name in names if name.endswith(self.text)}
    >>> Ending("bias")(["0.weight", "0.bias"])
    ['0.bias']
    """
    made = value(cls)
    made.fn = cls.__dict__.get("fn", cls.__name__)
    taken = SELECTORS.get(plain_name(made.fn))
    if taken is not None and taken.__module__.startswith(f"{__package__}."):
        raise ValueError(f"`fn` of {made.__qualname__} is {made.fn!r}, which is taken; give the class another `fn`")
    SELECTORS[plain_name(made.fn)] = made
    return made
