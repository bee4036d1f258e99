"""Select, the base of all selectors, and the nodes of their algebra: small immutable values."""

from __future__ import annotations

import fnmatch
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Set
from functools import reduce
from typing import Any, Final, Literal

import regex
import torch
from torch import nn

from mlr3torch_py.names import ancestors, listed, nearest
from mlr3torch_py.network.unwrap import bare, named_modules, named_parameters, network_of
from mlr3torch_py.select.value import Value, value

__all__ = [
    "OPERATORS",
    "All",
    "Blocks",
    "Combined",
    "Glob",
    "Grep",
    "Invert",
    "Name",
    "Nothing",
    "Prefix",
    "Select",
    "Type",
    "compiled",
]


class Select(Value, ABC):
    """A selector of parameters: what every ``select_…`` function returns.

    Selectors are immutable, hashable, comparable and picklable, and print as the code that makes them. They combine
    by ``~a``, ``a | b``, ``a & b``, ``a - b`` and ``a ^ b``.

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

    def __call__(self, names: Iterable[str]) -> list[str]:
        """Return the selected ones of `names`, in their order.

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
            If a name that must be there is missing, or the selector needs a module.
        TypeError
            If `names` is a single string.
        """
        if isinstance(names, str):
            raise TypeError(f"`names` is the single string {names!r}; names come as a list: [{names!r}]")
        names = list(names)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"`names` is {names!r}; it takes names: for a network use {self!r}.expand(module)")
        selected = self.matches(dict.fromkeys(names).keys())
        return [name for name in names if name in selected]

    def expand(self, module: Any) -> list[str]:
        """Return the names of the selected parameters of a network, in their order.

        Parameters
        ----------
        module : torch.nn.Module or skorch.NeuralNet
            A network, or a net that has been initialized.

        Returns
        -------
        list of str

        Raises
        ------
        TypeError
            If `module` is neither.
        ValueError
            If a name that must be there is missing.
        """
        network = network_of(module)
        names = named_parameters(network).keys()
        selected = self.matches(names, bare(network))
        return [name for name in names if name in selected]

    @abstractmethod
    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        """Return the selected ones of `names` as a set.

        Parameters
        ----------
        names : set of str
            The parameter names of a network; a ``dict.keys()`` view where the order counts.
        module : torch.nn.Module, optional
            The network that the names are of, for the selectors that look at more than names.

        Returns
        -------
        set of str
        """

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        """List the patterns, paths and types in the selector that match nothing, and so may be misspelt.

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

    def __invert__(self) -> Select:
        return Invert(self)

    def __or__(self, other: Select) -> Select:
        return _combine(self, "|", other)

    def __and__(self, other: Select) -> Select:
        return _combine(self, "&", other)

    def __sub__(self, other: Select) -> Select:
        return _combine(self, "-", other)

    def __xor__(self, other: Select) -> Select:
        return _combine(self, "^", other)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Select is neither true nor false; combine selectors by `&`, `|` and `~`, not by and, or, not"
        )


@value
class All(Select):
    """Every parameter."""

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return names

    def __repr__(self) -> str:
        return "select_all()"


@value
class Nothing(Select):
    """No parameter."""

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return []

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return frozenset()

    def __repr__(self) -> str:
        return "select_none()"


@value
class Name(Select):
    """Names given one by one."""

    param_names: tuple[str, ...]
    assert_present: bool

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        missing = [name for name in self.param_names if name not in names]
        if missing and self.assert_present:
            raise ValueError(
                f"`param_names` names {listed(map(repr, missing))}, which the network lacks; {nearest(missing, names)}"
            )
        return names & set(self.param_names)

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return []

    def __repr__(self) -> str:
        return f"select_name({list(self.param_names)!r}{'' if self.assert_present else ', assert_present=False'})"


@value
class Grep(Select):
    """Names in which a regular expression, or a fixed string, is found."""

    pattern: str
    ignore_case: bool
    perl: bool
    fixed: bool

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        if self.fixed:
            return {name for name in names if self.pattern in name}
        found = compiled(self.pattern, self.ignore_case).search
        return {name for name in names if found(name)}

    def __repr__(self) -> str:
        flags = "".join(f", {flag}=True" for flag in ("ignore_case", "perl", "fixed") if getattr(self, flag))
        return f"select_grep({self.pattern!r}{flags})"


