"""Operations between frozen modules are part of the chain, unless they may do more than compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from mlr3torch_py.cache.passes.functions import split
from mlr3torch_py.cache.rows.keys import BYTES_PER_KEY
from mlr3torch_py.network.evaluation import Pins
from tests.cache.helpers import cached, counts, frozen

N, TOKENS, WIDTH = 12, 5, 4
DATA = torch.randn(N, TOKENS, 3, generator=torch.Generator().manual_seed(0))


class Transformer(nn.Module):
    """Embeds tokens, puts one before them, and classifies by it, as vision transformers do."""

    def __init__(self, between=lambda _, x: x):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, TOKENS + 1, WIDTH))
        self.between = between
        for name, tensor in self.named_parameters():
            tensor.requires_grad_("head" in name)

    def forward(self, x):
        x = self.embed(x)
        n, _, width = x.shape
        x = x.permute(0, 2, 1).reshape(n, width, TOKENS).permute(0, 2, 1)
        x = torch.cat([self.first.expand(n, -1, -1), x], dim=1)
        x = x + self.position
        x = self.between(self, x + functional.gelu(self.mix(x)))
        return self.head(x[:, 0])


def rounds(network, n=4):
    """Whether the network gives the same as without the cache, batch by batch; the cache."""
    plain, parts = copy.deepcopy(network), cached(network)
    for i in range(n):
        for rows in torch.randperm(N, generator=torch.Generator().manual_seed(i)).split(5):
            torch.testing.assert_close(network(DATA[rows]), plain(DATA[rows]))
            parts.settle()
        if i < n - 1:
            parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    return parts


def test_only_what_the_head_is_given_is_kept():
    parts = rounds(Transformer())
    assert parts.budget.used == N * (WIDTH * 4 + BYTES_PER_KEY)
    assert counts(parts) == (N, 0)


def doubled(_, x):
    x[:, 0] *= 2
    return x


def by_a_view(_, x):
    x[:, 0].mul_(2)
    return x


def of_two_views(_, x):
    one, other = x[:, :2], x[:, 1:]
    one.add_(1)
    return torch.cat([other, x], 1)


BETWEEN = {
    "written by item": doubled,
    "written through a view": by_a_view,
    "two views": of_two_views,
    "in place": lambda _, x: functional.relu(x, inplace=True),
    "a number that differs": lambda _, x: x * float(1 + len(x)),
    "by keyword": lambda _, x: torch.add(input=x, other=x, alpha=2),
    "rows": lambda _, x: x[torch.arange(len(x)).flip(0)].flip(0),
    "softmax over rows": lambda _, x: x.softmax(0),
    "the mean of rows": lambda _, x: x - x.mean(0, keepdim=True),
    "a random number": lambda _, x: x + torch.zeros(1).uniform_(0, 1e-9),
    "seen twice": lambda _, x: x + x[:, :1].sum() * 0,
    "trainable": lambda self, x: x + self.head.weight[0],
    "a list": lambda _, x: torch.stack([x, x], 1).sum(1),
    "a tuple": lambda _, x: torch.cat(x.split([2, 4], 1), 1),
    "numpy": lambda _, x: x + torch.from_numpy(x[:, :1].numpy().copy()),
    "another shape": lambda _, x: x.reshape(-1, WIDTH).view(-1, TOKENS + 1, WIDTH),
    "flat": lambda _, x: x.flatten(1).unflatten(1, (TOKENS + 1, WIDTH)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", BETWEEN)
def test_whatever_is_done_between_modules_gives_the_same(kind):
    network = Transformer(BETWEEN[kind])
    parts = rounds(network)
    assert counts(parts)[0] >= N or kind in {"softmax over rows", "the mean of rows", "rows"}


def test_a_gradient_reaches_what_is_trainable_between_frozen_modules():
    network = Transformer(lambda self, x: x + self.head.weight[0])
    plain, parts = copy.deepcopy(network), cached(network)
    for _ in range(3):
        for one in (network, plain):
            one.zero_grad()
            one(DATA).sum().backward()
        torch.testing.assert_close(network.head.weight.grad, plain.head.weight.grad)
        parts.end_epoch(), parts.begin_epoch(), parts.refresh()


def test_a_changed_token_is_seen_at_once():
    network = Transformer()
    parts = rounds(network)
    with torch.no_grad():
        network.first.add_(1)
    plain = copy.deepcopy(network)
    torch.testing.assert_close(network(DATA), plain(DATA))
    parts.close()


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (torch.Tensor.add_, (1,)),
        (torch.Tensor.uniform_, ()),
        (torch.nn.functional.dropout, (0.5,)),
        (torch.Tensor.numpy, ()),
        (torch.equal, (torch.ones(1),)),
        (torch.add, (1.5,)),
        (torch.Tensor.reshape, (4, -1)),
        (torch.Tensor.__getitem__, ({},)),
    ],
)
def test_functions_that_may_do_more_are_called(function, args):
    assert split(function, (nn.Parameter(torch.ones(2, 4)), *args), {}, nn.Parameter) is None


def test_many_variants_of_an_operation_are_not_kept():
    network = frozen(nn.Sequential(nn.Linear(3, WIDTH)))
    network.add_module("head", nn.Linear(1, 1))
    calls = iter(range(10**4))
    network.forward = lambda x: network.head(network[0](x)[:, next(calls) % TOKENS, :1])
    parts = cached(network)
    for _ in range(2 * TOKENS):
        network(DATA)
    assert len(parts.stages) <= 2 + TOKENS
    parts.close()


class Squeeze(nn.Module):
    def forward(self, x):
        return x.squeeze()


def test_a_known_row_that_comes_alone_is_not_answered_like_one_of_a_batch():
    network = nn.Sequential(frozen(nn.Linear(3, WIDTH)), Squeeze(), nn.Linear(WIDTH, 2))
    plain, parts, rows = copy.deepcopy(network), cached(network), DATA[:, :1]
    for _ in range(3):
        for batch in rows.split(6):
            torch.testing.assert_close(network(batch), plain(batch))
            parts.settle()
        parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    network(rows[:6])
    torch.testing.assert_close(network(rows[:1]), plain(rows[:1]))


def test_a_tensor_of_an_operation_may_be_written_through_data_between_epochs():
    network = Transformer()
    parts = rounds(network)
    network.position.data += 1
    parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    network(DATA[:5])
    torch.testing.assert_close(network(DATA[:5]), copy.deepcopy(network)(DATA[:5]))


class Centred(nn.Module):
    """Subtracts what a normalisation layer has seen so far."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = frozen(nn.Linear(3, 3)), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.embed(x) - self.norm.running_mean)


