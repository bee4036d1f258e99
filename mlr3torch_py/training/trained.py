"""What the history of a net says about what trained when: its format, written and read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Final

from mlr3torch_py.names import listed
from mlr3torch_py.patterns import cover, expanded, patterns, summarized
from mlr3torch_py.protocols import History
from mlr3torch_py.training.clock import n_batches_of, rows_of

__all__ = [
    "EVENT",
    "RATE",
    "TRAINABLE",
    "Span",
    "change",
    "governed_modules",
    "key_of",
    "known_names",
    "last_entry",
    "packed",
    "spans_of",
    "unpacked",
]

EVENT: Final = "event_unfrozen"
"""The key of the names of what was unfrozen (+) and frozen (-) in an epoch, for people; None if nothing was."""

# skorch prints no key that ends so, and none of its loggers takes it.
TRAINABLE: Final = "trainable_from_batch_count"
"""The key of what is trainable, for programs: entries as `packed` makes them, in the epochs in which it changes."""

RATE: Final = re.compile(r"lr_(?:.+_)?\d+(?:_x.+)?(?:_warmup\d+_from\d+)?")
"""The keys of the learning rates of param groups, and of their parts with factors, in the entries of batches."""

_HIDDEN: Final = "_from_batch_count"
_MOST_NAMES: Final = 4
_MOST_PATHS: Final = 50
_MOST_CHARACTERS: Final = 40


def key_of(key: str, module: str) -> str:
    """Return the key by which the history tells of a module of the net what `key` tells of ``module_``.

    Parameters
    ----------
    key : str
    module : str
        Its name, without the trailing underscore.

    Returns
    -------
    str

    Examples
    --------
    >>> [key_of(key, "decoder") for key in ("n_trainable", EVENT, TRAINABLE)]
    ['n_trainable_decoder', 'event_unfrozen_decoder', 'trainable_decoder_from_batch_count']
    """
    if module == "module":
        return key
    stem = key.removesuffix(_HIDDEN)
    return f"{stem}_{module}{key[len(stem) :]}"


def governed_modules(keys: Iterable[str]) -> list[str]:
    """List the modules that freezing callbacks govern, by the keys of a history.

    Examples
    --------
    >>> governed_modules(["epoch", "n_trainable", "n_trainable_decoder"])
    ['module', 'decoder']
    """
    found = (key.partition("n_trainable") for key in keys)
    return [name.removeprefix("_") or "module" for before, key, name in found if key and not before]


def change(unfrozen: Collection[str], frozen: Collection[str], known: Sequence[str]) -> str:
    """Describe in few words what was unfrozen and what was frozen.

    Parameters
    ----------
    unfrozen, frozen : collection of str
    known : sequence of str
        All names of the network, in its order.

    Returns
    -------
    str

    Examples
    --------
    >>> known = [f"layers.{i}.{name}" for i in range(9) for name in ("weight", "bias")]
    >>> change(["layers.1.weight"], known[8:], known)
    '+ layers.1.weight, - layers.{4..8} (10 tensors)'
    """
    return ", ".join(f"{sign} {_short(names, known)}" for sign, names in (("+", unfrozen), ("-", frozen)) if names)


def _short(names: Collection[str], known: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMES and len(text := summarized(names, known, _MOST_NAMES)) <= _MOST_CHARACTERS:
        return text
    paths, count = cover(names, known), f" ({len(names)} tensor{'s' * (len(names) != 1)})"
    if len(paths) > _MOST_PATHS:  # which takes long to join, and tells nobody anything
        return f"{patterns(paths[:_MOST_PATHS])[0]} and more{count}"
    joined = patterns(paths)
    texts = [listed(joined, most=most) + count for most in range(min(len(joined), 6), 0, -1)]
    return next((text for text in texts if len(text) <= _MOST_CHARACTERS), texts[-1])


def packed(trainable: Sequence[bool], n_finished: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the entry of the history that says what trains from some batch of an epoch on.

    Parameters
    ----------
    trainable : sequence of bool
        For each parameter, in the order of the network.
    n_finished : int
        The training batches of the epoch that are finished.
    names : sequence of str, optional
        The names of all parameters, if they are not known from an earlier entry.

    Returns
    -------
    dict
        Of numbers and texts: the positions of the trainable parameters as those at which runs begin and end, and the
        names as patterns.

    Examples
    --------
    >>> packed([False, True, True, False], 3, ["0.weight", "0.bias", "1.weight", "1.bias"])
    {'after': 3, 'trainable': [1, 3], 'names': ['{0,1}.{weight,bias}']}
    """
    borders = [i for i, (before, now) in enumerate(pairwise([False, *trainable, False])) if before != now]
    entry = {"after": n_finished, "trainable": borders}
    return entry if names is None else entry | {"names": _written(names)}


