"""The budget is never exceeded, and memory is freed."""

import copy
import gc

import torch
from torch import nn

from mlr3torch_py.cache.store import Budget, RowCache
from tests.cache.helpers import ROWS, cached, counts, frozen


def test_the_limit_holds_and_a_full_cache_computes():
    part = frozen(nn.Linear(4, 256))
    fresh = copy.deepcopy(part)
    parts = cached(part, max_bytes=5 * 2048 + 100)
    for _ in range(3):
        torch.testing.assert_close(part(ROWS), fresh(ROWS))
        assert parts.budget.used == 5 * 2048
    assert counts(parts) == (10, 12 + 14)


def test_rows_not_used_for_a_whole_epoch_make_room():
    rows = {key: (torch.full((256,), float(key)),) for key in range(8)}
    budget = Budget(4 * 2048)
    cache = RowCache(budget)
    cache.add(map(bytes, [[0], [1], [2], [3], [4]]), [rows[i] for i in range(5)])
    assert len(cache) == 4
    cache.end_epoch()
    cache.get([bytes([1]), bytes([5])])
    cache.add([bytes([5])], [rows[5]])
    cache.end_epoch()
    assert len(cache) == 1
    assert budget.used == 2048
    cache.add([bytes([5]), bytes([6])], [rows[5], rows[6]])
    assert torch.equal(cache.get([bytes([6])])[0][0], rows[6][0])
    cache.clear()
    assert budget.used == 0


def test_rows_stay_once_there_is_room_again():
    part = frozen(nn.Linear(4, 256))
    parts = cached(part, max_bytes=6 * 2048)
    part(ROWS)
    parts.end_epoch()
    part(ROWS[5:])
    parts.end_epoch()  # the first five make room
    assert parts.budget.used == 2048
    part(ROWS[5:8])
    for _ in range(3):
        parts.end_epoch()
    assert parts.budget.used == 3 * 2048


def test_rows_stay_while_there_is_room():
    cache = RowCache(Budget(10**6))
    cache.add([b"a", b"b"], [(torch.ones(2),), (torch.zeros(2),)])
    for _ in range(3):
        cache.get([b"a"])
        cache.end_epoch()
    assert len(cache) == 2


def n_tensors_of(width):
    gc.collect()
    return sum(type(one) is torch.Tensor and one.shape == (width,) for one in gc.get_objects())


def test_closing_frees_the_memory():
    part = frozen(nn.Linear(4, 1000))
    parts = cached(part)
    part(ROWS)
    size = n_tensors_of(1000)
    parts.close()
    assert (size, n_tensors_of(1000)) == (12, 0)
    assert parts.budget.used == 0
    assert vars(part).keys() == vars(nn.Linear(1, 1)).keys()
