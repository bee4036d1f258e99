"""Tensors as bits: their bytes, content hashes and version counters."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128_digest

__all__ = ["as_bytes", "buffer_hash", "content_hash", "has_bits", "version_of"]

_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


def has_bits(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values in memory of its own: it is neither lazy nor sparse, and on a real device."""
    return not is_lazy(tensor) and tensor.layout is torch.strided and not tensor.is_meta


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a strided tensor as bytes.

    Parameters
    ----------
    tensor : torch.Tensor

    Returns
    -------
    torch.Tensor
        Of dtype ``uint8``, one-dimensional; a view if the tensor is contiguous.

    Examples
    --------
    >>> as_bytes(torch.tensor([1, 2], dtype=torch.int16))
    tensor([1, 0, 2, 0], dtype=torch.uint8)
    """
    if tensor.is_quantized:
        return torch.cat([as_bytes(tensor.int_repr()), *map(as_bytes, _scales(tensor))])
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _scales(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of a quantized tensor, and its zero points."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch.tensor(tensor.q_scale()), torch.tensor(tensor.q_zero_point())
    return tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()


def content_hash(tensor: torch.Tensor) -> bytes:
    """Compute a 128-bit hash of the values of a tensor.

    Parameters
    ----------
    tensor : torch.Tensor
        Strided, on any device.

    Returns
    -------
    bytes
    """
    is_usual = type(tensor) in _TENSORS and tensor.dtype is torch.float32 and tensor.device.type == "cpu"
    if is_usual and tensor.layout is torch.strided and tensor.is_contiguous() and not tensor.is_neg():
        return xxh3_128_digest(tensor.detach().numpy().data)  # the same, in fewer steps
    return xxh3_128_digest(as_bytes(tensor).cpu().numpy().data)


def buffer_hash(value: object) -> bytes | None:
    """Compute a hash of the bytes of an array of numpy or Python, or the like; None for what has none to be written.

    Examples
    --------
    >>> buffer_hash(bytearray(b"row")) == buffer_hash(bytearray(b"row")), buffer_hash("row")
    (True, None)
    """
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # ValueError for what has no such format, as dates of numpy
        return None
    if view.readonly and not _can_be_written(value):
        return None
    return xxh3_128_digest(view if view.c_contiguous else view.tobytes())


def _can_be_written(value: object) -> bool:
    """Whether an array is a view of one that can be written."""
    base = getattr(value, "base", None)
    return isinstance(base, np.ndarray) and (base.flags.writeable or _can_be_written(base))


def version_of(tensor: torch.Tensor) -> int | None:
    """Return the version counter of a tensor; None for inference tensors, which have none."""
    return None if tensor.is_inference() else tensor._version
