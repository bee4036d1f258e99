"""Keys of rows in few bytes, with their positions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch

__all__ = ["BYTES_PER_KEY", "Keys", "packed_keys", "unpacked_keys"]

# A bit more than what a key takes twice, in a table and among the complete rows: 16 bytes and a position once it is
# sorted in, and what a dictionary needs for some of them until then.
BYTES_PER_KEY: Final = 96

_LENGTH: Final = 16
_KEY: Final = f"S{_LENGTH}"
_MIN_SORTED: Final = 256
_MAX_SHARE_NEW: Final = 8


class Keys(Collection[bytes]):
    """Different keys of 16 bytes, in the order in which they were added.

    Most of them are in a sorted array; only the last ones are Python objects.

    Parameters
    ----------
    keys : iterable of bytes

    Examples
    --------
    >>> keys = Keys([b"b" * 16, b"a" * 16])
    >>> keys.add([b"a" * 16, b"c" * 16])
    [b'cccccccccccccccc']
    >>> keys.find([b"c" * 16, b"d" * 16, b"a" * 16])
    [2, None, 1]
    """

    __slots__ = ("_new", "_places", "_sorted")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._sorted, self._places = np.empty(0, _KEY), np.empty(0, np.int64)
        self._new: dict[bytes, int] = {}
        self.add(keys)
        self.pack()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.find([key]) != [None]

    def __iter__(self) -> Iterator[bytes]:
        ordered = np.empty_like(self._sorted)
        ordered[self._places] = self._sorted
        yield from (key.tobytes() for key in ordered.view(f"V{_LENGTH}"))
        yield from self._new

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        """Return the position of each key, None for unknown keys."""
        if not len(self._sorted) or not keys:
            return list(map(self._new.get, keys))
        wanted = _array(keys)
        nearest = np.searchsorted(self._sorted, wanted)
        nearest[nearest == len(self._sorted)] = 0
        is_known = self._sorted[nearest] == wanted
        places: list[int | None] = self._places[nearest].tolist()
        if is_known.all():
            return places
        known: list[bool] = is_known.tolist()
        return [
            place if is_sorted else self._new.get(key)
            for place, is_sorted, key in zip(places, known, keys, strict=True)
        ]

    def add(self, keys: Iterable[bytes]) -> list[bytes]:
        """Add keys; return those that were not there."""
        different = list(dict.fromkeys(keys))
        found = [key for key, place in zip(different, self.find(different), strict=True) if place is None]
        start = len(self)
        self._new.update(zip(found, range(start, start + len(found)), strict=True))
        if len(self._new) > max(_MIN_SORTED, len(self._sorted) // _MAX_SHARE_NEW):
            self.pack()
        return found

    def keep(self, places: Sequence[int]) -> None:
        """Drop all keys but those at some positions, which are given in order."""
        kept = np.zeros(len(self), bool)
        kept[list(places)] = True
        self.pack()
        is_kept = kept[self._places]
        self._sorted, self._places = self._sorted[is_kept], (np.cumsum(kept) - 1)[self._places[is_kept]]

    def remove(self, keys: Collection[bytes]) -> None:
        """Drop keys that are there."""
        if dropped := {place for place in self.find(list(keys)) if place is not None}:
            self.keep([place for place in range(len(self)) if place not in dropped])

    def clear(self) -> None:
        """Drop all keys."""
        self._sorted, self._places = self._sorted[:0].copy(), self._places[:0].copy()
        self._new = {}

    def pack(self) -> None:
        """Sort the keys that were added last into the others."""
        if not self._new:
            return
        added = _array(self._new)
        order = np.argsort(added)
        into = np.searchsorted(self._sorted, added[order])
        self._places = np.insert(self._places, into, order + len(self._sorted))
        self._sorted = np.insert(self._sorted, into, added[order])
        self._new = {}


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


def _array(keys: Collection[bytes]) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    return np.frombuffer(b"".join(keys), _KEY)
