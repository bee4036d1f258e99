"""Keys of rows keep their order, and are found whether or not they are sorted in yet."""

import random

import pytest
import torch

from mlr3torch_py.cache.rows.keys import Keys, packed_keys, unpacked_keys


def key(number):
    return random.Random(f"{number}").randbytes(14) + bytes(2)  # some end with zeros


@pytest.mark.parametrize("size", [1, 100, 300, 2000])
def test_all_keys_are_found_and_no_others(size):
    expected, keys = {}, Keys()
    for begin in range(0, size, 37):
        names = [key(i) for i in range(max(0, begin - 5), min(size, begin + 37))]
        new = [name for name in names if name not in expected]
        assert keys.add([*names, *names]) == new
        expected |= {name: len(expected) + i for i, name in enumerate(new)}
    asked = [key(i) for i in random.Random(0).sample(range(-size, 2 * size), size)]
    assert keys.find(asked).tolist() == [expected.get(name, -1) for name in asked]
    assert list(keys) == list(expected)
    assert (key(0) in keys, key(-1) in keys) == (True, False)


@pytest.mark.parametrize("is_packed", [True, False])
def test_positions_close_up_when_keys_are_dropped(is_packed):
    keys = Keys()
    keys.add(map(key, range(10)))
    if is_packed:
        keys.pack()
    keys.remove([key(3), key(0), key(99)])
    left = [key(i) for i in (1, 2, 4, 5, 6, 7, 8, 9)]
    assert list(keys) == left
    assert keys.find(left).tolist() == list(range(8))
    assert keys.add([key(0)]) == [key(0)]
    assert keys.find([key(0)]).tolist() == [8]
    keys.clear()
    assert (len(keys), list(keys), keys.find([key(1)]).tolist()) == (0, [], [-1])


def test_keys_with_the_same_first_half_are_told_apart():
    names = [bytes(8) + i.to_bytes(8, "big") for i in range(300)]
    keys = Keys(names)
    asked = [*names[::-7], bytes(8) + b"\xff" * 8, b"\xff" * 16]
    assert keys.find(asked).tolist() == [*range(299, -1, -7), -1, -1]
    assert keys.find([names[5]]).tolist() == [5]


def test_packed_keys_are_unpacked_in_their_order():
    names = [key(i) for i in range(5)]
    assert unpacked_keys(packed_keys(Keys(names))) == names
    assert packed_keys([]).shape == torch.Size([0, 16])
