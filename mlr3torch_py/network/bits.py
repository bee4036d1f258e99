"""Tensors as bits: their bytes, content hashes and version counters."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128_digest

__all__ = [
    "as_array",
    "as_bytes",
    "buffer_hash",
    "content_hash",
    "has_bits",
    "has_parts",
    "is_freed",
    "parts",
    "version_of",
]

_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_OF_NUMPY = frozenset(
    [
        *(torch.float32, torch.float64, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ]
)


def has_bits(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values in memory: it is neither lazy nor sparse, on a real device, and was not freed.

    One of a class that decides about its operations has some if its parts are known, or if it can be read as bytes.
    """
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    if has_parts(tensor):
        return all(map(has_bits, parts(tensor)))
    return not is_freed(tensor) and (type(tensor).__torch_dispatch__ is _PLAIN_DISPATCH or _can_be_read(tensor))


def _can_be_read(tensor: torch.Tensor) -> bool:
    try:
        as_bytes(tensor)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def has_parts(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that keeps its values in other tensors."""
    return hasattr(tensor, "__tensor_flatten__")


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a tensor is made of: itself, or numbers and scales of one that is quantized.

    Examples
    --------
    >>> parts(torch.ones(1))
    [tensor([1.])]
    """
    if flatten := getattr(tensor, "__tensor_flatten__", None):
        names, _ = flatten()
        return [part for name in names for part in parts(getattr(tensor, name))]
    return [tensor.int_repr(), *_scales(tensor)] if tensor.is_quantized else [tensor]


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no values at the moment: its storage is too small for it.

    Examples
    --------
    >>> tensor = torch.zeros(2)
    >>> _ = tensor.untyped_storage().resize_(0)
    >>> is_freed(tensor)
    True
    """
    if type(tensor) not in _TENSORS:
        if is_lazy(tensor):
            return False
        if tensor.layout is torch.strided and has_parts(tensor):
            return any(map(is_freed, parts(tensor)))
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = tensor.numel() if tensor.is_contiguous() else 1 + sum((n - 1) * step for n, step in steps)
    return tensor.untyped_storage().nbytes() < (tensor.storage_offset() + span) * tensor.itemsize


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a strided tensor as bytes.

    Parameters
    ----------
    tensor : torch.Tensor

    Returns
    -------
    torch.Tensor
        Of dtype ``uint8``, one-dimensional; a view if the tensor is contiguous.

    Raises
    ------
    RuntimeError
        If it has no values in memory.

    Examples
    --------
    >>> as_bytes(torch.tensor([1, 2], dtype=torch.int16))
    tensor([1, 0, 2, 0], dtype=torch.uint8)
    """
    if is_freed(tensor):
        raise RuntimeError("the tensor has no values in memory")
    if tensor.is_quantized or has_parts(tensor):
        return torch.cat(list(map(as_bytes, parts(tensor))))
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the bytes of a strided tensor in an array of numpy: of its shape, or else of one dimension.

    Parameters
    ----------
    tensor : torch.Tensor

    Raises
    ------
    RuntimeError
        If it has no values in memory.

    Examples
    --------
    >>> as_array(torch.tensor([[1, 2]], dtype=torch.int16)), as_array(torch.tensor([1.0], dtype=torch.bfloat16))
    (array([[1, 2]], dtype=int16), array([128,  63], dtype=uint8))
    """
    if _is_usual(tensor) and not is_freed(tensor):
        array: np.ndarray[Any, Any] = tensor.detach().numpy()  # the same bytes, in fewer steps
        return array
    return as_bytes(tensor).cpu().numpy()


def _is_usual(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain one of a dtype that numpy has, on the CPU, and its memory holds its values."""
    is_plain = type(tensor) in _TENSORS and tensor.dtype in _OF_NUMPY and tensor.is_cpu
    return is_plain and tensor.layout is torch.strided and not tensor.is_neg()


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

    Raises
    ------
    RuntimeError
        If it has no values in memory.
    """
    if _is_usual(tensor) and tensor.is_contiguous():
        return _digest(tensor)  # the same, in fewer steps
    return _digest(as_bytes(tensor).cpu())


def _digest(tensor: torch.Tensor) -> bytes:
    """Hash the memory of a contiguous tensor in place; one that numpy has seen could not be resized any more."""
    address, size = tensor.data_ptr(), tensor.nbytes
    end = tensor.storage_offset() * tensor.itemsize + size
    if size and (not address or tensor.untyped_storage().nbytes() < end):
        raise RuntimeError("the tensor has no values in memory")
    return xxh3_128_digest((ctypes.c_char * size).from_address(address))


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
