"""CallbackSetFrozenCache leaves nothing behind, and copies, checkpoints and other processes see none of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from mlr3torch_py import CallbackSetUnfreeze, select_prefix, t_clbk, torch_callback
from tests.cache.helpers import AGAIN, BOTH, X, hits
from tests.helpers import Nested, Stops, iris_net, weights, y
from tests.network.test_evaluation import EVAL, Normed
from tests.parallel import accelerated_net, in_processes, own_net


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, None])
def test_nothing_is_left_behind(error):
    module = Nested()
    stops = [] if error is None else [Stops(error, 5)]
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), *stops, module=module)
    if error is ZeroDivisionError:
        with pytest.raises(error):
            net.fit(X, y)
    else:
        net.fit(X, y)
    assert all("_compiled_call_impl" not in vars(layer) for layer in module.modules())
    assert dict(net.callbacks_)["frozen_cache"].cached_ is None


COPIES = {}


class Copies(Callback):
    """Makes copies at the end of each batch."""

    def __init__(self, copied):
        self.copied = copied

    def on_batch_end(self, net, **kwargs):
        COPIES.setdefault(self.copied, []).append(self.copied(net))


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def pickled_network(net):
    return pickled(net.module_)


@pytest.mark.parametrize("copied", [copy.deepcopy, clone, pickled, pickled_network])
def test_copies_made_during_training_are_without_the_cache(copied):
    copies = Copies(copied)
    iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), ("copies", copies), module=Nested, max_epochs=2).fit(X, y)
    networks = [getattr(made, "module_", made) for made in COPIES.pop(copied)]
    if copied is clone:
        assert not any(hasattr(made, "initialized_") and made.initialized_ for made in networks)
        return
    assert all("_compiled_call_impl" not in vars(module) for network in networks for module in network.modules())
    assert len({len(pickle.dumps(network)) for network in networks}) == 1


def test_a_copied_net_trains_with_a_cache_of_its_own():
    copies = []
    keep = torch_callback("keep", weight=450, on_epoch_end=lambda self: copies.append(copy.deepcopy(self.ctx.net)))
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), keep, module=Nested, max_epochs=2).fit(X, y)
    first = copies[0]
    assert all("_compiled_call_impl" not in vars(module) for module in first.module_.modules())
    first.partial_fit(X, y)
    assert hits(first) == [0, 0, 150]
    assert hits(net) == [0, 150]


def test_it_works_inside_a_grid_search():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested(), max_epochs=3)
    grid = {"lr": [0.01, 0.1], "callbacks__frozen_cache__max_bytes": [10_000, 10**8]}
    search = GridSearchCV(net, grid, cv=2).fit(X, y)
    scores = search.cv_results_["mean_test_score"].reshape(2, 2)
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)
    assert sum(hits(search.best_estimator_)) > 0


@pytest.mark.filterwarnings("ignore:a resumed run will differ.*frozen_cache:UserWarning")
def test_a_resumed_training_continues_the_history(tmp_path):
    checkpoint = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
    params = {"module": Nested, "max_epochs": 4}
    whole = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), **params)
    torch.manual_seed(0)
    whole.fit(X, y)
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError):
        iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), checkpoint, Stops(ZeroDivisionError, 8), **params).fit(
            X, y
        )
    resumed = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), copy.deepcopy(checkpoint), **params).fit(X, y)
    assert hits(resumed) == [0, 150, 150, 150]
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(whole).items())
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"compiled_call" in file.read_bytes()]


class SeededNormed(Normed):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()


def train_in_parallel(make, with_cache):
    callbacks = [CallbackSetUnfreeze(select_prefix("head"), AGAIN, **EVAL)] + [t_clbk("frozen_cache")] * with_cache
    net = make(*callbacks, module=SeededNormed, max_epochs=6).fit(X[:144], y[:144])
    return {key.removeprefix("module."): value for key, value in weights(net).items()}, with_cache and hits(net)


@pytest.mark.slow
@pytest.mark.parametrize("make", [own_net, accelerated_net])
def test_each_process_keeps_its_own_rows(make, tmp_path, processes):
    plain, _ = in_processes(tmp_path, train_in_parallel, make, False)
    ranks = in_processes(tmp_path, train_in_parallel, make, True)
    for trained, n_hits in ranks:
        assert n_hits == [0, 72, 0, 0, 72, 72]
        for name, tensor in plain[0].items():
            torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-5)
            assert torch.equal(trained[name], ranks[0][0][name])