def test_statistics_that_move_in_training_mode_count_at_every_batch():
    network, data = Centred(), DATA[:, 0]
    plain, parts = copy.deepcopy(network), cached(network)
    for epoch in range(4):
        for rows in data.split(4):
            torch.testing.assert_close(network(rows), plain(rows))
            for one in (network, plain):
                one.norm.train(epoch > 1)(rows + 3)
            parts.settle()
        parts.end_epoch(), parts.begin_epoch(), parts.refresh()
    parts.close()


def test_statistics_of_a_pinned_layer_stay_part_of_the_chain():
    network, data, pins = Centred(), DATA[:, 0], Pins()
    pins.set([network.norm])
    parts = cached(network)
    for _ in range(3):
        network(data), parts.settle()
    assert any("sub()" in name for name in parts.stages)
    parts.close()


WRITTEN = {
    "data": lambda network: network.position.data.add_(1),
    "numpy": lambda network: network.position.detach().numpy().__iadd__(1),
}


@pytest.mark.parametrize("n_before", [0, 2])
@pytest.mark.parametrize("kind", WRITTEN)
def test_after_training_a_tensor_of_an_operation_counts_at_once_however_it_is_changed(kind, n_before):
    network = Transformer()
    parts = rounds(network)
    parts.keep()
    for _ in range(n_before):
        network(DATA)
    WRITTEN[kind](network)
    plain = copy.deepcopy(network)
    for _ in range(2):
        torch.testing.assert_close(network(DATA), plain(DATA))
    parts.close()


def test_after_training_operations_that_are_new_follow_changes_too():
    network = Centred()
    network.forward = lambda x: network.head(network.embed(x))
    parts, data = cached(network.eval()), DATA[:, 0]
    network(data), parts.keep()
    del network.forward
    pins = Pins()
    pins.set([network.norm])
    parts.refresh()
    for shift in (0, 3):
        network.norm.running_mean.data.add_(shift)
        plain = copy.deepcopy(network)
        for _ in range(3):
            torch.testing.assert_close(network(data), plain(data))
    parts.close()
