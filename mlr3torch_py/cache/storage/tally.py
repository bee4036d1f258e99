"""What the cache did in an epoch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Hit and miss counts of a module.

    Parameters
    ----------
    hits, misses : int
        Rows taken from memory, and rows computed.
    saved : float
        Estimated seconds for computing the hits, minus the seconds that the cache itself took.
    stored : int
        The hits that were taken from disk.
    """

    hits: int = 0
    misses: int = 0
    saved: float = 0.0
    stored: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.hits + other.hits,
            self.misses + other.misses,
            self.saved + other.saved,
            self.stored + other.stored,
        )
