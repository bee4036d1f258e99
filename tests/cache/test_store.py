"""The budget is never exceeded, and memory is freed."""

import copy
import gc

import pytest
import torch
from torch import nn

from mlr3torch_py.cache.rows.keys import BYTES_PER_KEY
from mlr3torch_py.cache.rows.output import OutputSpec
from mlr3torch_py.cache.storage.store import Budget, Table
from tests.cache.helpers import ROWS, cached, counts, frozen

ROW = 256 * 4 + BYTES_PER_KEY  # the bytes of a row of 256 numbers, and of its key


def table_of(rows, max_bytes=10**6):
    budget = Budget(max_bytes)
    return Table(OutputSpec.of(rows, len(rows)).tensors[0], budget), budget


def keys(*numbers):
    return [bytes([number]) * 16 for number in numbers]


def test_the_limit_holds_and_a_full_cache_computes():
    part = frozen(nn.Linear(4, 256))
    fresh = copy.deepcopy(part)
    parts = cached(part, max_bytes=5 * ROW + 100)
    for _ in range(3):
        torch.testing.assert_close(part(ROWS), fresh(ROWS))
        assert parts.budget.used == 5 * ROW
    assert counts(parts) == (10, 12 + 14)


def test_rows_not_used_for_a_whole_epoch_make_room():
    rows = torch.arange(8.0)[:, None].repeat(1, 256)
    table, budget = table_of(rows, 4 * ROW)
    table.add(keys(0, 1, 2, 3, 4), rows[:5])
    assert len(table) == 4
    assert table.end_epoch() == set()  # all were added in this epoch
    table.find(keys(1, 5))
    table.add(keys(5), rows[5:6])
    assert table.end_epoch() == set(keys(0, 2, 3))
    assert len(table) == 1
    assert budget.used == ROW
    table.add(keys(5, 6), rows[5:7])
    assert torch.equal(table.gather(table.find(keys(6, 1))), rows[[6, 1]])
    table.clear()
    assert budget.used == 0


def test_rows_stay_once_there_is_room_again():
    part = frozen(nn.Linear(4, 256))
    parts = cached(part, max_bytes=6 * ROW)
    part(ROWS)
    parts.end_epoch()
    part(ROWS[5:])
    parts.end_epoch()  # the first five make room
    assert parts.budget.used == ROW
    part(ROWS[5:8])
    for _ in range(3):
        parts.end_epoch()
    assert parts.budget.used == 3 * ROW


def test_rows_stay_while_there_is_room():
    table, _ = table_of(torch.ones(2, 3))
    table.add(keys(0, 1), torch.ones(2, 3))
    for _ in range(3):
        table.find(keys(0))
        table.end_epoch()
    assert len(table) == 2


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [1, 2], [4, 0, 4], [3]])
def test_rows_come_out_as_they_went_in_whatever_their_order_in_memory(order, slots):
    rows = torch.empty_permuted((5, 2, 3, 4), order).copy_(torch.arange(120.0).reshape(5, 2, 3, 4))
    table, _ = table_of(rows)
    table.add(keys(0, 1), rows[:2])
    table.add(keys(1, 2, 3, 4), rows[1:])
    out = table.gather(table.find(keys(*slots)))
    assert torch.equal(out, rows[slots])
    assert out.stride() == torch.empty_permuted((len(slots), 2, 3, 4), order).stride()


def test_space_that_is_not_used_is_returned():
    table, budget = table_of(torch.ones(2, 256))
    for i in range(10):
        table.add(keys(i), torch.ones(1, 256))
    assert budget.used > 10 * ROW
    table.end_epoch()
    assert budget.used == table.n_bytes == 10 * ROW


def n_numbers_of(width):
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.ndim == 2 and one.shape[1] == width]
    return sum(len(one) for one in found)


def test_closing_frees_the_memory():
    part = frozen(nn.Linear(4, 1000))
    parts = cached(part)
    part(ROWS)
    size = n_numbers_of(1000)
    parts.close()
    assert (size, n_numbers_of(1000)) == (12, 0)
    assert parts.budget.used == 0
    assert vars(part).keys() == vars(nn.Linear(1, 1)).keys()


def test_rows_of_an_epoch_go_if_none_of_them_is_used_in_another():
    rows = torch.arange(4.0)[:, None].repeat(1, 256)
    table, budget = table_of(rows)
    table.add(keys(0, 1), rows[:2])
    assert table.end_epoch(table.used_epochs) == set()
    budget.epoch += 1
    table.find(keys(1))
    table.add(keys(2), rows[2:3])
    assert table.end_epoch(table.used_epochs) == set()  # one of two was used
    budget.epoch += 1
    assert table.end_epoch(table.used_epochs) == set()  # nothing was asked for
    table.find(keys(0))
    assert table.end_epoch(table.used_epochs) == set(keys(2))
    assert budget.used == 2 * ROW


def test_packed_rows_hold_no_room_for_more():
    rows = torch.arange(5.0)[:, None].repeat(1, 256)
    table, budget = table_of(rows)
    names = keys(*range(5))
    table.add(names[:4], rows[:4])
    table.add(names[4:], rows[4:])
    assert budget.used == 6 * ROW
    assert table.packed()[1].untyped_storage().nbytes() == 5 * 4 * 256


def test_a_budget_that_is_overdrawn_gives_nothing():
    budget = Budget(100)
    budget.used = 150
    assert budget.take(2, of=40) == 0
    assert budget.used == 150
