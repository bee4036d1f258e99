"""Each thread gets right values, whoever else trains, predicts, or looks at the network at the same time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_prefix, t_clbk, torch_callback
from tests.cache.helpers import ROWS, Part, X, cached, counts, frozen, hits
from tests.helpers import iris_net, weights, y


@pytest.fixture
def elsewhere():
    """Calls a function in another thread, always the same one."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args, **params: pool.submit(function, *args, **params).result()


def backbone():
    torch.manual_seed(0)
    return frozen(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))


def heads(part, n):
    torch.manual_seed(1)
    return [nn.Sequential(part, nn.Linear(3, 3)) for _ in range(n)]


def plain(network, rows):
    return network[1](network[0]._call_impl(rows))


def test_networks_that_share_a_part_cache_it_each_in_its_own_thread(elsewhere):
    one, other = heads(backbone(), 2)
    parts, other_parts = cached(one, check=0), elsewhere(cached, other, check=0)
    for _ in range(2):
        assert torch.equal(one(ROWS), plain(one, ROWS))
        assert torch.equal(elsewhere(other, ROWS[:8]), plain(other, ROWS[:8]))
    assert counts(parts) == (12, 12)
    parts.close()
    elsewhere(other, ROWS[:8])
    assert counts(other_parts) == (16, 8)
    elsewhere(other_parts.close)
    assert all("_compiled_call_impl" not in vars(layer) for layer in (*one.modules(), *other.modules()))


def test_nets_that_train_one_backbone_at_once_get_the_weights_that_they_get_in_turns():
    barrier = Barrier(2, timeout=60)

    def trained(network, *others):
        callbacks = CallbackSetUnfreeze(select_prefix("1"), frozen_mode="eval"), t_clbk("frozen_cache"), *others
        return iris_net(*callbacks, module=network, max_epochs=3, batch_size=15, train_split=None).fit(X, y)

    def trained_at_once(network):
        return trained(network, torch_callback("at_once", on_batch_begin=lambda _: barrier.wait()))

    in_turns = [trained(network) for network in heads(backbone(), 2)]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(trained_at_once, heads(backbone(), 2)))
    for one, other in zip(in_turns, at_once, strict=True):
        assert hits(one) == hits(other) == [0, 150, 150]
        assert all(map(torch.equal, weights(one).values(), weights(other).values()))


def test_who_looks_at_a_network_while_it_trains_leaves_the_cache_as_it_is(elsewhere):
    (network,) = heads(backbone(), 1)
    parts = cached(network, check=0)
    network(ROWS)
    assert torch.equal(elsewhere(network, ROWS[:5]), plain(network, ROWS[:5]))
    assert torch.equal(elsewhere(network[0], ROWS + 1), network[0]._call_impl(ROWS + 1))
    network(ROWS)
    assert counts(parts) == (12, 12)
    parts.close()


def test_after_training_any_thread_takes_known_rows_and_others_compute_meanwhile(elsewhere):
    network = nn.Sequential(backbone(), Part(lambda f, x: f(x), width=3))
    parts, found = cached(network, check=0), []
    for _ in range(4):
        network(ROWS)
    parts.keep()
    counts(parts)
    parts.begin_epoch()
    assert torch.equal(elsewhere(network, ROWS), network(ROWS))
    network[1].compute = lambda f, x: (found.append(elsewhere(network[0], ROWS[:7])), f(x))[1]
    assert torch.equal(network(ROWS), plain(network, ROWS))
    assert torch.equal(found[0], network[0]._call_impl(ROWS[:7]))
    assert counts(parts) == (36, 0)
    parts.close()
