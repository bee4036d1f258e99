"""The forecast of the cache is what happens in training."""

import copy

import numpy as np
import pytest
import torch
from skorch.dataset import ValidSplit
from torch.utils.data import WeightedRandomSampler

from mlr3torch_py import CallbackSetUnfreeze, freeze_plan, select_all, select_prefix, t_clbk
from mlr3torch_py.forecast.cache import CachedSpan, Cost, estimate_epochs
from tests.cache.helpers import AGAIN, BOTH, CNN, X, hits
from tests.helpers import Nested, iris_net, y
from tests.network.test_evaluation import EVAL, Normed


@pytest.mark.sample(3)
@pytest.mark.parametrize("is_initialized", [True, False])
@pytest.mark.parametrize("train_split", [None, ValidSplit(5)])
@pytest.mark.parametrize("max_bytes", [2**30, 150_000])
def test_the_forecast_is_what_happens(is_initialized, train_split, max_bytes):
    freezing = CallbackSetUnfreeze(select_prefix("head"), AGAIN, **EVAL)
    cache = t_clbk("frozen_cache", max_bytes=max_bytes)
    net = iris_net(freezing, cache, module=CNN, max_epochs=5, train_split=train_split)
    if is_initialized:
        net.initialize()
        before = copy.deepcopy(net.module_.state_dict())
    plan = freeze_plan(net, X, y)
    if is_initialized:
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.module_.state_dict().items())
        assert all("_compiled_call_impl" not in vars(layer) for layer in net.module_.modules())
    net.fit(X, y)
    for column in ("cache_hits", "cache_misses", "cache_bytes"):
        happened = np.array(net.history[:, column])
        np.testing.assert_allclose(plan.cache[column], happened, rtol=0.02, atol=3 if max_bytes < 2**30 else 0)
    assert plan.cache["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert f"frozen_cache: {sum(plan.cache['cache_hits']):,} of {5 * 150 - 150:,} rows come from memory" in words(plan)


def test_events_in_the_middle_of_an_epoch_are_forecast():
    table = {"batch": [5, 8], "weights": [select_all(), ~select_prefix("head")], "action": ["unfreeze", "freeze"]}
    freezing = CallbackSetUnfreeze(select_prefix("head"), table, **EVAL)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Normed)
    plan = freeze_plan(net, X, y)
    net.fit(X, y)
    assert plan.cache["cache_hits"].tolist() == hits(net)
    assert plan.cache["cache_misses"].tolist() == net.history[:, "cache_misses"]


@pytest.mark.parametrize(("train_split", "n_train"), [(None, 150), (ValidSplit(5), 120)])
@pytest.mark.parametrize("n_drawn", [60, 400])
def test_rows_that_a_sampler_draws_come_from_memory_as_often_as_is_forecast(n_drawn, train_split, n_train):
    sampler = WeightedRandomSampler([1.0] * n_train, n_drawn, generator=torch.Generator().manual_seed(0))
    callbacks = CallbackSetUnfreeze(select_prefix("head"), **EVAL), t_clbk("frozen_cache")
    params = {"train_split": train_split, "iterator_train__sampler": sampler}
    net = iris_net(*callbacks, module=CNN, max_epochs=4, audited=False, **params)
    plan = freeze_plan(net, X, y)
    net.fit(X, y)
    asked = n_drawn + (150 - n_train)
    assert plan.cache["cache_hits"].sum() == pytest.approx(sum(hits(net)), rel=0.3)
    assert (plan.cache["cache_hits"] + plan.cache["cache_misses"]).tolist() == [asked] * 4


def test_few_batches_are_compared_when_they_first_come_from_memory():
    chain = {"first": Cost(rows=0, n_bytes=0, seconds=0.001), "last": Cost(rows=1, n_bytes=8, seconds=0, proof=0.01)}
    sizes = {"n_train": 80, "n_valid": 20, "max_epochs": 3, "max_bytes": 10**6}
    few, many = (estimate_epochs([CachedSpan(1, chain)], per_epoch=n, **sizes) for n in (2, 4))
    assert few["cache_saved"].tolist() == pytest.approx([0, 0.1 - 2 * 0.01, 0.1])  # of training and of validation
    assert many["cache_saved"].tolist() == pytest.approx([0, 0.1 - 0.01, 0.1])
    assert few["cache_hits"].tolist() == [0, 100, 100]
    assert few["cache_bytes"].tolist() == [800, 800, 800]


def words(plan):
    """The text of a plan, in one line."""
    return " ".join(str(plan).split())


def test_the_forecast_names_a_module_that_cannot_be_cached():
    net = iris_net(CallbackSetUnfreeze(select_prefix("head")), t_clbk("frozen_cache"), module=Normed)
    plan = freeze_plan(net, X, y)
    assert plan.cache["cache_hits"].sum() == 0
    said = words(plan)
    assert said.count("frozen_cache: not caching") == 1
    assert "not caching 'first', 'second': in training mode a call changes the 'running_mean' of its BatchN" in said
    assert "freeze it with frozen_mode='eval'; so nothing is cached" in said


def test_without_data_the_plan_says_what_it_needs():
    callbacks = [copy.deepcopy(BOTH), t_clbk("frozen_cache")]
    for plan in (freeze_plan(Nested(), callbacks=callbacks), freeze_plan(iris_net(*callbacks, module=Nested))):
        assert plan.cache is None
        assert "no forecast of frozen_cache: " in words(plan)
        assert "; give a net with `X` and `y`" in words(plan)


class Unsized:
    """A loader without a length."""

    def __init__(self, dataset, batch_size, **params):
        self.loader = torch.utils.data.DataLoader(dataset, batch_size, **params)

    def __iter__(self):
        return iter(self.loader)


def test_a_loader_without_a_length_is_forecast_by_the_rows():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested, iterator_train=Unsized)
    plan = freeze_plan(net, X, y)
    assert plan.cache is not None
    assert "batches in an epoch are assumed, as the first has 50 of 150 rows" in words(plan)
    given = freeze_plan(net, X, y, batches_per_epoch=2)
    assert given.cache is not None
    assert given.batches_per_epoch == 2
    assert "assumed" not in words(given)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(zip(X, y, strict=True))


def test_a_stream_is_forecast_with_the_number_of_batches():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested)
    plan = freeze_plan(net, Stream(), batches_per_epoch=3, measure=True)
    assert plan.cache is not None
    assert plan.measured is not None


def padded(batch):
    """Repeat each row as often as there are rows in the batch."""
    rows, labels = (torch.as_tensor(np.stack(part)) for part in zip(*batch, strict=True))
    return rows[:, None].expand(-1, len(rows), -1), labels


def test_rows_that_are_padded_to_other_lengths_are_said_not_to_hit():
    class Tokens(Nested):
        def forward(self, x):
            return super().forward(x).mean(1)

    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Tokens, max_epochs=3)
    assert "padded" not in str(freeze_plan(net, np.repeat(X[:, None], 3, 1), y))
    net.set_params(iterator_train__collate_fn=padded, batch_size=len(X) - 8)
    assert "a row that is padded to another length does not come from memory" in words(freeze_plan(net, X, y))


@pytest.mark.slow
def test_a_compiled_network_is_said_to_be_refused():
    plan = freeze_plan(iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested, compile=True), X, y)
    assert plan.cache is None
    assert "training will refuse a network that is compiled" in words(plan)
