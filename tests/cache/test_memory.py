"""Rows are kept where they should be, and come back where outputs are."""

import pytest
import torch

from mlr3torch_py.cache.rows.output import RowSpec
from mlr3torch_py.cache.storage.memory import Memory, index_on

ROWS = torch.arange(24.0).reshape(4, 3, 2)


def memory_of(device, place=None):
    memory = Memory(RowSpec(ROWS.shape[1:], ROWS.dtype, torch.device(device), (0, 2, 1)), place)
    memory.grow(6)
    memory.write(1, ROWS)
    return memory


@pytest.mark.parametrize("places", [[1], [2, 3, 4], [4, 1], [3, 3]])
def test_rows_are_read_as_they_were_written(places):
    found = memory_of("cpu").read(places)
    assert torch.equal(found, ROWS[[place - 1 for place in places]])
    assert found.stride() == (6, 1, 3)


def test_rows_stay_when_there_is_more_room_or_less():
    memory = memory_of("cpu")
    memory.grow(9)
    assert torch.equal(memory.read([1, 2, 3, 4]), ROWS)
    memory.keep([4, 2])
    assert len(memory) == 2
    assert torch.equal(memory.read([0, 1]), ROWS[[3, 1]])
    memory.keep([])
    assert len(memory) == 0


def test_rows_of_outputs_on_another_device_are_in_host_memory_if_asked_for():
    memory = memory_of("meta", torch.device("cpu"))  # a device without values
    assert memory.device.type == "cpu"
    assert torch.equal(memory.on_cpu(5)[1:], ROWS)
    for places in ([1, 2], [4, 1, 3]):
        found = memory.read(places)
        assert (found.device.type, found.shape, found.stride()) == ("meta", (len(places), 3, 2), (6, 1, 3))
    memory.keep([4, 2])
    assert torch.equal(memory.on_cpu(2), ROWS[[3, 1]])
    assert memory_of("meta").device.type == "meta"


def test_what_is_packed_stays_as_it_is():
    memory = memory_of("cpu")
    packed = memory.on_cpu(5)
    assert packed.untyped_storage().nbytes() == packed.nbytes
    memory.write(1, -ROWS)
    assert torch.equal(packed[1:], ROWS)


def test_an_index_is_made_of_any_numbers():
    assert torch.equal(index_on(range(2), torch.device("cpu")), torch.tensor([0, 1]))
