"""Rows computed in batches of different sizes differ by rounding, which is not a change."""

import itertools
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.cache.helpers import Part, cached, frozen


def test_rounding_passes_the_check():
    part = frozen(nn.Sequential(*(nn.Linear(64, 64) for _ in range(20))))
    parts = cached(part, check=1000)
    x = torch.randn(257, 64) * 100
    part(x)
    for n in (1, 2, 7, 100):
        part(x[:n])
    assert parts.end_epoch().hits == 109  # a single row is another kind of call


def test_rounding_that_normalisation_amplifies_passes_the_check():
    torch.manual_seed(0)
    linear, normed, x = nn.Linear(64, 64), nn.BatchNorm1d(64).eval(), torch.randn(257, 64) + 200
    normed.running_mean, normed.running_var = linear(x).detach().mean(0), linear(x).detach().var(0)
    parts = cached(part := frozen(nn.Sequential(linear, normed)), check=1000)
    part(x)
    for n in (1, 2, 3, 7, 100):
        part(x[:n])
    assert parts.end_epoch().hits == 112


def coarsely_when_few(f, x):
    """Computes as some devices do, small batches by units that round factors to bfloat16; a large sum amplifies it."""
    x, weight = x + 50, f.weight
    if len(x) < 8:
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
    return nn.functional.linear(x, weight) - 50 * f.weight.sum(1)


def depending_on_others(f, x):
    y = coarsely_when_few(f, x)
    return y - y.mean(0) / 8


def small_and_dependent(f, x):
    """Gives values below what is rounded of 1."""
    return f(x).softmax(0) / 1000


def mixing_rows(f, x):
    y = f(x)
    return torch.cat([y[:1], y[1:2] + y[:1] / 10, y[2:]])


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    """What torch is told about products of float32: `medium` lets it round their factors to bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", [2, 3, 16])
@pytest.mark.parametrize("compute", [coarsely_when_few, depending_on_others])
def test_rows_may_differ_with_the_size_of_a_batch_where_units_may_round_coarsely(compute, precision, size):
    part, batches = frozen(Part(compute)), torch.randn(6, size, 4).unbind()
    parts, is_cached = cached(part, check=1000), compute is coarsely_when_few and (precision == "medium" or size < 8)
    with warnings.catch_warnings(action="ignore"):
        expected = [part(batch) for batch in batches]
        for n_hits in (0, 6 * size, 6 * size):
            tally = parts.end_epoch()
            assert tally.hits == n_hits * is_cached
            parts.begin_epoch(), parts.refresh()
            for batch, before in zip(batches, expected, strict=True):
                torch.testing.assert_close(part(batch), before)


def test_statistics_of_a_batch_are_found_in_half_precision_though_they_differ_little():
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.AdaptiveAvgPool2d(1),
    )
    parts = cached(frozen(network))
    with warnings.catch_warnings(record=True, action="always") as said, torch.autocast("cpu", torch.bfloat16):
        for batch in torch.randn(128, 3, 32, 32).split(64):
            network(batch)
            parts.settle()
    assert ["not caching '1': its output for a row depends on the rest" in str(one.message) for one in said] == [True]


@pytest.mark.parametrize("n_shared", [1, 3, 4])
def test_arguments_that_rows_share_are_given_whole(n_shared):
    def shifted(f, x, shift):
        return coarsely_when_few(f, x) + shift.sum()

    part, shift, batches = frozen(Part(shifted)), torch.randn(n_shared), torch.randn(4, 16, 4).unbind()
    parts, before = cached(part, check=0), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    expected = [part(batch, shift) for batch in batches]
    torch.set_float32_matmul_precision(before)
    assert all(torch.equal(part(batch, shift), one) for batch, one in zip(batches, expected, strict=True))
    assert parts.end_epoch().hits == 64


@pytest.mark.parametrize("compute", [small_and_dependent, mixing_rows])
def test_rows_that_depend_on_each_other_are_found_where_units_may_round_coarsely(compute, precision):
    part, rows = frozen(Part(compute)), torch.randn(16, 4)
    parts = cached(part, check=0)
    with warnings.catch_warnings(action="ignore"):
        for batch in (rows, rows[::2], rows.flip(0), rows[5:]):
            torch.testing.assert_close(part(batch), compute(part.linear, batch))
            parts.end_epoch(), parts.begin_epoch(), parts.refresh()


def noisy(f, x):
    y = f(x)
    return y + torch.from_numpy(np.random.normal(0, 0.002, y.shape)).to(y.dtype)


def test_random_numbers_are_found_beside_threads_where_units_may_round_coarsely(precision):
    part, rows = frozen(Part(noisy)), torch.randn(32, 4)
    parts, has_ended = cached(part, check=0), threading.Event()
    thread = threading.Thread(target=has_ended.wait)
    thread.start()
    with warnings.catch_warnings(action="ignore"):
        outputs = [(part(rows), parts.settle())[0] for _ in range(5)]
    has_ended.set(), thread.join()
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(outputs))