def last_entry(history: History, key: str, part: str) -> object:
    """Return a part of the last entry of lists with a key; None if no entry has it."""
    entries = (entry for row in reversed(rows_of(history)) for entry in reversed(row.get(key) or ()))
    return next((entry[part] for entry in entries if part in entry), None)


def unpacked(names: Sequence[str | list[str]], trainable: Sequence[int]) -> tuple[list[str], frozenset[str]]:
    """Return the names of all parameters, and of those that were trainable, from entries that `packed` has made.

    Examples
    --------
    >>> unpacked(["{0,1}.bias"], [1, 2])
    (['0.bias', '1.bias'], frozenset({'1.bias'}))
    """
    known = [*_read(names)]
    return known, _between(known, trainable)


@dataclass(frozen=True, slots=True)
class Span:
    """Batches of one epoch in which the same parameters were trainable.

    Parameters
    ----------
    epoch : int
    first : int
        The first of the batches, over the whole life of the net.
    start, end : int
        The same within the epoch: the batches that were finished before and after them.
    n_batches : int
        The batches of the epoch.
    trainable : frozenset of str
    names : tuple of str
        All names of the network, in its order.
    """

    epoch: int
    first: int
    start: int
    end: int
    n_batches: int
    trainable: frozenset[str]
    names: tuple[str, ...]

    @property
    def batches(self) -> range:
        """The batches, over the whole life of the net."""
        return range(self.first, self.first + self.end - self.start)


def spans_of(rows: Sequence[Mapping[str, Any]], n_ranks: int = 1, module: str = "module") -> Iterator[Span]:
    """Read from a history what was trainable in which batches.

    Epochs without a freezing callback, and those of earlier versions, are left out.

    Parameters
    ----------
    rows : sequence of mapping
    n_ranks : int
        The number of processes whose batches are in the history.
    module : str
        The module of the net.

    Yields
    ------
    Span
        In the order of time, at least one for each epoch that has batches.
    """
    before, names, trainable = 0, tuple[str, ...](), frozenset[str]()
    for epoch, row in enumerate(rows, start=1):
        n_batches = n_batches_of(row, n_ranks)
        entries = row.get(key_of(TRAINABLE, module)) or []
        starts = [int(entry["after"]) for entry in entries]
        if names and key_of("n_trainable", module) in row and min([*starts, n_batches]) > 0:
            yield Span(epoch, before + 1, 0, min([*starts, n_batches]), n_batches, trainable, names)
        for entry, start, end in zip(entries, starts, [*starts, n_batches][1:], strict=True):
            if "names" in entry:
                names = tuple(_read(entry["names"]))
            trainable = _between(names, entry["trainable"])
            if end > start:
                yield Span(epoch, before + start + 1, start, end, n_batches, trainable, names)
        before += n_batches


def known_names(spans: Sequence[Span]) -> list[str]:
    """Return the names of all networks that a net has had, in their order."""
    return list(dict.fromkeys(name for names in dict.fromkeys(span.names for span in spans) for name in names))


def _between(names: Sequence[str], borders: Sequence[int]) -> frozenset[str]:
    """Return the names of the runs that begin and end at some positions."""
    ends = iter(borders)
    return frozenset(chain.from_iterable(names[begin:end] for begin, end in zip(ends, ends, strict=True)))


def _written(paths: Sequence[str]) -> list[str | list[str]]:
    """Write paths as patterns; as a list of lists if their names look like patterns."""
    found = patterns(paths)
    try:
        is_exact = [path for pattern in found for path in expanded(pattern)] == list(paths)
    except ValueError:  # too many for one pattern
        is_exact = False
    return [*found] if is_exact else [[path] for path in paths]


def _read(written: Sequence[str | list[str]]) -> Iterator[str]:
    for one in written:
        yield from expanded(one) if isinstance(one, str) else one
