"""Stopwatches for blocks of code, which may still be under way on a GPU when Python has left them."""

from __future__ import annotations

import math
from collections import deque
from time import perf_counter

import torch

__all__ = ["Pace", "Stopwatch"]


class Stopwatch:
    """Measure the wall-clock seconds of a ``with`` block.

    Parameters
    ----------
    device : torch.device, optional
        What works on it. CUDA then notes when it begins and ends, too, which nothing waits for.

    Attributes
    ----------
    seconds : float
        The duration in Python, once the block has ended.

    Examples
    --------
    >>> with Stopwatch() as watch:
    ...     total = sum(range(1000))
    >>> 0 < watch.seconds < 1
    True
    """

    __slots__ = ("_began", "_ended", "_start", "_stream", "seconds")

    def __init__(self, device: torch.device | None = None) -> None:
        is_queued = device is not None and device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if is_queued else None

    def __enter__(self) -> Stopwatch:
        self._began = None if self._stream is None else self._event(self._stream)
        self._start = perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds: float = perf_counter() - self._start
        self._ended = None if self._stream is None else self._event(self._stream)

    @property
    def is_done(self) -> bool:
        """Whether the device has done the work."""
        return self._ended is None or bool(self._ended.query())  # type: ignore[no-untyped-call]

    @property
    def seconds_on_device(self) -> float:
        """The duration on the device, once that has done the work."""
        if self._began is None or self._ended is None:
            return self.seconds
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1000

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stream.record_event(event)
        return event


class Pace:
    """The seconds per row of the fastest of several calls, as the device has noted them.

    Parameters
    ----------
    seconds_per_row : float
        What is known before.

    Examples
    --------
    >>> pace = Pace()
    >>> with Stopwatch() as watch:
    ...     total = sum(range(1000))
    >>> pace.note(watch, n_rows=10)
    >>> pace.seconds_per_row == watch.seconds / 10
    True
    """

    def __init__(self, seconds_per_row: float = math.inf) -> None:
        self._best = seconds_per_row
        self._calls: deque[tuple[Stopwatch, int]] = deque()  # which may be under way

    def note(self, watch: Stopwatch, n_rows: int) -> None:
        """Note a call."""
        self._calls.append((watch, max(1, n_rows)))
        while self._calls and self._calls[0][0].is_done:
            self._count_first()

    @property
    def seconds_per_row(self) -> float:
        """The seconds; only the first call is waited for."""
        while self._calls and (math.isinf(self._best) or self._calls[0][0].is_done):
            self._count_first()
        return self._best

    def _count_first(self) -> None:
        watch, n_rows = self._calls.popleft()
        self._best = min(self._best, watch.seconds_on_device / n_rows)
