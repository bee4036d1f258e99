"""Patterns: many paths of a network in few words, as ``encoder.layer.{0..11}``, and back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final

from mlr3torch_py.names import listed

__all__ = ["cover", "expanded", "patterns", "summarized"]


def cover(names: Collection[str], known: Iterable[str]) -> list[str]:
    """Return the fewest paths that hold some names, and no others.

    Parameters
    ----------
    names : collection of str
    known : iterable of str
        All names of the network, in its order.

    Returns
    -------
    list of str
        Paths of modules, and names that no module holds alone.

    Examples
    --------
    >>> cover(["0.weight", "0.bias", "1.bias"], ["0.weight", "0.bias", "1.weight", "1.bias"])
    ['0', '1.bias']
    """
    known, wanted, mixed = list(known), set(names), {""}
    for path in known:
        if path not in wanted:
            while (path := path.rpartition(".")[0]) not in mixed:
                mixed.add(path)
    found: dict[str, None] = {}
    for path in known:
        if path in wanted:
            while (above := path.rpartition(".")[0]) not in mixed:
                path = above
            found[path] = None
    return list(found)


def patterns(paths: Iterable[str]) -> list[str]:
    """Join neighbouring paths that differ in one component, as a shell writes them.

    Parameters
    ----------
    paths : iterable of str

    Returns
    -------
    list of str
        `expanded` turns them back into the paths, in their order.

    Examples
    --------
    >>> patterns(["embed", "layer.0.fc", "layer.0.norm", "layer.1.fc", "layer.1.norm", "block1", "block2", "block3"])
    ['embed', 'layer.{0,1}.{fc,norm}', 'block{1..3}']
    """
    found: list[tuple[tuple[str, ...], ...]] = [tuple((part,) for part in path.split(".")) for path in paths]
    for position in range(max(map(len, found), default=0) - 1, -1, -1):
        runs: list[tuple[tuple[tuple[str, ...], ...], list[str]]] = []  # the first of some paths, and where they differ
        for parts in found:
            if runs and _differ_only_at(position, runs[-1][0], parts):
                runs[-1][1].extend(parts[position])
            else:
                runs.append((parts, [*parts[position]] if position < len(parts) else []))
        found = [(*one[:position], tuple(texts), *one[position + 1 :]) if texts else one for one, texts in runs]
    return [".".join(map(_braced, parts)) for parts in found]


def expanded(pattern: str) -> list[str]:
    """Return the paths that a pattern of `patterns` stands for.

    Parameters
    ----------
    pattern : str
        Braces hold alternatives, ``{a,b}``, and ranges of whole numbers, ``{0..11}``; other braces stay as they are.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If there are more than a hundred thousand, or a range is none.

    Examples
    --------
    >>> expanded("layer.{0..2,5}.fc")
    ['layer.0.fc', 'layer.1.fc', 'layer.2.fc', 'layer.5.fc']
    """
    found = [""]
    for i, text in enumerate(_BRACES.split(pattern)):
        is_braces = i % 2 == 1
        parts = [one for entry in text[1:-1].split(",") for one in _alternatives(entry)] if is_braces else [text]
        if len(found) * len(parts) > _MOST_PATHS:
            raise ValueError(f"{pattern!r} stands for more than {_MOST_PATHS:,} paths; give shorter ranges")
        found = [start + part for start in found for part in parts]
    return found


def summarized(names: Collection[str], known: Iterable[str], most: int = 4) -> str:
    """Describe parameters: up to `most` by their names, more by the paths that hold them.

    Parameters
    ----------
    names : collection of str
    known : iterable of str
        All names of the network, in its order.
    most : int

    Returns
    -------
    str

    Examples
    --------
    >>> known = [f"layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    >>> summarized(["layers.1.weight"], known), summarized(known[2:], known, most=3)
    ('layers.1.weight', 'layers.{1,2} (4 tensors)')
    """
    known = list(known)
    if len(names) <= most:
        return ", ".join(name for name in known if name in names)
    return f"{listed(patterns(cover(names, known)), most=6)} ({len(names)} tensors)"


_BRACES: Final = re.compile(r"(\{[^{}]*(?:,|\.\.)[^{}]*\})")
_NUMBERED: Final = re.compile(r"(\D*)(0|[1-9]\d{0,8})")
_RANGE: Final = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST_PATHS: Final = 10**5


def _alternatives(text: str) -> list[str]:
    """Return what one entry in braces stands for."""
    numbers = _RANGE.fullmatch(text)
    if numbers is None and ".." not in text:
        return [text]
    first, last = (int(numbers[1]), int(numbers[2])) if numbers else (1, 0)
    if last < first:
        raise ValueError(f"{text!r} is no range; give two whole numbers, the lower one first, as in '0..11'")
    if last - first > _MOST_PATHS:
        raise ValueError(f"{text!r} stands for more than {_MOST_PATHS:,} paths; give a shorter range")
    return [str(number) for number in range(first, last + 1)]


def _differ_only_at(position: int, one: Sequence[tuple[str, ...]], other: Sequence[tuple[str, ...]]) -> bool:
    if len(one) != len(other) or position >= len(one):
        return False
    if one[:position] != other[:position] or one[position + 1 :] != other[position + 1 :]:
        return False
    if not all(map(_fits_in_braces, (*one[position], *other[position]))):
        return False
    # Names at the top are joined only if they are numbered: `layer{1..4}`, but not `{conv1,fc}`.
    return position > 0 or _stem([*one[0], *other[0]]) is not None


@lru_cache(maxsize=10_000)
def _fits_in_braces(text: str) -> bool:
    return set("{},").isdisjoint(text)


def _stem(texts: Sequence[str]) -> str | None:
    """Return what several numbered texts have before their number; None if they have nothing in common."""
    stems = set(map(_stem_of, texts))
    return stems.pop() if len(stems) == 1 else None


@lru_cache(maxsize=10_000)
def _stem_of(text: str) -> str | None:
    found = _NUMBERED.fullmatch(text)
    return found[1] if found else None


def _braced(alternatives: tuple[str, ...]) -> str:
    if len(alternatives) == 1:
        return alternatives[0]
    stem = _stem(alternatives)
    if stem is None:
        return "{" + ",".join(alternatives) + "}"
    runs: list[list[int]] = []
    for number in (int(one.removeprefix(stem)) for one in alternatives):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return stem + "{" + ",".join(parts) + "}"
