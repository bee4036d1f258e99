"""Hashes of tensors: they look at the memory and leave it as it is."""

import pytest
import torch

from mlr3torch_py.network.bits import as_bytes, content_hash, has_bits, is_freed


class Packed(torch.Tensor):
    """Numbers of eight bits and their scale, which has few operations, as the weights of torchao do."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(**inner)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        if func is torch.ops.aten.t.default:
            return args[0].numbers.t() * args[0].scale
        raise NotImplementedError(f"{func} of Packed")


class Opaque(Packed):
    """The same, but nobody knows its parts."""

    @property
    def __tensor_flatten__(self):
        raise AttributeError


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


def test_a_tensor_with_parts_is_read_by_them():
    numbers, scale = torch.tensor([[1, 2]], dtype=torch.int8), torch.tensor(0.5)
    packed = Packed(numbers, scale)
    assert has_bits(packed)
    assert torch.equal(as_bytes(packed), torch.cat([as_bytes(numbers), as_bytes(scale)]))
    assert content_hash(packed) != content_hash(Packed(numbers, 2 * scale))
    numbers.untyped_storage().resize_(0)
    assert is_freed(packed)
    assert not has_bits(packed)


def test_a_tensor_that_cannot_be_read_has_no_bits():
    assert not has_bits(Opaque(torch.zeros(2, 2, dtype=torch.int8), torch.tensor(0.5)))
