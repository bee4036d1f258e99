"""What is known about calls that differ only in their rows, and the rows that they gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from mlr3torch_py.cache.errors import NotCacheableError
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.rows.keys import Keys, packed_keys, unpacked_keys
from mlr3torch_py.cache.rows.output import OutputSpec, device_named, name_of_device
from mlr3torch_py.cache.rows.rounding import largest_values
from mlr3torch_py.cache.storage.store import Budget, Table
from mlr3torch_py.network.internals import tree_leaves

if TYPE_CHECKING:
    from mlr3torch_py.cache.storage.shelf import ShelvedRows

__all__ = ["N_TRIALS", "Layout", "Relation", "relation_of"]

_NUMBERS: Final = count()
_REMEDY: Final = "let it return copies"
N_TRIALS: Final = 4  # after so many, all positions of a batch were tried

# How the memory of an output relates to that of the input: it is its own, or the output is the input itself, as it was
# or written in place, or a view of it.
Relation = Literal["new", "same", "written", "view"]


class Layout:
    """What is known about calls that differ only in the number and contents of their rows.

    Parameters
    ----------
    digest : str
        The same in each process for such calls.
    parents : iterable of Layout
        Those of the calls that gave the input.
    has_rows : bool
        Whether rows of the input are given by value.
    modes : tuple
        Whether gradients are enabled, and the dtype of autocast.

    Attributes
    ----------
    number : int
        Larger than those of its parents.
    sources : tuple of Layout
        Those among it and its ancestors to which rows were given by value.
    complete : Keys
        For a source, the rows that were kept wherever they were asked for, by key.
    n_remembered : int
        Their number when the epoch began; 0 once something was forgotten.
    n_tried : collections.Counter
        For each tensor of the output that was asked for, how many whole batches were computed, and so tried.
    largest_batch : int
        The rows of the largest batch that was tried.
    seen : set of int
        The tensors of the output that were asked for other than by one view of them.
    shelved : ShelvedRows or None
        The rows on disk, if there is a store.
    """

    def __init__(
        self,
        digest: str,
        parents: Iterable[Layout] = (),
        *,
        has_rows: bool = True,
        modes: tuple[bool, torch.dtype | None] = (True, None),
    ) -> None:
        self.digest = digest
        self.number: int = next(_NUMBERS)
        self.modes = modes
        self.parents: tuple[Layout, ...] = tuple(dict.fromkeys(parents))
        inherited: list[Layout] = [source for one in self.parents for source in one.sources]
        self.sources: tuple[Layout, ...] = tuple(dict.fromkeys([*inherited, self] if has_rows else inherited))
        self._children: list[Layout] = []
        self._tables: dict[int, Table] = {}
        self._geometry: dict[tuple[int, int], dict[str, Any]] = {}
        self._spec: OutputSpec | None = None
        self.largest: Sequence[float] = ()
        self.relation: Relation = "new"
        self.complete: Keys = Keys()
        self.n_remembered = 0
        self.n_tried: Counter[int] = Counter()
        self.largest_batch = 0
        self.seen: set[int] = set()
        self.gives_values: bool = False
        self.is_dropped: bool = False
        self.shelved: ShelvedRows | None = None
        for parent in self.parents:
            parent._children.append(self)

    def __repr__(self) -> str:
        return self.digest

    @property
    def is_new(self) -> bool:
        """Whether no output was seen yet."""
        return self._spec is None

    @property
    def spec(self) -> OutputSpec:
        """The spec of the output."""
        assert self._spec is not None
        return self._spec

    def packed(self) -> dict[str, Any]:
        """Return tensors and plain values of which `unpacked` makes the layout.

        Raises
        ------
        NotPortableError
            If files cannot hold its outputs.
        """
        return {
            "parents": [parent.digest for parent in self.parents],
            "has_rows": self in self.sources,
            "modes": self.modes,
            "spec": self.spec.packed(),
            "relation": self.relation,
            "largest": list(self.largest),
            "complete": packed_keys(self.complete),
            "n_tried": dict(self.n_tried),
            "largest_batch": self.largest_batch,
            "seen": sorted(self.seen),
            "tables": {i: table.packed() for i, table in self._tables.items()},
        }

    @classmethod
    def unpacked(cls, digest: str, packed: Mapping[str, Any], parents: Iterable[Layout], budget: Budget) -> Layout:
        """Make a layout of what `packed` returned.

        Raises
        ------
        RuntimeError, AssertionError
            If this machine lacks the device of the rows.
        """
        layout = cls(digest, parents, has_rows=packed["has_rows"], modes=tuple(packed["modes"]))
        layout._spec = OutputSpec.unpacked(packed["spec"])
        layout.relation, layout.largest = packed["relation"], packed["largest"]
        layout.complete = Keys(unpacked_keys(packed["complete"]))
        layout.n_tried.update(packed["n_tried"])
        layout.largest_batch = packed["largest_batch"]
        layout.seen.update(packed["seen"])
        try:
            for i, table in packed["tables"].items():
                layout.table(i, budget).recall(table)
        except BaseException:
            layout.drop()
            raise
        return layout

    def described_outputs(self, here: torch.device) -> dict[str, Any]:
        """Return what JSON holds, of which `recall_outputs` learns everything about the calls but their rows.

        Parameters
        ----------
        here : torch.device
            Where the input is.

        Raises
        ------
        NotPortableError
            If files cannot hold its outputs.
        """
        spec = self.spec.packed()
        spec["tensors"] = [
            (shape, str(dtype), name_of_device(torch.device(device), here), order)
            for shape, dtype, device, order in spec["tensors"]
        ]
        return {
            "spec": spec,
            "relation": self.relation,
            "largest": list(self.largest),
            "n_tried": {str(i): min(n, N_TRIALS) for i, n in self.n_tried.items()},
            "largest_batch": self.largest_batch,
            "seen": sorted(self.seen),
        }

    def recall_outputs(self, outputs: Mapping[str, Any], here: torch.device) -> None:
        """Learn what another process has learned, where the input may be on another device of the same kind."""
        tensors = [
            (shape, getattr(torch, dtype.partition(".")[2]), str(device_named(device, here)), order)
            for shape, dtype, device, order in outputs["spec"]["tensors"]
        ]
        spec = OutputSpec.unpacked({**outputs["spec"], "tensors": tensors})
        self.largest_batch = outputs["largest_batch"]
        self.relation, self.largest = outputs["relation"], outputs["largest"]
        self.n_tried.update({int(i): n for i, n in outputs["n_tried"].items()})
        self.seen.update(outputs["seen"])
        self._spec = spec

    @property
    def tables(self) -> Iterable[Table]:
        """The rows, for each tensor of the output that was asked for."""
        return self._tables.values()

    def geometry(self, index: int, n_rows: int) -> dict[str, Any]:
        """Return the shape, strides, dtype and device of a tensor of the output."""
        found = self._geometry.get((index, n_rows))
        if found is None:
            row = self.spec.tensors[index]
            size, strides = (n_rows, *row.shape), row.strides(n_rows)
            found = {"size": size, "strides": strides, "dtype": row.dtype, "device": row.device}
            self._geometry[index, n_rows] = found
        return found

    def learn(self, output: object, n_rows: int, relation: Relation) -> None:
        """Take the spec from an output."""
        self._spec, self.relation = OutputSpec.of(output, n_rows), relation
        self.largest = largest_values(self._spec.tensors_of(output, n_rows))

    def table(self, index: int, budget: Budget) -> Table:
        """Return the rows of a tensor of the output."""
        table = self._tables.get(index)
        if table is None:
            with torch.inference_mode(False):
                table = self._tables[index] = Table(self.spec.tensors[index], budget)
        return table

    def end_epoch(self, used_epochs: Set[int] | None = None) -> None:
        """Drop rows that were not used; see `Table.end_epoch`."""
        self._children = [child for child in self._children if not child.is_dropped]
        self.complete.pack()
        is_asked_for = not self._children and len(self.seen) == len(self.spec.tensors)
        self.gives_values = self.relation == "new" and is_asked_for
        for table in self.tables:
            if dropped := table.end_epoch(used_epochs):
                for source in self.sources:
                    # Where a row is made of several, it has another key than in its sources.
                    is_same = (source.complete.find(list(dropped)) >= 0).all()
                    source.complete.remove(dropped if is_same else list(source.complete))

    def drop(self) -> None:
        """Forget all rows, and those of the calls that were given the output."""
        self.is_dropped = True
        for source in self.sources:
            source.complete.clear()
            source.n_remembered = 0
        for table in self.tables:
            table.clear()
        self._tables.clear()
        if self.shelved is not None:
            self.shelved.discard()
        for child in self._children:
            child.drop()
        self._children.clear()

    def unstore(self, *, own: bool = False) -> None:
        """Drop all rows on disk, or those of this training, and those of the calls that were given the output."""
        if self.shelved is not None:
            (self.shelved.drop_own if own else self.shelved.drop)()
        for child in self._children:
            child.unstore(own=own)


def relation_of(call: Call, output: object, *, may_share: bool = True) -> Relation:
    """Find out whether an output is the input itself, or a view of it.

    Parameters
    ----------
    call : Call
    output : object
    may_share : bool
        Whether it may be.

    Raises
    ------
    NotCacheableError
        If it may not, if it is only partly, or one of several inputs, or if tensors of the output share memory.
    """
    inputs = {tensor.untyped_storage()._cdata for tensor in call.tensors}
    tensors = {id(leaf): leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)}
    outputs = [tensor for tensor in tensors.values() if tensor.layout is torch.strided]
    storages = [tensor.untyped_storage()._cdata for tensor in outputs]
    if len(set(storages)) < len(storages):
        raise NotCacheableError("it returns tensors that share memory with each other", _REMEDY)
    if inputs.isdisjoint(storages):
        return "new"
    is_alone = len(outputs) == len(call.tensors) == 1
    if not (may_share and is_alone) or (call.has_changed() and output is not call.tensors[0]):
        raise NotCacheableError("its output shares memory with its input", _REMEDY)
    if output is not call.tensors[0]:
        return "view"
    return "written" if call.has_changed() else "same"
