"""Hash the rows of a tensor on the device where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import torch
from torch.nn.functional import pad
from xxhash import xxh3_128_digest

from mlr3torch_py.network.bits import as_bytes, content_hash

__all__ = ["hash_rows", "hash_tensors"]

_N_FUNCTIONS: Final = 4  # of 32 bits each
_N_LEVELS: Final = 3  # enough for 2 TiB
_MAX_WORDS: Final = 2**15  # of a block
_BYTES_OF_BLOCK: Final = 4 * _MAX_WORDS
_BYTES_OF_HASH: Final = 4 * _N_FUNCTIONS
_MAX_BYTES: Final = 2**27  # of products, and of copies, that are in memory at a time
_LARGE: Final = 2**20  # below, copying takes no longer than starting the kernels


def hash_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Compute a 128-bit hash of each row, by integer arithmetic on the device of the tensor.

    Parameters
    ----------
    tensor : torch.Tensor
        Strided, with at least one dimension.

    Returns
    -------
    torch.Tensor
        Of dtype ``uint8`` and shape (n, 16), on the same device. Equal rows have equal hashes in every process.

    Notes
    -----
    A row of `n` bytes is padded by zeros to `k` signed words of 32 bits, ``s[0]`` to ``s[k - 1]``. Each of four
    functions gives the upper 32 bits of ``a[0] + a[1] * n + a[2] * s[0] + ... + a[k + 1] * s[k - 1]`` modulo ``2**64``,
    for multipliers ``a`` of 64 bits. This is the multilinear family of Carter and Wegman [1]_ in the form that Lemire
    and Kaser [2]_ have shown to be strongly universal: for random multipliers, two rows that differ in a word have
    equal values with probability ``2**-32``, and so equal values of all four functions with probability ``2**-128``.
    (All that the proof needs of words is that no power of two above ``2**31`` divides their difference.) The same holds
    for rows of different lengths below 4 GiB.

    A row of more than 128 KiB is split into blocks of one length. The hashes of its blocks, one after the other, are
    hashed again with other multipliers, the tree of Carter and Wegman [1]_, in at most three levels. So two different
    rows collide with probability at most ``3 * 2**-128``, and any two among `m` rows with at most
    ``1.5 * m**2 * 2**-128``: less than ``5e-21`` for a billion rows.

    The multipliers are the output of SHAKE-256 for a constant, which nobody can tell from random bits. The bound holds
    for rows that were not made with regard to it; it is no protection against an attacker.

    References
    ----------
    .. [1] Carter, J. L. and Wegman, M. N. (1979, 1981). Universal classes of hash functions. New hash functions and
       their use in authentication and set equality. Journal of Computer and System Sciences 18(2) and 22(3).
    .. [2] Lemire, D. and Kaser, O. (2014). Strongly universal string hashing is fast. The Computer Journal 57(11).

    Examples
    --------
    >>> one, other, again = hash_rows(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])).tolist()
    >>> one == again, one == other
    (True, False)
    """
    words, n_bytes = _words(tensor)
    for level in range(_N_LEVELS):
        n_rows, n_words = words.shape
        n_blocks = _n_blocks(n_words)
        blocks = _padded(words, n_blocks).reshape(n_rows * n_blocks, -(-n_words // n_blocks))
        words = _hash_blocks(blocks, n_bytes, level).reshape(n_rows, n_blocks * _N_FUNCTIONS)
        if n_blocks == 1:
            break
    return words.view(torch.uint8)


def hash_tensors(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """Compute a 128-bit hash of the values of each tensor.

    Large tensors on a GPU are hashed there, and small ones are copied, all together, so that Python waits only once.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Strided, on any devices.

    Examples
    --------
    >>> one, other, again = hash_tensors([torch.zeros(3), torch.ones(3), torch.zeros(3)])
    >>> one == again, one == other
    (True, False)
    """
    hashes: list[bytes] = [b"" if tensor.is_cuda else content_hash(tensor) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        there = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        for i, found in zip(there, _hashes_there([as_bytes(tensors[i]) for i in there]), strict=True):
            hashes[i] = found
    return hashes


def _hashes_there(tables: Sequence[torch.Tensor]) -> Iterator[bytes]:
    """Yield a hash of all bytes of each table; of a large one, of the hashes of its blocks and of what is left over."""
    sizes = [len(table) // _BYTES_OF_BLOCK * _BYTES_OF_BLOCK if len(table) >= _LARGE else 0 for table in tables]
    hashed = _hash_together([table[:size] for table, size in zip(tables, sizes, strict=True) if size])
    rest = torch.cat([table[size:] for table, size in zip(tables, sizes, strict=True)])
    crossed = torch.cat([*hashed, rest]).cpu().numpy().tobytes()
    of_blocks, of_rest = 0, len(crossed) - len(rest)
    for table, size in zip(tables, sizes, strict=True):
        blocks_end = of_blocks + size // _BYTES_OF_BLOCK * _BYTES_OF_HASH
        rest_end = of_rest + len(table) - size
        yield xxh3_128_digest(crossed[of_blocks:blocks_end] + crossed[of_rest:rest_end])
        of_blocks, of_rest = blocks_end, rest_end


def _hash_together(tables: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the hashes of the blocks of tables, of as many at once as may be copied."""
    waiting: list[torch.Tensor] = []
    for table in tables:
        if waiting and sum(map(len, waiting)) + len(table) > _MAX_BYTES:
            yield _hash_of_blocks(waiting)
            waiting = []
        waiting.append(table)
    if waiting:
        yield _hash_of_blocks(waiting)


def _hash_of_blocks(tables: Sequence[torch.Tensor]) -> torch.Tensor:
    together = torch.cat(list(tables)) if len(tables) > 1 else tables[0]
    return hash_rows(together.reshape(-1, _BYTES_OF_BLOCK)).reshape(-1)


def _padded(table: torch.Tensor, size: int) -> torch.Tensor:
    """Add zeros to the last dimension, if its size is no multiple of another one."""
    return pad(table, (0, -table.shape[-1] % size)) if table.shape[-1] % size else table


def _n_blocks(n_words: int) -> int:
    """Return the number of blocks of one length for a row: few, but up to twice as many where that needs no padding."""
    least = max(1, -(-n_words // _MAX_WORDS))
    return next((n for n in range(least, 2 * least + 1) if n_words % n == 0), least)


def _words(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return rows as words of 32 bits, and the number of bytes of a row."""
    n_rows = len(tensor)
    n_bytes = tensor.nbytes // max(1, n_rows)
    table = as_bytes(tensor).reshape(n_rows, n_bytes)
    table = _padded(table, 4)
    if table.storage_offset() % 4:
        table = table.clone()
    return table.reshape(-1).view(torch.int32).reshape(n_rows, table.shape[1] // 4), n_bytes


def _hash_blocks(blocks: torch.Tensor, n_bytes: int, level: int) -> torch.Tensor:
    """Apply the functions of a level to each block; int64 is computed modulo 2^64."""
    factors = _multipliers(blocks.device)[level, :, 2 : 2 + blocks.shape[1]]
    n_at_once = max(1, _MAX_BYTES // (8 * max(1, factors.numel())))
    sums = [(some[:, None] * factors).sum(2, dtype=torch.int64) for some in torch.split(blocks, n_at_once)]
    hashed = (torch.cat(sums) if len(sums) > 1 else sums[0]) + _constants(blocks.device, n_bytes)[level]
    return hashed.view(torch.int32)[:, 1::2].clone(memory_format=torch.contiguous_format)  # the upper halves


@lru_cache(maxsize=64)
def _constants(device: torch.device, n_bytes: int) -> torch.Tensor:
    """Return what the functions of each level add for rows of one length."""
    multipliers = _multipliers(device)
    return multipliers[:, :, 0] + multipliers[:, :, 1] * n_bytes


@lru_cache(maxsize=16)
def _multipliers(device: torch.device) -> torch.Tensor:
    """Return the multipliers by level, function and position."""
    shape = _N_LEVELS, _N_FUNCTIONS, 2 + _MAX_WORDS
    drawn = hashlib.shake_256(b"mlr3torch_py").digest(8 * _N_LEVELS * _N_FUNCTIONS * (2 + _MAX_WORDS))
    return torch.frombuffer(bytearray(drawn), dtype=torch.int64).reshape(shape).to(device)
