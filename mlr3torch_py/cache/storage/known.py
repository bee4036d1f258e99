"""What is known about the calls of one module, and the rows that they gave."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Set
from typing import Final

import torch
from xxhash import xxh3_128_hexdigest

from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.storage.layout import Layout

__all__ = ["Known"]

_MAX_LAYOUTS: Final = 1000


class Known:
    """The layouts of the calls of one module.

    Parameters
    ----------
    identity : str
        What tells the module from others of the network, in each process.

    Examples
    --------
    >>> known, call = Known("encoder"), Call((torch.ones(3, 2),), {})
    >>> known.find("kind")
    >>> layout, is_recalled = known.make("kind", call)
    >>> known.find("kind") is layout, is_recalled
    (True, False)
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._layouts: dict[Hashable, Layout] = {}
        self._answered: dict[Hashable, Layout] = {}
        self._recalled: dict[str, Layout] = {}  # of a checkpoint, and not asked for since

    @property
    def layouts(self) -> Iterable[Layout]:
        """Those with rows."""
        return [
            one for one in (*self._layouts.values(), *self._recalled.values()) if not (one.is_new or one.is_dropped)
        ]

    @property
    def n_remembered(self) -> int:
        """The number of rows that were known when the epoch began, where calls were made since."""
        return sum(source.n_remembered for layout in self._layouts.values() for source in layout.sources)

    @property
    def has_recalled(self) -> bool:
        """Whether there are rows of a checkpoint that were not asked for since."""
        return bool(self._recalled)

    def find(self, kind: Hashable) -> Layout | None:
        """Return the layout of calls of some kind, if there were any."""
        layout = self._layouts.get(kind)
        return None if layout is None or layout.is_dropped else layout

    def make(self, kind: Hashable, call: Call) -> tuple[Layout, bool]:
        """Return the layout of the first call of some kind, and whether it comes from a checkpoint."""
        if len(self._layouts) > _MAX_LAYOUTS:
            self.drop()
        digest = xxh3_128_hexdigest(repr((self._identity, kind)).encode())
        layout = self._recalled.pop(digest, None)
        if is_recalled := layout is not None and not layout.is_dropped:
            self._layouts[kind] = layout
            return layout, is_recalled
        parents = [reference.answer.layout for reference in call.references]
        modes = torch.is_grad_enabled(), call.autocast_dtype
        self._layouts[kind] = layout = Layout(digest, parents, has_rows=call.has_rows, modes=modes)
        return layout, False

    def recall(self, layouts: dict[str, Layout]) -> None:
        """Take the layouts of a checkpoint, by digest."""
        self._recalled = layouts

    def repeated(self, step: Hashable) -> Layout | None:
        """Return the layout of a call that was answered before with nothing to compute, by what it is given."""
        layout = self._answered.get(step)
        return None if layout is None or layout.is_dropped else layout

    def note_answered(self, step: Hashable, layout: Layout) -> None:
        """Note the layout of a call that was answered with nothing to compute."""
        self._answered[step] = layout

    def forget_answered(self) -> None:
        """Forget which calls were answered."""
        self._answered.clear()

    def end_epoch(self, used_epochs: Set[int] | None) -> None:
        """Drop rows that cannot be asked for any more, and stale ones; see `Table.end_epoch`."""
        self._layouts = {key: layout for key, layout in self._layouts.items() if not layout.is_dropped}
        self._recalled = {key: layout for key, layout in self._recalled.items() if not layout.is_dropped}
        self._answered = {step: layout for step, layout in self._answered.items() if not layout.is_dropped}
        for layout in self.layouts:
            layout.end_epoch(used_epochs)

    def drop(self) -> None:
        """Forget all of it."""
        for layout in [*self._layouts.values(), *self._recalled.values()]:
            layout.drop()
        self._recalled.clear()
        self._layouts.clear()
        self._answered.clear()
