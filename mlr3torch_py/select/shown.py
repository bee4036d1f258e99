"""Selection: the tree of a network, with what a selector selects ticked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlr3torch_py.html import html_lines
from mlr3torch_py.patterns import patterns

__all__ = ["Selection"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The parameters of a network, with those that a selector selects ticked; from `Select.show`.

    It prints as a tree: a module all of whose parameters are ticked, or none, is one line.

    Parameters
    ----------
    select : str
        The selector as code.
    sizes : mapping of str to int
        The number of weights of every parameter, in the order of the network.
    selected : frozenset of str
    """

    select: str
    sizes: Mapping[str, int]
    selected: frozenset[str]

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        return html_lines(self._lines())

    def _lines(self) -> Iterator[str]:
        weights, total = sum(self.sizes[name] for name in self.selected), sum(self.sizes.values())
        yield (f"{self.select}: {len(self.selected)} of {len(self.sizes)} parameters, {weights:,} of {total:,} weights")
        yield from self._below("", list(self.sizes), depth=0)

    def _below(self, path: str, names: Sequence[str], depth: int) -> Iterator[str]:
        """Yield the lines of the parts of a module, neighbours with the same tick in one line."""
        children: dict[str, list[str]] = {}
        for name in names:
            children.setdefault(name.removeprefix(path).partition(".")[0], []).append(name)
        alike: dict[str, list[str]] = {}
        for child, below in children.items():
            tick = _tick(below, self.selected)
            if alike and (tick == "~" or tick != _tick(next(iter(alike.values())), self.selected)):
                yield self._line(alike, depth)
                alike = {}
            if tick == "~":
                yield f"{'  ' * depth}[~] {child}"
                yield from self._below(f"{path}{child}.", below, depth + 1)
            else:
                alike[child] = below
        if alike:
            yield self._line(alike, depth)

    def _line(self, alike: Mapping[str, Sequence[str]], depth: int) -> str:
        names = [name for below in alike.values() for name in below]
        many = f"{len(names)} parameters, " if len(names) > 1 else ""
        weights = sum(self.sizes[name] for name in names)
        return (
            f"{'  ' * depth}[{_tick(names, self.selected)}] {', '.join(patterns(alike))}  ({many}{weights:,} weights)"
        )


def _tick(names: Sequence[str], selected: Collection[str]) -> str:
    n = sum(name in selected for name in names)
    return "x" if n == len(names) else "~" if n else " "
