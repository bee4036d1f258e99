"""Keys of rows in few bytes, with their positions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, TypeAlias

import numpy as np
import torch

__all__ = ["BYTES_PER_KEY", "Keys", "Places", "packed_keys", "unpacked_keys"]

# A bit more than what a key takes twice, in a table and among the complete rows: 16 bytes and a position once it is
# sorted in, and what a dictionary needs for some of them until then.
BYTES_PER_KEY: Final = 96

_LENGTH: Final = 16
_MIN_SORTED: Final = 4096
_MAX_SHARE_NEW: Final = 8
_NO_NUMBER: Final = np.iinfo(np.uint64).max
Pairs: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
Places: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


class Keys(Collection[bytes]):
    """Different keys of 16 bytes, in the order in which they were added.

    If they are many, most of them are in sorted arrays; few, and the last ones, are Python objects, found faster.

    Parameters
    ----------
    keys : iterable of bytes

    Examples
    --------
    >>> keys = Keys([b"b" * 16, b"a" * 16])
    >>> keys.add([b"a" * 16, b"c" * 16])
    [b'cccccccccccccccc']
    >>> keys.find([b"c" * 16, b"d" * 16, b"a" * 16]).tolist(), keys.lacking([b"c" * 16, b"d" * 16])
    ([2, -1, 1], [1])
    """

    __slots__ = ("_heads", "_new", "_pairs", "_places")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._new: dict[bytes, int] = {}
        self._set_sorted(np.empty((0, 2), np.uint64), np.empty(0, np.int64))
        self.add(keys)
        self.pack()

    def _set_sorted(self, pairs: Pairs, places: Places) -> None:
        """Set the sorted keys, as two numbers each, and their positions; at their end is what is never found."""
        self._pairs = np.concatenate((pairs, np.full((1, 2), _NO_NUMBER)))
        self._places = np.append(places, -1)
        self._heads = self._pairs[:, 0].copy()  # searched faster than strings

    def __len__(self) -> int:
        return len(self._places) - 1 + len(self._new)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and bool(self.find([key])[0] >= 0)

    def __iter__(self) -> Iterator[bytes]:
        ordered = np.empty_like(self._pairs[:-1])
        ordered[self._places[:-1]] = self._pairs[:-1]
        yield from (key.tobytes() for key in ordered)
        yield from self._new

    def find(self, keys: Sequence[bytes]) -> Places:
        """Return the position of each key, -1 for unknown keys."""
        if len(self._places) == 1:
            return np.fromiter(map(self._new.get, keys, repeat(-1)), np.int64, len(keys))
        joined = b"".join(keys)
        pairs = np.frombuffer(joined, np.uint64).reshape(-1, 2)
        nearest = self._heads.searchsorted(pairs[:, 0])
        places, candidates = self._places[nearest], self._pairs[nearest]
        if candidates.tobytes() != joined:
            differs = candidates != pairs
            for i in np.flatnonzero(differs.any(1)).tolist():
                places[i] = self._new.get(keys[i], -1)
                if places[i] < 0 and not differs[i, 0]:
                    places[i] = self._find_from(nearest[i], *pairs[i])
        return places

    def lacking(self, keys: Sequence[bytes]) -> list[int]:
        """List the indices of unknown keys."""
        if all(map(self._new.__contains__, keys)):
            return []
        return np.flatnonzero(self.find(keys) < 0).tolist()

    def _find_from(self, start: int, head: np.uint64, tail: np.uint64) -> int:
        """Find a key among those with the same first half, of which there is hardly ever another one."""
        end = self._heads.searchsorted(head, "right")
        found = np.flatnonzero(self._pairs[start:end, 1] == tail)
        return int(self._places[start + found[0]]) if len(found) else -1

    def add(self, keys: Iterable[bytes]) -> list[bytes]:
        """Add keys; return those that were not there."""
        different = list(dict.fromkeys(keys))
        found = [different[i] for i in np.flatnonzero(self.find(different) < 0)]
        start = len(self)
        self._new.update(zip(found, range(start, start + len(found)), strict=True))
        if len(self._new) > max(_MIN_SORTED, len(self._places) // _MAX_SHARE_NEW):
            self._sort()
        return found

    def keep(self, places: Sequence[int]) -> None:
        """Drop all keys but those at some positions, which are given in order."""
        kept = np.zeros(len(self), bool)
        kept[list(places)] = True
        self._sort()
        pairs, before = self._pairs[:-1], self._places[:-1]
        is_kept = kept[before]
        self._set_sorted(pairs[is_kept], (np.cumsum(kept) - 1)[before[is_kept]])

    def remove(self, keys: Collection[bytes]) -> None:
        """Drop keys that are there."""
        is_kept = np.ones(len(self), bool)
        found = self.find(list(keys))
        is_kept[found[found >= 0]] = False
        if not is_kept.all():
            self.keep(np.flatnonzero(is_kept).tolist())

    def clear(self) -> None:
        """Drop all keys."""
        self._new = {}
        self._set_sorted(self._pairs[:0], self._places[:0])

    def pack(self) -> None:
        """Take less room, if there are many."""
        if len(self) > _MIN_SORTED:
            self._sort()

    def _sort(self) -> None:
        """Sort the keys that were added last into the others."""
        if not self._new:
            return
        added = np.frombuffer(b"".join(self._new), np.uint64).reshape(-1, 2)
        pairs = np.concatenate((self._pairs[:-1], added))
        places = np.concatenate((self._places[:-1], np.arange(len(self) - len(added), len(self))))
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._new = {}
        self._set_sorted(pairs[order], places[order])


def packed_keys(keys: Collection[bytes]) -> torch.Tensor:
    """Return keys as a tensor."""
    return (
        torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, _LENGTH)
        if keys
        else torch.empty(0, _LENGTH, dtype=torch.uint8)
    )


def unpacked_keys(packed: torch.Tensor) -> list[bytes]:
    """Return the keys that `packed_keys` has packed."""
    return [key.tobytes() for key in packed.numpy()]
