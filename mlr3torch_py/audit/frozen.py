"""FrozenTensors: what is frozen in a network at one time, to be compared with what it is later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from mlr3torch_py.audit.report import AuditReport, Stretch
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.network.bits import as_bytes, has_bits, parts
from mlr3torch_py.network.evaluation import frozen_modules, pinned_modules
from mlr3torch_py.network.normalisation import is_normalisation, plain_statistics
from mlr3torch_py.network.parameters import can_train, frozen_by_us
from mlr3torch_py.network.unwrap import named_modules, named_parameters

__all__ = ["FrozenTensor", "FrozenTensors", "named_tensors"]


@dataclass(slots=True)
class FrozenTensor:
    """A parameter that is frozen, or a buffer or a plain statistic of a part that is frozen as a whole.

    Parameters
    ----------
    names : tuple of str
        All names of the tensor.
    tensor : torch.Tensor
    module : torch.nn.Module
        That holds it.
    kept : torch.Tensor
        The bytes that it had.
    since : int
        The first training batch after that.
    is_pinned : bool
        Whether its module is pinned in eval mode.
    advice : str
        Which option of a freezing callback pins its module in eval mode, or how to have it pinned; empty for a
        parameter of a module that is not frozen as a whole.
    place : str
        What stands before its names in messages.
    forward_writes : set of str
        The modes, "train" and "eval", of its module in which a forward pass was seen to write it.
    """

    names: tuple[str, ...]
    tensor: torch.Tensor
    module: nn.Module
    kept: torch.Tensor
    since: int
    is_pinned: bool
    advice: str
    stretch: Stretch
    place: str = ""
    forward_writes: set[str] = field(default_factory=set)
    before_forward: torch.Tensor | None = None

    @property
    def label(self) -> str:
        return self.place + self.names[0]

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.tensor, nn.Parameter)

    @property
    def must_stay(self) -> bool:
        """Whether it is an error if it moves.

        What is no buffer may be anything, and what a forward pass writes in eval mode, such as a table, no pin stops.
        """
        is_buffer = self.names[0].rpartition(".")[2] in self.module._buffers
        return self.is_parameter or (self.is_pinned and is_buffer and self.forward_writes != {"eval"})


class FrozenTensors:
    """The frozen tensors of a network, as they are now.

    Parameters
    ----------
    network : torch.nn.Module
        Wrapped or not.
    freezing : sequence of FreezingCallback
        The freezing callbacks of the net.
    report : AuditReport
    before : FrozenTensors, optional
        What was frozen until now.
    epoch, batch : int
        The current epoch, and the first training batch from now on.
    sample : int, optional
        How many values of each tensor are compared; all if missing.
    with_buffers : bool
        Whether buffers are compared too.
    place : str
        What stands before names in messages and in the report.
    """

    def __init__(
        self,
        network: nn.Module,
        freezing: Sequence[FreezingCallback],
        report: AuditReport,
        before: FrozenTensors | None,
        *,
        epoch: int,
        batch: int,
        sample: int | None,
        with_buffers: bool,
        place: str = "",
    ) -> None:
        self.held: frozenset[str] = frozen_by_us(network)
        self.tensors: list[FrozenTensor] = []
        self._freezing, self._report = freezing, report
        self._sample, self._place = sample, place
        self._whole = frozenset(_frozen_as_a_whole(network) if with_buffers else ())
        self._keep_new(network, epoch, batch)
        known = {one.names: one for one in before.tensors} if before is not None else {}
        for one in self.tensors:
            old = known.get(one.names)
            if old is not None and old.tensor is one.tensor and old.is_pinned is one.is_pinned:
                one.forward_writes = old.forward_writes
        report.close_all_but((one.stretch for one in self.tensors), place)

    def _keep_new(self, network: nn.Module, epoch: int, batch: int, *, buffers_only: bool = False) -> None:
        """Keep what is frozen and has not been kept yet, to compare it from this batch on."""
        known = {name for one in self.tensors for name in one.names}
        modules, whole = dict(named_modules(network)), _frozen_as_a_whole(network)
        found = _frozen(network, {path: one for path, one in whole.items() if path in self._whole})
        new = [(names, tensor) for names, tensor in found if known.isdisjoint(names)]
        if buffers_only:
            new = [(names, tensor) for names, tensor in new if not isinstance(tensor, nn.Parameter)]
        if not new:
            return
        pinned = {id(one) for one in pinned_modules(network).values()}
        held = [(callback, frozen_modules(network, callback.held_)) for callback in self._freezing]
        for names, tensor in new:
            path, kept = _path(names[0]), self._bits(tensor).clone()
            labels, n_values = tuple(self._place + name for name in names), len(self._compared(tensor.numel()))
            self.tensors.append(
                FrozenTensor(
                    names,
                    tensor,
                    modules[path],
                    kept,
                    since=batch,
                    is_pinned=id(modules[path]) in pinned,
                    advice=_advice(path, modules[path], held) if path in whole else "",
                    stretch=self._report.stretch(labels, n_values, epoch, self._place),
                    place=self._place,
                )
            )

    def moved(self, network: nn.Module, epoch: int, batch: int) -> list[FrozenTensor]:
        """Compare all tensors with what they were, and return those that differ by a bit after a batch.

        Buffers that frozen parts have got since then are kept, to be compared from now on; those of another shape too,
        which are tables made for what came in, and no statistics.
        """
        if released := self.released(network):  # in the middle of an epoch
            whole = _frozen_as_a_whole(network)
            frozen = (one for one in self.tensors if not any(one is other for other in released))
            self.tensors = [one for one in frozen if one.is_parameter or _path(one.names[0]) in whole]
        now, found = named_tensors(network), []
        for one in self.tensors:
            has_moved = self._differs(one, now, one.kept)
            one.stretch.compared(epoch, has_moved)
            tensor = now.get(one.names[0])
            if has_moved and tensor is not None and _has_other_shape(one, tensor):
                one.tensor, one.kept, one.since = tensor, self._bits(tensor).clone(), batch + 1
            elif has_moved:
                found.append(one)
            else:
                one.since = batch + 1
        self._keep_new(network, epoch, batch + 1, buffers_only=True)
        return found

    def released(self, network: nn.Module) -> list[FrozenTensor]:
        """List the parameters that are trainable now although no freezing callback held them and released them."""
        now, held = named_parameters(network), self.held | frozen_by_us(network)
        found = (one for one in self.tensors if one.is_parameter and held.isdisjoint(one.names))
        return [one for one in found if (tensor := now.get(one.names[0])) is not None and tensor.requires_grad]

    def before_forward(self, network: nn.Module) -> None:
        """Note the values of all tensors immediately before a forward pass."""
        now = named_tensors(network)
        for one in self.tensors:
            tensor = now.get(one.names[0])
            if tensor is not None and has_bits(tensor):
                # Mostly they are those that are kept already.
                one.before_forward = self._bits(tensor).clone() if self._differs(one, now, one.kept) else one.kept

    def after_forward(self, network: nn.Module) -> None:
        """Note which tensors the forward pass has written."""
        now = named_tensors(network)
        for one in self.tensors:
            before, one.before_forward = one.before_forward, None
            if before is not None and self._differs(one, now, before):
                one.forward_writes.add("train" if one.module.training else "eval")

    def _differs(self, one: FrozenTensor, now: Mapping[str, torch.Tensor], kept: torch.Tensor) -> bool:
        tensor = now.get(one.names[0])
        if tensor is None or not has_bits(tensor):
            return one.must_stay
        return not _are_equal(self._bits(tensor).to(kept.device), kept)

    def _bits(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the values, or a sample of them, as bytes, so that NaN equals itself and -0.0 not 0.0."""
        if self._sample is None:
            return as_bytes(tensor)
        return torch.cat([as_bytes(self._sampled(part.detach().reshape(-1))) for part in parts(tensor)])

    def _sampled(self, values: torch.Tensor) -> torch.Tensor:
        step = self._compared(len(values)).step
        return values[torch.arange(0, len(values), step, device=values.device)]

    def _compared(self, n: int) -> range:
        """Return which of so many values are compared."""
        return range(0, n, 1 if self._sample is None else max(1, -(-n // self._sample)))


def named_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters, buffers and plain statistics of a network by their names."""
    return {**named_parameters(network), **_named_buffers(network)}


def _named_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{name}".strip("."): tensor
        for path, module in named_modules(network)
        for name, tensor in (*module._buffers.items(), *plain_statistics(module).items())
        if tensor is not None
    }


def _frozen_as_a_whole(network: nn.Module) -> dict[str, nn.Module]:
    tensors = named_parameters(network)
    frozen = {name for name, tensor in tensors.items() if not tensor.requires_grad and can_train(tensor)}
    return frozen_modules(network, frozen)


def _frozen(network: nn.Module, whole: Mapping[str, nn.Module]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yield each frozen parameter, and each buffer of frozen parts, with all of its names."""
    parameters = ((name, one) for name, one in named_parameters(network).items() if not one.requires_grad)
    buffers = _by_tensor(_named_buffers(network).items()) if whole else ()
    for names, tensor in (*_by_tensor(parameters), *buffers):
        is_frozen = isinstance(tensor, nn.Parameter) or all(_path(name) in whole for name in names)
        if is_frozen and has_bits(tensor):
            yield names, tensor


def _by_tensor(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    groups: dict[int, tuple[list[str], torch.Tensor]] = {}
    for name, tensor in named:
        groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return ((tuple(names), tensor) for names, tensor in groups.values())


def _has_other_shape(one: FrozenTensor, tensor: torch.Tensor) -> bool:
    return not one.is_parameter and tensor.shape != one.tensor.shape and has_bits(tensor)


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _are_equal(bits: torch.Tensor, kept: torch.Tensor) -> bool:
    """Compare bytes, eight at a time since that is faster."""
    whole = len(bits) // 8 * 8
    if len(bits) != len(kept) or bits.storage_offset() % 8:
        return torch.equal(bits, kept)
    eights = bits[:whole].view(torch.int64), kept[:whole].view(torch.int64)
    return torch.equal(*eights) and torch.equal(bits[whole:], kept[whole:])


def _advice(path: str, module: nn.Module, parts: Iterable[tuple[FreezingCallback, Mapping[str, nn.Module]]]) -> str:
    """Name the option that pins a module of a frozen part in eval mode, or say how to have it pinned."""
    is_norm = is_normalisation(module)
    holding = [callback for callback, modules in parts if path in modules]
    if not holding:
        return 'hold its part by a Freezer with frozen_mode="eval", since no callback of the net does'
    callback = next((one for one in holding if one.modes[not is_norm] == "eval"), holding[0])
    special = "frozen_norm" if is_norm else "frozen_dropout"
    who, mode, own = type(callback).__name__, callback.frozen_mode, getattr(callback, special)
    if callback.modes[not is_norm] == "eval":
        return f'{special if own else "frozen_mode"}="eval" of {who}'
    steps = ['set frozen_mode="eval"'] * (mode != "eval") + [f'leave out {special}="train"'] * (own is not None)
    return f"{' and '.join(steps)} of {who}"
