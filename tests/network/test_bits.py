"""Hashes of tensors: they look at the memory and leave it as it is."""

import pytest
import torch

from mlr3torch_py.network.bits import as_bytes, content_hash, has_bits, is_freed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_storage_of_a_hashed_tensor_can_still_be_resized(dtype):
    tensor = torch.ones(5, dtype=dtype)
    before = content_hash(tensor)
    storage = tensor.untyped_storage()
    storage.resize_(0).resize_(5 * tensor.itemsize)
    tensor.fill_(1)
    assert content_hash(tensor) == before


@pytest.mark.parametrize("read", [content_hash, as_bytes])
@pytest.mark.parametrize("part", [slice(None), slice(3, 5)])
def test_a_tensor_whose_storage_was_freed_has_no_bits(part, read):
    tensor = torch.zeros(5)[part]
    tensor.untyped_storage().resize_(8)  # of two numbers
    assert is_freed(tensor)
    assert not has_bits(tensor)
    with pytest.raises(RuntimeError, match="no values in memory"):
        read(tensor)


def test_an_empty_tensor_and_a_broadcast_one_have_bits():
    assert has_bits(torch.zeros(0, 3))
    assert content_hash(torch.zeros(0, 3)) == content_hash(torch.zeros(0))
    assert has_bits(torch.zeros(1).expand(1000))
    assert content_hash(torch.zeros(1).expand(3)) == content_hash(torch.zeros(3))