@value
class Glob(Select):
    """Names that a shell pattern matches as a whole."""

    pattern: str

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return {name for name in names if fnmatch.fnmatchcase(name, self.pattern)}

    def __repr__(self) -> str:
        return f"select_glob({self.pattern!r})"


@value
class Prefix(Select):
    """Everything at or below paths of the module tree."""

    prefixes: tuple[str, ...]

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        below = tuple(f"{prefix}." for prefix in self.prefixes)
        return {name for name in names if name in self.prefixes or name.startswith(below)}

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return [one for prefix in self.prefixes if not (one := Prefix((prefix,))).matches(names)]

    def __repr__(self) -> str:
        return f"select_prefix({', '.join(map(repr, self.prefixes))})"


@value
class Type(Select):
    """Everything inside modules of given types."""

    module_types: tuple[type[nn.Module], ...]

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        network = _needed(module, self)
        wanted = {path for path, part in named_modules(network) if isinstance(part, self.module_types)}
        return {name for name in names if not wanted.isdisjoint(ancestors(name))}

    def __repr__(self) -> str:
        return f"select_type({', '.join(map(_type_name, self.module_types))})"


@value
class Blocks(Select):
    """The first or the last direct blocks of a network."""

    n: int
    end: Literal["first", "last"]

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        children = _needed(module, self)._modules
        blocks = list(dict.fromkeys(block for name in names if (block := name.partition(".")[0]) in children))
        if not blocks:
            raise ValueError(f"{self!r}: the network has no direct blocks that hold parameters; select them by name")
        wanted = blocks[: self.n] if self.end == "first" else blocks[-self.n :]
        return {name for name in names if name.partition(".")[0] in wanted}

    def __repr__(self) -> str:
        return f"select_{self.end}({self.n})"


@value
class Invert(Select):
    """What another selector leaves out."""

    select: Select

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        return names - self.select.matches(names, module)

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return self.select.unmatched(names, module)

    def __repr__(self) -> str:
        return f"select_invert({self.select!r})"


OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "|": operator.or_,
    "&": operator.and_,
    "-": operator.sub,
    "^": operator.xor,
}


@value
class Combined(Select):
    """Selectors joined by one set operator, from left to right."""

    sign: str
    parts: tuple[Select, ...]

    def matches(self, names: Set[str], module: nn.Module | None = None) -> Set[str]:
        matched: Set[str] = reduce(OPERATORS[self.sign], (part.matches(names, module) for part in self.parts))
        return matched

    def unmatched(self, names: Set[str], module: nn.Module | None = None) -> list[Select]:
        return [select for part in self.parts for select in part.unmatched(names, module)]

    def __repr__(self) -> str:
        operands = (f"({part!r})" if isinstance(part, Combined) else repr(part) for part in self.parts)
        return f" {self.sign} ".join(operands)


def _combine(left: Select, sign: str, right: object) -> Select:
    if not isinstance(right, Select):
        raise TypeError(f"`{left!r} {sign} {right!r}` does not combine two selectors; make one of the right side first")
    parts = left.parts if isinstance(left, Combined) and left.sign == sign else (left,)
    return Combined(sign, (*parts, right))


def compiled(pattern: str, ignore_case: bool) -> regex.Pattern[str]:
    r"""Compile a pattern of R, whose ``\<`` and ``\>`` are the begin and the end of a word."""
    pattern = regex.sub(r"\\(.)", lambda escape: {"<": r"\m", ">": r"\M"}.get(escape[1], escape[0]), pattern)
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


def _needed(module: nn.Module | None, select: Select) -> nn.Module:
    if module is None:
        raise ValueError(f"{select!r} needs a network, not only names; use {select!r}.expand(module)")
    return module


def _type_name(module_type: type) -> str:
    if getattr(torch.nn, module_type.__name__, None) is module_type:
        return f"torch.nn.{module_type.__name__}"
    scope = module_type.__module__
    return module_type.__qualname__ if scope in ("__main__", "builtins") else f"{scope}.{module_type.__qualname__}"
