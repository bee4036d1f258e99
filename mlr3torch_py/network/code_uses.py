"""Code uses: which attributes of its object a method uses, in the order in which its code runs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from textwrap import dedent
from types import FunctionType, MappingProxyType
from typing import Any, Final, NamedTuple

from torch import nn

from mlr3torch_py.network.code_loops import Loop, loops_in

__all__ = ["Code", "Use", "code_of"]

# What runs first in a node of the syntax tree, whatever comes first in the text.
_FIRST: Final = ("test", "generators", "value")

# Functions that ask something about a module, and compute nothing by it.
_ASK: Final = frozenset({"bool", "getattr", "hasattr", "id", "isinstance", "len", "type"})


class Use(NamedTuple):
    """A place in the code that reads an attribute of ``self``, and perhaps attributes of that.

    Parameters
    ----------
    name : str
    inner : tuple of str
    is_call : bool
    is_kept : bool
        Whether a local name keeps the value, whose uses follow.
    """

    name: str
    inner: tuple[str, ...]
    is_call: bool
    is_kept: bool


class Code(NamedTuple):
    """What a method and those that it calls use, and the loops in them by the path of what they go over."""

    uses: list[Use]
    loops: dict[str, list[Loop]]


def code_of(cls: type, name: str) -> Code:
    """Read a method of a class.

    Examples
    --------
    >>> [use.name for use in code_of(nn.TransformerEncoderLayer, "_ff_block").uses]
    ['linear1', 'activation', 'dropout', 'linear2', 'dropout2']
    """
    reader = _Reader(cls)
    reader.read(name, cls.__mro__)
    return Code(reader.uses, reader.loops)


class _Meaning(NamedTuple):
    """What a local name stands for: an expression with what names meant in it, or a function, which looks them up."""

    nodes: list[Any]
    names: Mapping[str, _Meaning] | None


class _Reader(ast.NodeVisitor):
    """Reads a method, and those that it calls, in the order in which the code runs.

    A local name for something that is made of attributes of the object alone is read as that, where it is used.
    """

    def __init__(self, cls: type) -> None:
        self._mro = cls.__mro__
        self.uses: list[Use] = []
        self.loops: dict[str, list[Loop]] = {}
        self._read: set[object] = set()
        self._owner: type = cls
        self._self = ""  # how the method calls its object
        self._local: frozenset[str] = frozenset()
        self._names: Mapping[str, _Meaning] = MappingProxyType({})
        self._is_condition = False
        self._is_kept = False

    def read(self, name: str, owners: tuple[type, ...]) -> None:
        """Read a method of the first of some classes that has it."""
        owner = next((one for one in owners if name in vars(one)), None)
        function = vars(owner).get(name) if owner is not None else None
        if owner is None or owner is nn.Module or not isinstance(function, FunctionType) or function in self._read:
            return
        self._read.add(function)
        if (definition := _definition_of(function)) is not None and definition.args.args:
            before = self._owner, self._self, self._local, self._names
            self._owner, self._self = owner, definition.args.args[0].arg
            self._local, self._names = frozenset(_local_names(definition)), MappingProxyType({})
            self._visit_all(definition.body)
            self._owner, self._self, self._local, self._names = before

    def visit_Call(self, node: ast.Call) -> None:
        path = self._path(node.func)
        of_super = node.func.attr if isinstance(node.func, ast.Attribute) and _is_super(node.func.value) else ""
        is_method = isinstance(node.func, ast.Attribute) and path is None and not of_super
        if is_method:  # of something that is computed before the arguments
            self.visit(node.func)
        before = self._is_condition
        self._is_condition |= isinstance(node.func, ast.Name) and node.func.id in _ASK
        self._visit_all(sorted([*node.args, *node.keywords], key=self._is_handed_over))  # all of it before the call
        self._is_condition = before
        if path is not None:
            self._use(path, is_call=True)
        elif of_super:
            self.read(of_super, self._mro[self._mro.index(self._owner) + 1 :])
        elif not is_method:
            self.visit(node.func)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._visit_all(sorted([node.left, node.right], key=self._is_handed_over))

    def visit_Assign(self, node: ast.Assign) -> None:
        pairs = [(target, node.value) for target in node.targets]
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = [*zip(targets, values, strict=False)] if len(targets) == len(values) else pairs
        names, is_kept = self._names, self._is_kept
        given = {one.id: value for one, value in pairs if isinstance(one, ast.Name) and self._stands_alone(value)}
        self._is_kept |= len(given) == len(pairs)
        if not isinstance(node.value, ast.Lambda):
            self.visit(node.value)
        self._is_kept = is_kept
        self._visit_all(node.targets)
        for name, value in given.items():
            self._names = {**self._names, name: _Meaning([value], None if isinstance(value, ast.Lambda) else names)}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._names = {**self._names, node.name: _Meaning([node.args, *node.body], None)}

    def visit_arg(self, node: ast.arg) -> None:
        self._forget(node.arg)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._forget(node.id)
        elif not self._is_condition and (meaning := self._names.get(node.id)) is not None:
            key = (self._is_kept, *meaning.nodes)
            if key not in self._read:  # where it is used first says all
                self._read.add(key)
                before, self._names = self._names, self._names if meaning.names is None else meaning.names
                self._visit_all(meaning.nodes)
                self._names = before

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
            self._visit_all(parts[name] if isinstance(parts[name], list) else [parts[name]])
            self._is_condition = before

    def _forget(self, name: str) -> None:
        self._names = {one: meaning for one, meaning in self._names.items() if one != name}

    def _visit_all(self, nodes: list[Any]) -> None:
        for node in nodes:
            if isinstance(node, ast.AST):
                self.visit(node)

    def _path(self, node: ast.AST) -> list[str] | None:
        """Return the attributes that lead from ``self`` to a value; None for other values, and for ``self``."""
        path: list[str] = []
        names = self._names
        while True:
            match node:
                case ast.Attribute(value=value, attr=name):
                    path.insert(0, name)
                    node = value
                case ast.Subscript(value=value):
                    node = value
                case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
                    path.insert(0, name)
                    node = value
                case ast.Name(id=name) if name in names:
                    (node, *_), within = names[name]
                    names = within or {}  # a function has no path
                case _:
                    return path if path and isinstance(node, ast.Name) and node.id == self._self else None

    def _is_handed_over(self, node: ast.AST) -> bool:
        """Check whether an operand is used when all others have been computed, as a function and a parameter are."""
        node = node.value if isinstance(node, (ast.Starred, ast.keyword)) else node
        return isinstance(node, ast.Lambda) or self._path(node) is not None

    def _stands_alone(self, node: ast.AST) -> bool:
        """Check whether the value of an expression has nothing to do with what a method is called with."""
        if isinstance(node, ast.Lambda):
            return True
        local = (one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in self._local)
        return all(name == self._self or name in self._names for name in local)

    def _use(self, path: list[str], *, is_call: bool) -> None:
        name, *inner = path
        method = next((vars(one)[name] for one in self._mro if name in vars(one)), None)
        if not inner and isinstance(method, FunctionType):
            self.read(name, self._mro)
        else:
            self.uses.append(Use(name, tuple(inner), is_call, self._is_kept))


def _local_names(definition: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(definition):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _definition_of(function: FunctionType) -> ast.FunctionDef | None:
    """Parse the source of a function; None if there is none that can be read."""
    try:
        (statement,) = ast.parse(dedent(inspect.getsource(function))).body
    except Exception:  # of whatever kind: the file may have changed since, or be no Python
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None
