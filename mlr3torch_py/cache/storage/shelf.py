"""Rows that outlive a training: what a cached network takes from a store on disk, and puts there."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from mlr3torch_py.cache.identity.code import Code
from mlr3torch_py.cache.identity.portable import NotPortableError
from mlr3torch_py.cache.rows.output import name_of_device
from mlr3torch_py.cache.rows.rounding import float32_modes
from mlr3torch_py.cache.storage.disk import Disk
from mlr3torch_py.network.bits import as_bytes
from mlr3torch_py.warn import warn

if TYPE_CHECKING:
    from mlr3torch_py.cache.passes.module import CachedModule
    from mlr3torch_py.cache.rows.keys import Keys
    from mlr3torch_py.cache.rows.output import RowSpec
    from mlr3torch_py.cache.storage.layout import Layout
    from mlr3torch_py.cache.trials.admission import Request

__all__ = ["KEY_BYTES", "MARK", "RECORDS", "ROWS", "Shelf", "ShelvedRows"]

logger: logging.Logger = logging.getLogger("mlr3torch_py")

_N_COMPARED: Final = 2
KEY_BYTES: Final = 16
ROWS: Final = b"r"
RECORDS: Final = b"p"
MARK: Final = 255  # in place of the position of a tensor in the output
_SECONDS_BETWEEN_WRITES: Final = 1.0
_MAX_WAITING: Final = 2**26
_SECONDS_UNTIL_USED_AGAIN: Final = 3600


class ShelvedRows:
    """The rows on disk of the calls that have one layout.

    Parameters
    ----------
    shelf : Shelf
    key : bytes
        A hash of what computes the rows.
    stage : CachedModule
        What computes them.
    here : torch.device
        Where the input is.

    Attributes
    ----------
    name : str
        What computes them, for people.
    waiting : dict of bytes to bytes
        What is not written yet.
    """

    def __init__(self, shelf: Shelf, key: bytes, stage: CachedModule, here: torch.device) -> None:
        self._shelf, self._stage, self._here = shelf, stage, here
        self.key: bytes = key
        self.name: str = f"{stage.name} ({type(stage.module).__name__})"
        self.waiting: dict[bytes, bytes] = {}
        self._is_distrusted = False
        self._own: list[bytes] = []
        self._written_at = 0.0
        self._written = ""  # of the outputs

    @property
    def precision(self) -> float:
        """The relative error that storing brings; 0 if it is exact."""
        return 0.0 if self._shelf.dtype is None else torch.finfo(self._shelf.dtype).eps

    def find(self, keys: Sequence[bytes], complete: Keys) -> list[int]:
        """List the rows that must be computed: those that are not on disk, and some that are drawn to be compared.

        Parameters
        ----------
        keys : sequence of bytes
        complete : Keys
            The keys of rows that need not be computed, to which those that are on disk wherever they were asked for
            are added.
        """
        unknown = complete.lacking(keys)
        if not unknown or self._is_distrusted:
            return unknown
        marks = self._shelf.disk.get(self._places(MARK, [keys[i] for i in unknown]))
        found = [i for i, mark in zip(unknown, marks, strict=True) if mark is not None]
        complete.add(keys[i] for i in found)
        missing = set(unknown).difference(found)
        if found and self.key not in self._shelf.drawn:
            drawn = _drawn(found)
            self._shelf.drawn[self.key] = frozenset(keys[i] for i in drawn)
            missing.update(drawn)
        return sorted(missing)

    def load(self, index: int, row: RowSpec, keys: Sequence[bytes]) -> tuple[list[int], torch.Tensor | None]:
        """Read rows of one tensor of the output.

        Returns
        -------
        tuple of list of int and torch.Tensor
            Which of the keys were found, and their rows.
        """
        if self._is_distrusted or not keys:
            return [], None
        n_bytes = prod(row.shape) * (self._stored(row.dtype)).itemsize
        values = self._shelf.disk.get(self._places(index, keys))
        found = [i for i, value in enumerate(values) if value is not None and len(value) == n_bytes]
        if not found:
            return [], None
        joined = bytearray().join(value for i in found if (value := values[i]) is not None)
        with torch.inference_mode(False):
            rows = torch.frombuffer(joined, dtype=torch.uint8).view(self._stored(row.dtype))
            return found, row.empty(len(found)).copy_(rows.reshape(len(found), *row.shape))

    def put(self, index: int, row: RowSpec, keys: Sequence[bytes], rows: torch.Tensor) -> set[bytes]:
        """Keep rows, until they are written; return the keys of those that are kept."""
        if not (keys and prod(row.shape)) or self._is_distrusted or self._shelf.is_full:
            return set()
        stored = rows.detach().to(self._stored(row.dtype))
        fits = [True] * len(keys)
        if stored.dtype is not rows.dtype:
            is_finite = (stored.isfinite() == rows.isfinite()).reshape(len(keys), -1)
            fits = is_finite.all(1).tolist()
        table = as_bytes(stored).reshape(len(keys), -1).cpu().numpy()
        drawn = self._shelf.drawn.get(self.key, frozenset())
        new = {key: i for i, key in enumerate(keys) if fits[i] and key not in drawn}
        self._keep({place: table[i].tobytes() for place, i in zip(self._places(index, new), new.values(), strict=True)})
        return set(new)

    def mark(self, keys: Iterable[bytes]) -> None:
        """Note that rows are kept wherever they were asked for."""
        if not (self._is_distrusted or self._shelf.is_full):
            self._keep(dict.fromkeys(self._places(MARK, keys), b""))

    def must_compare(self, index: int) -> bool:
        """Whether no row of a tensor was compared yet with what is computed now."""
        return (self.key, index) not in self._shelf.compared

    def note_compared(self, index: int) -> None:
        """Note that rows are what is computed now."""
        self._shelf.compared.add((self.key, index))

    def distrust(self) -> None:
        """Drop all rows, on disk, too, since they are not what is computed now."""
        self.drop()
        warn(
            f"frozen_cache: rows of {self.name} in the store {self._shelf.disk.path.parent} are not what it computes "
            "now, so they are dropped; leave out `store` if what it computes depends on something outside of it"
        )

    def drop(self) -> None:
        """Drop all rows, on disk, too, and keep no others."""
        self.discard()
        self._is_distrusted = True
        self._shelf.compared = {pair for pair in self._shelf.compared if pair[0] != self.key}
        with suppress(Exception):  # what cannot be deleted is compared by whoever reads it
            self._shelf.disk.delete(
                [*self._shelf.disk.keys(RECORDS + self.key), *self._shelf.disk.keys(ROWS + self.key)]
            )

    def drop_own(self) -> None:
        """Drop the rows that this training has put there."""
        self.discard()
        with suppress(Exception):
            self._shelf.disk.delete(self._own)
        self._own.clear()

    def discard(self) -> None:
        """Forget what is not written yet."""
        self._shelf.n_waiting -= sum(map(len, self.waiting.values()))
        self.waiting.clear()

    def take_waiting(self) -> dict[bytes, bytes]:
        """Return what is not written yet, which is not waiting any more."""
        taken = dict(self.waiting)
        self.discard()
        self._own += taken
        return taken

    def recall(self, layout: Layout) -> bool:
        """Let a layout know what it is, from a training of a network with the same code; return whether one has."""
        (value,) = self._shelf.disk.get([self._record_key])
        if value is None:
            return False
        try:
            record = json.loads(value)
            layout.recall_outputs(record["outputs"], self._here)
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        self._written, self._written_at = json.dumps(record["outputs"]), record["used"]
        self._stage.seconds_per_row = min(self._stage.seconds_per_row, record["seconds_per_row"])
        return True

    def record(self, layout: Layout) -> dict[bytes, bytes]:
        """Return what is to be written of a layout beside its rows, if that has changed."""
        try:
            outputs = layout.described_outputs(self._here)
        except NotPortableError:
            return {}
        now = time.time()
        described = json.dumps(outputs)
        if described == self._written and now - self._written_at < _SECONDS_UNTIL_USED_AGAIN:
            return {}
        self._written, self._written_at = described, now
        record = {
            "name": self.name,
            "used": now,
            "outputs": outputs,
            "dtype": str(self._shelf.dtype or ""),
            "seconds_per_row": self._stage.seconds_per_row,
        }
        return {self._record_key: json.dumps(record).encode()}

    @property
    def _record_key(self) -> bytes:
        return RECORDS + self.key + self._shelf.network

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which rows are on disk."""
        half = self._shelf.dtype
        return half if half is not None and dtype in {torch.float32, torch.float64} else dtype

    def _places(self, index: int, keys: Iterable[bytes]) -> list[bytes]:
        start = ROWS + self.key + index.to_bytes(1, "big")
        return [start + key for key in keys]

    def _keep(self, values: dict[bytes, bytes]) -> None:
        self.waiting.update(values)
        self._shelf.n_waiting += sum(map(len, values.values()))


