"""The forecast of the cache is what happens in training."""

import copy

import numpy as np
import pytest
import torch
from skorch.dataset import ValidSplit

from mlr3torch_py import CallbackSetUnfreeze, freeze_plan, select_all, select_prefix, t_clbk
from tests.cache.helpers import AGAIN, BOTH, CNN, X, hits
from tests.helpers import Nested, iris_net, y
from tests.network.test_evaluation import EVAL, Normed


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
    assert f"frozen_cache: {sum(plan.cache['cache_hits']):,} of {5 * 150 - 150:,} rows come from memory" in str(plan)


def test_events_in_the_middle_of_an_epoch_are_forecast():
    table = {"batch": [5, 8], "weights": [select_all(), ~select_prefix("head")], "action": ["unfreeze", "freeze"]}
    freezing = CallbackSetUnfreeze(select_prefix("head"), table, **EVAL)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Normed)
    plan = freeze_plan(net, X, y)
    net.fit(X, y)
    assert plan.cache["cache_hits"].tolist() == hits(net)
    assert plan.cache["cache_misses"].tolist() == net.history[:, "cache_misses"]


def test_the_forecast_names_a_module_that_cannot_be_cached():
    net = iris_net(CallbackSetUnfreeze(select_prefix("head")), t_clbk("frozen_cache"), module=Normed)
    plan = freeze_plan(net, X, y)
    assert plan.cache["cache_hits"].sum() == 0
    said = str(plan)
    assert said.count("frozen_cache: not caching") == 1
    assert "not caching 'first', 'second': in training mode a call changes the 'running_mean' of its BatchN" in said
    assert "freeze it with frozen_mode='eval'; so nothing is cached" in said


def test_without_data_the_plan_says_what_it_needs():
    callbacks = [copy.deepcopy(BOTH), t_clbk("frozen_cache")]
    for plan in (freeze_plan(Nested(), callbacks=callbacks), freeze_plan(iris_net(*callbacks, module=Nested))):
        assert plan.cache is None
        assert "frozen_cache: give a net and `X`" in str(plan)
