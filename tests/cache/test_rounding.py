"""Rows computed in batches of different sizes differ by rounding, which is not a change."""

import torch
from torch import nn

from tests.cache.helpers import cached, frozen


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
