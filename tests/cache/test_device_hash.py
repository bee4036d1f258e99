"""Rows are hashed where they are, by arithmetic that gives the same on every device."""

import hashlib

import numpy as np
import pytest
import torch

from mlr3torch_py.network import device_hash
from mlr3torch_py.network.bits import as_bytes, content_hash
from mlr3torch_py.network.device_hash import hash_rows, hash_tensors

MODULUS = 2**64
MAX_WORDS, N_LEVELS, N_FUNCTIONS = 2**15, 3, 4


def multipliers():
    """By level, function and position, as Python's whole numbers."""
    n = 2 + MAX_WORDS
    drawn = hashlib.shake_256(b"mlr3torch_py").digest(8 * N_LEVELS * N_FUNCTIONS * n)
    return np.frombuffer(drawn, "<i8").reshape(N_LEVELS, N_FUNCTIONS, n)


def by_hand(row, level=0, n_bytes=None):
    """The hash of the bytes of a row, by the formula."""
    n_bytes = len(row) if n_bytes is None else n_bytes
    words = np.frombuffer(row + bytes(-len(row) % 4), "<i4").tolist()
    least = max(1, -(-len(words) // MAX_WORDS))
    n_blocks = next((n for n in range(least, 2 * least + 1) if len(words) % n == 0), least)
    words += [0] * (-len(words) % n_blocks)
    length, hashed = len(words) // n_blocks, b""
    for block in (words[i * length : (i + 1) * length] for i in range(n_blocks)):
        for a, b, *factors in multipliers()[level, :, : 2 + length].tolist():
            total = a + b * n_bytes + sum(word * factor for word, factor in zip(block, factors, strict=True))
            hashed += (total % MODULUS >> 32).to_bytes(4, "little")
    return hashed if n_blocks == 1 else by_hand(hashed, level + 1, n_bytes)


def hashes(tensor):
    return [row.tobytes() for row in hash_rows(tensor).numpy()]


def drawn(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


TENSORS = {
    "bool": lambda: drawn(5, 3) > 127,
    "uint8": lambda: drawn(5, 3, 7),
    "float16": lambda: torch.randn(5, 3).half(),
    "bfloat16": lambda: torch.randn(5, 3).bfloat16(),
    "float32": lambda: torch.randn(5, 2, 3),
    "int64": lambda: torch.randint(-(2**62), 2**62, (5, 3)),
    "float64": lambda: torch.randn(5, 3).double(),
    "complex": lambda: torch.randn(5, 3, dtype=torch.complex64),
    "complex, conjugated": lambda: torch.randn(5, 3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(5, 3, dtype=torch.complex64).conj().imag,
    "one number for each row": lambda: torch.randn(5),
    "not contiguous": lambda: torch.randn(3, 5).T,
    "channels last": lambda: torch.randn(5, 2, 3, 4).to(memory_format=torch.channels_last),
    "a part of other memory": lambda: drawn(41)[1:].reshape(5, 8),
    "the largest words": lambda: torch.full((5, 3), -(2**31), dtype=torch.int32),
    "empty rows": lambda: torch.empty(5, 0),
    "no rows": lambda: torch.empty(0, 3),
    "neither": lambda: torch.empty(0, 0),
    "one whole block": lambda: drawn(1, 4 * MAX_WORDS),
    "a block and a byte": lambda: drawn(2, 4 * MAX_WORDS + 1),
    "three blocks, since two would need padding": lambda: drawn(2, 4 * 3 * (MAX_WORDS // 2 + 1)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_hashes_are_those_of_the_formula(name):
    tensor = TENSORS[name]()
    rows = [row.contiguous().resolve_conj().resolve_neg().numpy(force=True) for row in tensor if name != "bfloat16"]
    rows = rows or [row.view(torch.uint8).numpy() for row in tensor]
    assert hashes(tensor) == [by_hand(row.tobytes()) for row in rows]


def test_equal_rows_have_equal_hashes_in_any_batch_and_order():
    rows = torch.randn(50, 7)
    known = hashes(rows)
    order = torch.randperm(50)
    assert hashes(rows[order]) == [known[i] for i in order]
    assert hashes(rows[20:23].clone()) == known[20:23]
    assert len(set(known)) == 50


@pytest.mark.parametrize("n_bytes", [1, 6, 64, 4 * MAX_WORDS + 3])
def test_each_bit_counts(n_bytes):
    row = drawn(n_bytes)
    bits = {0, 1, 7, 8 * n_bytes // 2, 8 * n_bytes - 1}
    changed = torch.stack([row, *(flipped(row, bit) for bit in bits)])
    assert len(set(hashes(changed))) == len(bits) + 1


def flipped(row, bit):
    row = row.clone()
    row[bit // 8] ^= 1 << bit % 8
    return row


def test_lengths_count():
    assert len({hashes(torch.zeros(1, n, dtype=torch.uint8))[0] for n in range(20)}) == 20


def test_borders_of_what_is_multiplied_at_once_do_not_count(monkeypatch):
    rows = torch.randn(33, 5)
    known = hashes(rows)
    for n_at_once in (1, 2, 32, 33, 34):
        monkeypatch.setattr(device_hash, "_MAX_BYTES", 8 * 5 * n_at_once)
        assert hashes(rows) == known


def test_modes_do_not_count():
    rows = torch.randn(3, 5)
    device_hash._multipliers.cache_clear(), device_hash._constants.cache_clear()
    with torch.inference_mode():
        known = hashes(rows)
    with torch.autocast("cpu"):
        assert hashes(rows.requires_grad_()) == known
    with torch.inference_mode():
        inferred = rows.clone()
    assert hashes(inferred) == known


def test_no_generator_moves():
    device_hash._multipliers.cache_clear(), device_hash._constants.cache_clear()
    before = torch.get_rng_state()
    hash_rows(torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_has_a_hash_as_a_whole():
    tensor = torch.randn(3, 4)
    one, again, other = hash_tensors([tensor, tensor.clone(), tensor + 1])
    assert one == again != other


@pytest.mark.parametrize("max_bytes", [2**18, 2**27])
def test_a_large_tensor_is_known_by_all_of_its_bytes(max_bytes, monkeypatch):
    monkeypatch.setattr(device_hash, "_MAX_BYTES", max_bytes)
    large, small = torch.randn(2**18 + 5), torch.randn(7)
    others = [large.clone().index_fill_(0, torch.tensor(i), 7.0) for i in (0, 2**17, 2**18 + 4)]
    others += [large[1:], large[:-1], torch.cat([large, torch.zeros(3)]), torch.cat([large, torch.zeros(30_000)])]
    tables = [as_bytes(tensor) for tensor in (large, small, *others, large.clone())]
    hashes = list(device_hash._hashes_there(tables))
    assert hashes[0] == hashes[-1]
    assert hashes[1] == content_hash(small)
    assert len({*hashes[:-1]}) == len(tables) - 1
    assert hashes == [one for table in tables for one in device_hash._hashes_there([table])]
