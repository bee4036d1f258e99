"""A module may be called several times in one forward pass, and its outputs may meet again in any combination."""

import copy

import pytest
import torch
from torch import nn

from tests.cache.helpers import ROWS, cached, counts, frozen

OTHERS = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


class Siamese(nn.Module):
    """Compares two batches, after the same frozen encoder."""

    def __init__(self, compare, width=3):
        super().__init__()
        self.encoder, self.head = frozen(nn.Linear(4, 3)), nn.Linear(width, 2)
        self.compare = compare

    def forward(self, x, y):
        return self.head(self.compare(self.encoder(x), self.encoder(y)))


class Mixture(nn.Module):
    """Mixes three tensors."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 3)

    def forward(self, a, b, c):
        return self.linear(torch.cat([a, b, c], 1))


def epochs(network, *args, n=3):
    """The hits and misses of some epochs, in which the network gives what it gives without the cache."""
    fresh, parts = copy.deepcopy(network), cached(network)
    for _ in range(n):
        torch.testing.assert_close(network(*args), fresh(*args))
        parts.settle()
        yield counts(parts)
        parts.begin_epoch(), parts.refresh()
    parts.close()


@pytest.mark.parametrize(
    ("compare", "width"),
    [
        (lambda a, b: torch.cat([a, b], 1), 6),
        (lambda a, b: (a - b).abs(), 3),
        (lambda a, b: a * b + a, 3),
        (lambda a, b: torch.einsum("ij,ij->i", a, b)[:, None], 1),
    ],
)
def test_an_encoder_that_is_called_twice_hits(compare, width):
    network = Siamese(compare, width)
    first, second, third = epochs(network, ROWS, OTHERS)
    assert first[0] == 0
    assert second == third
    assert second[0] > 0
    assert second[1] == 0


def test_both_calls_may_be_given_the_same_rows():
    *_, last = epochs(Siamese(torch.sub), ROWS, ROWS.flip(0))
    assert last == (12, 0)


class Patterns(Siamese):
    """Gives two tensors to a frozen module, in several patterns of repetition."""

    def __init__(self):
        super().__init__(None, 3 * 8)
        self.mixture = frozen(Mixture())

    def forward(self, x, y):
        a, b = self.encoder(x), self.encoder(y)
        patterns = [(a, a, b), (a, b, b), (a, b, a), (b, a, a), (b, b, a), (b, a, b), (a, a, a), (b, b, b)]
        return self.head(torch.cat([self.mixture(*one) for one in patterns], 1))


def test_arguments_that_are_repeated_in_another_pattern_are_other_rows():
    *_, last = epochs(Patterns(), ROWS, OTHERS)
    assert last == (12, 0)


def test_a_pattern_of_repetition_may_change_between_epochs():
    network, patterns = Siamese(lambda a, b: torch.cat([(a, b)[i] for i in patterns[0]], 1), 9), []
    fresh, parts = copy.deepcopy(network), cached(network)
    for pattern in ([0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1]):
        patterns[:] = [pattern]
        torch.testing.assert_close(network(ROWS, OTHERS), fresh(ROWS, OTHERS))
        parts.settle(), parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    parts.close()
