"""What the audit says about tensors that moved although they are frozen: the likely cause, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from mlr3torch_py.audit.frozen import FrozenTensor, named_tensors
from mlr3torch_py.names import listed
from mlr3torch_py.network.normalisation import is_normalisation
from mlr3torch_py.network.parameters import frozen_by_us

__all__ = ["describe_changes", "describe_moving_buffers"]


def describe_changes(changed: Iterable[FrozenTensor], network: nn.Module, batch: int) -> str:
    """Say which tensors changed although they must not, in which batches, and why.

    Parameters
    ----------
    changed : iterable of FrozenTensor
    network : torch.nn.Module
        As it is now.
    batch : int
        The last training batch.

    Returns
    -------
    str
    """
    now, held_now = named_tensors(network), frozen_by_us(network)

    def cause(one: FrozenTensor) -> str:
        tensor = now.get(one.names[0])
        if tensor is None:
            return "the network no longer has a tensor of that name"
        if not one.is_parameter:
            return _cause_of_pinned(one)
        return (
            _cause_in_forward(one, is_certain=True)
            or _cause_in_flags(tensor, held_now >= set(one.names))
            or _cause_in_forward(one, is_certain=False)
            or ("another tensor has taken its place" if tensor is not one.tensor else "")
            or f"something wrote into it, such as {_own_modes(one)}a callback, an average of weights, "
            "or the loading of a file"
        )

    return _grouped(changed, lambda one: (f"changed while frozen, in batches {one.since} to {batch}", cause(one)))


def describe_moving_buffers(moving: Iterable[FrozenTensor], batch: int) -> str:
    """Say which buffers move in frozen parts, and which option stops it, if one does.

    Parameters
    ----------
    moving : iterable of FrozenTensor
    batch : int
        The last training batch.

    Returns
    -------
    str
    """

    def advice(one: FrozenTensor) -> str:
        if "eval" in one.forward_writes:
            return 'the network\'s own forward writes it even in eval mode, so that frozen_mode="eval" does not stop it'
        if one.forward_writes and is_normalisation(one.module):
            return f"the network's own forward writes it; to keep it as it is, {one.advice}"
        cause = "the network's own forward" if one.forward_writes else "something"
        return f"{cause} writes it; if it does so in training mode only, {one.advice}"

    return _grouped(moving, lambda one: (f"moved in a frozen part, in batches {one.since} to {batch}", advice(one)))


def _cause_of_pinned(one: FrozenTensor) -> str:
    if "train" in one.forward_writes:
        return "its module ran in training mode, since something removed the pin"
    return "its module ran in training mode, or something wrote into it"


def _cause_in_forward(one: FrozenTensor, *, is_certain: bool) -> str:
    max_norm = getattr(one.module, "max_norm", None) if one.names[0].rpartition(".")[2] == "weight" else None
    if is_certain is not bool(one.forward_writes) or (max_norm is None and not is_certain):
        return ""
    if max_norm is not None:
        what = f"its own forward writes it, by max_norm={max_norm!r} of the {type(one.module).__name__}"
        return f"{what}; set max_norm to None to keep it as it is"
    if one.is_pinned:
        return f"the network's own forward writes it all the same, though {one.advice} pins its module in eval mode"
    if "eval" in one.forward_writes or not one.advice:
        return "the network's own forward writes it, which freezing does not stop"
    return f"the network's own forward writes it; if it does so in training mode only, {one.advice}"


def _own_modes(one: FrozenTensor) -> str:
    """Name the methods that merge the weights of adapters into others, if the module has its own."""
    return "" if type(one.module).train is nn.Module.train else "its module's own train() or eval(), "


def _cause_in_flags(tensor: torch.Tensor, is_held: bool) -> str:
    if tensor.requires_grad and is_held:
        return "something set its requires_grad to True"
    if is_held and tensor.grad is not None:
        return "something gave it a gradient, by which the optimizer moves it"
    return ""


def _grouped(tensors: Iterable[FrozenTensor], say: Callable[[FrozenTensor], tuple[str, str]]) -> str:
    """Say once what holds for several tensors."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in tensors:
        names.setdefault(say(one), []).extend(one.place + name for name in one.names)
    return "; ".join(f"{listed(those)} {what}: {why}" for (what, why), those in names.items())