@dataclass
class Shelf:
    """The rows on disk of a cached network.

    Parameters
    ----------
    disk : Disk
    module : torch.nn.Module
        The network.
    dtype : torch.dtype, optional
        In which rows are on disk, if that is coarser than they are.

    Attributes
    ----------
    is_full : bool
        Whether nothing more can be written.
    is_kept : bool
        Whether training is over, so that new rows are written at once.
    n_waiting : int
        The bytes that are not written yet.
    drawn : dict of bytes to frozenset of bytes
        By the key of what computes them, the keys of rows that are computed though they are on disk, to compare them.
    compared : set of tuple of bytes and int
        The tensors of which rows were compared, so that all of them may be used.
    """

    disk: Disk
    module: nn.Module
    dtype: torch.dtype | None = None
    is_full: bool = False
    is_kept: bool = False
    n_waiting: int = 0
    drawn: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    compared: set[tuple[bytes, int]] = field(default_factory=set)
    network: bytes = b""
    _layouts: list[Layout] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    _written_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        # What a network does with an output, such as writing into it, is known for its code alone.
        try:
            self.network = _hash(Code.of(self.module).digest)[:8]
        except NotPortableError:
            self.network = secrets.token_bytes(8)

    def place(self, layout: Layout, request: Request, stage: CachedModule) -> bool:
        """Give a layout its rows on disk, if other processes can tell what computes them.

        Returns
        -------
        bool
            Whether everything about the layout was known, so that its calls need not be tried.
        """
        try:
            key = self._key(request, stage)
        except NotPortableError as error:
            self._tell(stage, error)
            return False
        if key is None:
            return False
        layout.shelved = ShelvedRows(self, key, stage, request.call.device)
        self._layouts.append(layout)
        return layout.is_new and layout.shelved.recall(layout)

    def is_due(self) -> bool:
        """Whether it is time to write."""
        is_time = time.monotonic() - self._written_at > _SECONDS_BETWEEN_WRITES
        return bool(self.n_waiting and is_time) or self.n_waiting > _MAX_WAITING

    def write(self) -> None:
        """Write everything that is waiting."""
        self._layouts = [layout for layout in self._layouts if not layout.is_dropped]
        values: dict[bytes, bytes] = {}
        for layout in self._layouts:
            if layout.shelved is not None and not layout.is_new:
                waiting = layout.shelved.take_waiting()
                values |= waiting | layout.shelved.record(layout)
        self._written_at = time.monotonic()
        if values and not self.is_full and (why := self.disk.put(values)):
            self.is_full = True
            warn(
                f"frozen_cache: the store {self.disk.path.parent} keeps no more rows: {why}; training continues "
                "without; raise `max_store_bytes`, make room on the disk, or drop rows by frozen_store(...).prune()"
            )

    def _key(self, request: Request, stage: CachedModule) -> bytes | None:
        """Hash everything that the rows depend on but the content of their inputs.

        Of devices, the kind counts, and whether they are that of the input.
        """
        layout: Any = request.layout
        (pattern, (modes, is_grad_enabled, autocast)), (shared, repetitions) = layout
        if any(reference.answer.layout.shelved is None for reference in request.call.references):
            return None
        here = request.call.device
        tensors = *stage.module.parameters(), *stage.module.buffers()
        devices = sorted({name_of_device(tensor.device, here) for tensor in tensors})
        arguments = _with_named_devices((pattern, tuple(map(_input_of, shared))), here)
        seen = [modes[i] for i in stage.code.moded], is_grad_enabled if stage.code.sees_grad_mode else None, autocast
        operation = getattr(stage.module, "operation", None)
        parts = stage.digest, getattr(operation, "identity", ""), devices, arguments, repetitions, seen
        return _hash(repr((*parts, str(self.dtype or ""), _settings_of_torch(here.type))))

    def _tell(self, stage: CachedModule, error: NotPortableError) -> None:
        logger.info("frozen_cache: rows of %s are not stored: no other process can tell %s", stage.name, error)
        if not stage.is_link and stage.name not in self._told:
            self._told.add(stage.name)
            warn(
                f"frozen_cache: rows of {stage.name} are kept in memory alone, as no other process can tell {error}; "
                "use functions and classes of a file, and plain values"
            )


def _input_of(one: Any) -> Any:
    """Describe what the rows of an argument share, by what computes it if it is an output."""
    layout = one[0] if isinstance(one, tuple) else None
    shelved = getattr(layout, "shelved", None)
    return one if shelved is None else (shelved.key, one[1])


def _with_named_devices(value: Any, here: torch.device) -> Any:
    if isinstance(value, torch.device):
        return name_of_device(value, here)
    return tuple(_with_named_devices(one, here) for one in value) if type(value) is tuple else value


def _settings_of_torch(kind: str) -> tuple[Any, ...]:
    """List what the results of torch on a kind of device depend on besides its version."""
    return torch.get_default_dtype(), float32_modes(kind), torch.are_deterministic_algorithms_enabled()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _drawn(rows: Sequence[int]) -> list[int]:
    # From the system, since training and checkpoints depend on all other generators.
    return secrets.SystemRandom().sample(list(rows), min(_N_COMPARED, len(rows)))
