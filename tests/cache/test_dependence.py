"""Modules whose rows depend on each other, in all ways, are never answered from memory."""

import copy
import warnings
from time import thread_time

import pytest
import torch
from torch import nn

from mlr3torch_py.cache.trials import trial
from tests.cache.helpers import Part, cached, frozen

WIDTH = 4


def mixing(one, other):
    """Mixes the rows at two positions of each batch."""

    def compute(f, x):
        y = f(x)
        if len(x) <= max(one, other):
            return y
        y = y.clone()
        y[one] = y[one] + y[other]
        return y

    return compute


def outlier(f, x):
    """Scales by what only an outlier in the batch exceeds."""
    return f(x) / x.abs().max().clamp(min=4)


def routed(f, x):
    """Takes another way at every other position."""
    return f(x) * (1 + torch.arange(len(x)) % 2)[:, None]


def capacity(f, x):
    """Gives an expert the first four rows that ask for it."""
    goes = x[:, 0] > 0
    return f(x) * (1 + (goes & (goes.cumsum(0) <= 4)).float())[:, None]


DEPENDENT = {
    "7 and 8": mixing(7, 8),
    "0 and 1": mixing(0, 1),
    "the last and the first": mixing(15, 0),
    "5 and 13": mixing(5, 13),
    "running maximum": lambda f, x: f(x.cummax(0).values),
    "running sum": lambda f, x: f(x.cumsum(0)),
    "the mean": lambda f, x: f(x - x.mean(0)),
    "an outlier": outlier,
    "ranks": lambda f, x: f(x) + x[:, :1].argsort(0).argsort(0),
    "sorted": lambda f, x: f(x[x[:, 0].argsort()]),
    "reversed": lambda f, x: f(x.flip(0)),
    "rolled": lambda f, x: f(x.roll(4, 0)),
    "size": lambda f, x: f(x) * 2 if len(x) > 8 else f(x),
    "small batches": lambda f, x: f(x) * 2 if len(x) < 8 else f(x),
    "halves": lambda f, x: torch.cat([f(x[: len(x) // 2]), f(x[len(x) // 2 :]) * 2]),
    "positions": routed,
    "capacity": capacity,
    "attention over the batch": lambda f, x: f((x @ x.T).softmax(1) @ x),
    "softmax over the batch": lambda f, x: f(x).softmax(0),
}


def rows_of(n, seed):
    rows = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    rows[::11] *= 5  # outliers
    return rows


def outputs_and_tallies(compute, n_batches):
    """Call a network with the cache and without it for three epochs; return pairs of outputs, and the tallies."""
    torch.manual_seed(0)
    network = frozen(nn.Sequential(Part(compute), nn.Linear(3, 3)))
    network.add_module("head", nn.Linear(3, 1))
    plain, data = copy.deepcopy(network), rows_of(16 * n_batches, 0)
    parts, pairs, tallies = cached(network), [], []
    with warnings.catch_warnings(action="ignore"):
        for epoch in range(3):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
            for batch in data[order].split(16):
                pairs.append((network(batch).clone(), plain(batch)))
                parts.settle()
            tallies.append(parts.end_epoch())
            parts.begin_epoch(), parts.refresh()
    return pairs, tallies


@pytest.mark.sample(5)
@pytest.mark.parametrize("n_batches", [1, 3, 5])
@pytest.mark.parametrize("kind", DEPENDENT)
def test_rows_that_depend_on_each_other_are_as_without_the_cache(kind, n_batches):
    pairs, _ = outputs_and_tallies(DEPENDENT[kind], n_batches)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in pairs)


@pytest.fixture
def costly(monkeypatch):
    """Makes functions take so long for few rows, too, that trials are spread over more batches."""
    monkeypatch.setattr(trial, "_CHEAP", 0.005)

    def slowed(compute, seconds=0.006):
        def compute_slowly(f, x):
            begin = thread_time()
            while thread_time() < begin + seconds:
                pass
            return compute(f, x)

        return compute_slowly

    return slowed


@pytest.mark.parametrize("kind", ["7 and 8", "0 and 1", "size", "small batches", "capacity", "positions"])
def test_rows_of_modules_that_take_long_are_tried_before_they_are_used(kind, costly):
    pairs, _ = outputs_and_tallies(costly(DEPENDENT[kind]), n_batches=3)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in pairs)


def test_modules_that_take_long_are_cached(costly):
    _, tallies = outputs_and_tallies(costly(lambda f, x: f(x)), n_batches=3)
    assert [(tally.hits, tally.misses) for tally in tallies] == [(0, 48), (32, 16), (48, 0)]


LARGE = {
    "a branch": lambda f, x: f(x) * 2 if len(x) > 8 else f(x),
    "fewer rows": lambda f, x: f(x[:8]),
    "an error": lambda f, x: f(x) if len(x) <= 8 else f(x)[:, 5],
}


@pytest.mark.parametrize("n_epochs", [1, 3])
@pytest.mark.parametrize("kind", LARGE)
def test_rows_of_small_batches_are_tried_before_they_are_used_in_a_larger_one(kind, n_epochs):
    network = frozen(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), Part(LARGE[kind])))
    plain, data = copy.deepcopy(network), rows_of(16, 0)
    parts = cached(network)
    for _ in range(n_epochs):
        for batch in data.split(4):
            network(batch)
        parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    for _ in range(2):
        try:
            expected = plain(data)
        except IndexError:
            with pytest.raises(IndexError):
                network(data)
        else:
            torch.testing.assert_close(network(data), expected)
        with warnings.catch_warnings(action="ignore"):
            parts.settle()


def test_a_larger_batch_comes_from_memory_once_it_was_tried():
    network, data = frozen(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), Part(lambda f, x: f(x)))), rows_of(16, 0)
    parts = cached(network)
    hits = []
    for size in (4, 4, 16, 16, 16, 8):
        for batch in data.split(size):
            network(batch).sum()
        hits.append(parts.end_epoch().hits)
        parts.begin_epoch(), parts.refresh()
    assert hits == [0, 16, 0, 16, 16, 16]
