"""Code order: in which order the code of a forward pass uses the modules and the parameters that a module holds."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from textwrap import dedent
from types import FunctionType
from typing import Final, NamedTuple

from torch import nn

from mlr3torch_py.network.code_loops import Loop, loops_in
from mlr3torch_py.network.unwrap import bare

__all__ = ["code_loops", "code_order"]

# What runs first in a node of the syntax tree, whatever comes first in the text.
_FIRST: Final = ("test", "generators", "value")

# Functions that ask something about a module, and compute nothing by it.
_ASK: Final = frozenset({"bool", "getattr", "hasattr", "id", "isinstance", "len", "type"})


def code_order(module: nn.Module) -> list[str]:
    """Tell in which order the code of a module's forward pass uses its children and its own parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Methods of its own that its ``forward`` calls are read as well.

    Returns
    -------
    list of str
        The names of those that the code uses, by their first call or use; empty where there is no source to read.

    Examples
    --------
    >>> code_order(nn.LSTM(2, 2)), code_order(nn.TransformerEncoderLayer(4, 1))[-2:]
    ([], ['linear2', 'dropout2'])
    """
    first: dict[str, tuple[bool, int]] = {}
    for i, use in enumerate(_code(type(module)).uses):  # type: ignore[arg-type]
        child = module._modules.get(use.name)
        if child is not None:
            place = _place(use, i, bare(child))
        else:  # an attribute of a parameter, such as its device, counts if nothing else does
            place = (bool(use.inner), i) if module._parameters.get(use.name) is not None else None
        if place is not None:
            first[use.name] = min(place, first.get(use.name, place))
    return sorted(first, key=lambda name: first[name][1])


def code_loops(module: nn.Module) -> dict[str, list[Loop]]:
    """List the loops in the code of a module's forward pass by the path of the list that they go over.

    Examples
    --------
    >>> code_loops(nn.Sequential())
    {}
    """
    return _code(type(module)).loops  # type: ignore[arg-type]


class _Use(NamedTuple):
    """A place in the code that reads an attribute of ``self``, and perhaps attributes of that."""

    name: str
    inner: tuple[str, ...]
    is_call: bool


def _place(use: _Use, i: int, module: nn.Module) -> tuple[bool, int] | None:
    """Rank a use of a module: its methods count if nothing else does, and neither its tensors nor other attributes."""
    for name in use.inner:
        child = module._modules.get(name)
        if child is None:
            is_method = use.is_call and name not in {**module._parameters, **module._buffers}
            return (True, i) if is_method else None
        module = bare(child)
    return False, i


class _Code(NamedTuple):
    uses: list[_Use]
    loops: dict[str, list[Loop]]


@lru_cache(maxsize=1000)
def _code(cls: type) -> _Code:
    reader = _Reader(cls)
    reader.read("forward", cls.__mro__)
    return _Code(reader.uses, reader.loops)


class _Reader(ast.NodeVisitor):
    """Reads a method, and those that it calls, in the order in which the code runs."""

    def __init__(self, cls: type) -> None:
        self._mro = cls.__mro__
        self.uses: list[_Use] = []
        self.loops: dict[str, list[Loop]] = {}
        self._read: set[FunctionType] = set()
        self._owner: type = cls
        self._self = ""  # how the method calls its object
        self._is_condition = False

    def read(self, name: str, owners: tuple[type, ...]) -> None:
        """Read a method of the first of some classes that has it."""
        owner = next((one for one in owners if name in vars(one)), None)
        function = vars(owner).get(name) if owner is not None else None
        if owner is None or owner is nn.Module or not isinstance(function, FunctionType) or function in self._read:
            return
        self._read.add(function)
        if (definition := _definition_of(function)) is not None and definition.args.args:
            before = self._owner, self._self
            self._owner, self._self = owner, definition.args.args[0].arg
            for statement in definition.body:
                self.visit(statement)
            self._owner, self._self = before

    def visit_Call(self, node: ast.Call) -> None:
        before = self._is_condition
        self._is_condition |= isinstance(node.func, ast.Name) and node.func.id in _ASK
        for one in (*node.args, *node.keywords):  # which are computed before the call
            self.visit(one)
        self._is_condition = before
        path = self._path(node.func)
        if path is not None:
            self._use(path, is_call=True)
        elif isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
            self.read(node.func.attr, self._mro[self._mro.index(self._owner) + 1 :])
        else:
            self.visit(node.func)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node)
        if path is None:
            self.generic_visit(node)
        elif not self._is_condition and isinstance(node.ctx, ast.Load):
            self._use(path, is_call=False)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self.visit(node.slice)

    def visit_Compare(self, node: ast.Compare) -> None:
        before, self._is_condition = self._is_condition, True
        self.generic_visit(node)
        self._is_condition = before

    def generic_visit(self, node: ast.AST) -> None:
        for loop in loops_in(node):
            if (path := self._path(loop.over)) is not None:
                self.loops.setdefault(".".join(path), []).append(loop)
        parts = dict(ast.iter_fields(node))
        for name in sorted(parts, key=lambda name: name not in _FIRST):
            before, self._is_condition = self._is_condition, self._is_condition or name == "test"
            for part in parts[name] if isinstance(parts[name], list) else [parts[name]]:
                if isinstance(part, ast.AST):
                    self.visit(part)
            self._is_condition = before

    def _path(self, node: ast.AST) -> list[str] | None:
        """Return the attributes that lead from ``self`` to a value; None for other values."""
        names = list(_names_to(node))
        return names[-2::-1] if len(names) > 1 and names[-1] == self._self else None

    def _use(self, path: list[str], *, is_call: bool) -> None:
        name, *inner = path
        if is_call and not inner and any(name in vars(one) for one in self._mro):
            self.read(name, self._mro)
        else:
            self.uses.append(_Use(name, tuple(inner), is_call))


def _names_to(node: ast.AST) -> Iterator[str]:
    """Yield the names in a chain of attributes, from its end to its beginning; nothing that has no such chain."""
    while True:
        match node:
            case ast.Attribute(value=value, attr=name):
                yield name
                node = value
            case ast.Subscript(value=value):
                node = value
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
                yield name
                node = value
            case ast.Name(id=name):
                yield name
                return
            case _:
                yield ""
                return


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _definition_of(function: FunctionType) -> ast.FunctionDef | None:
    """Parse the source of a function; None if there is none that can be read."""
    try:
        (statement,) = ast.parse(dedent(inspect.getsource(function))).body
    except Exception:  # of whatever kind: the file may have changed since, or be no Python
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None
