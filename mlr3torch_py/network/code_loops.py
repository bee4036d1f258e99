"""Code loops: whether a loop in the code of a forward pass runs the modules of a list in turn, or side by side."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Loop", "loops_in"]


class Loop(NamedTuple):
    """A loop over modules.

    Parameters
    ----------
    over : ast.expr
        What holds them.
    is_reversed : bool
    is_parallel : bool
        Whether what one of them returns is not what the next one takes.
    """

    over: ast.expr
    is_reversed: bool
    is_parallel: bool


def loops_in(node: ast.AST) -> Iterator[Loop]:
    """Yield the loops of a statement or a comprehension that call what they go over.

    Examples
    --------
    >>> (loop,) = loops_in(ast.parse("[branch(x) for branch in reversed(self.branches)]").body[0].value)
    >>> ast.unparse(loop.over), loop.is_reversed, loop.is_parallel
    ('self.branches', True, True)
    """
    body: Sequence[ast.AST]
    match node:
        case ast.For(target=target, iter=over, body=body):
            heads = [(target, over)]
        case ast.ListComp(elt=elt, generators=generators) | ast.GeneratorExp(elt=elt, generators=generators):
            heads, body = [(one.target, one.iter) for one in generators], [elt]
        case ast.DictComp(value=value, generators=generators):
            heads, body = [(one.target, one.iter) for one in generators], [value]
        case _:
            return
    nodes = [one for part in body for one in ast.walk(part)]
    for target, over in heads:
        for name, modules, is_reversed in _elements(target, over):
            calls = [one for one in nodes if isinstance(one, ast.Call) and _is_name(one.func, name)]
            if calls:
                yield Loop(modules, is_reversed, _are_independent(calls, nodes))


def _elements(target: ast.expr, over: ast.expr) -> Iterator[tuple[str, ast.expr, bool]]:
    """Yield the names that a loop gives to elements, what these are elements of, and whether the last comes first."""
    match over, target:
        case ast.Call(func=ast.Name(id="reversed"), args=[one]), _:
            yield from ((name, modules, not is_reversed) for name, modules, is_reversed in _elements(target, one))
        case ast.Call(func=ast.Name(id="enumerate"), args=[one, *_]), ast.Tuple(elts=[_, element]):
            yield from _elements(element, one)
        case ast.Call(func=ast.Name(id="zip"), args=lists), ast.Tuple(elts=elements):
            for element, one in zip(elements, lists, strict=False):
                yield from _elements(element, one)
        case ast.Call(func=ast.Attribute(value=one, attr="values"), args=[]), _:
            yield from _elements(target, one)
        case ast.Call(func=ast.Attribute(value=one, attr="items"), args=[]), ast.Tuple(elts=[_, element]):
            yield from _elements(element, one)
        case _, ast.Name(id=name):
            yield name, over, False


def _are_independent(calls: list[ast.Call], nodes: list[ast.AST]) -> bool:
    """Check whether calls read nothing that may change from one pass through a loop to the next."""
    if any(isinstance(one, ast.Expr) and one.value in calls for one in nodes):
        return False  # what is called for its effect may change what it is given
    changed = {_base(one) for one in nodes if isinstance(getattr(one, "ctx", None), ast.Store)}
    changed |= {_base(one.func) for one in nodes if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute)}
    arguments = [part for call in calls for part in (*call.args, *call.keywords)]
    return not any(_is_name(one, name) for part in arguments for one in ast.walk(part) for name in changed)


def _base(node: ast.AST) -> str:
    """Return the name at the beginning of a chain of attributes, items and calls; an empty string without any."""
    while not isinstance(node, ast.Name):
        inner = getattr(node, "value", getattr(node, "func", None))
        if not isinstance(inner, ast.AST):
            return ""
        node = inner
    return node.id


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
