"""Rows that outlive a training: whose they are, who uses them, and what becomes of them when something changes."""

import copy
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from joblib import parallel_backend
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mlr3torch_py import CallbackSetUnfreeze, select_prefix, t_clbk
from mlr3torch_py.cache.storage.disk import opened
from tests.cache.helpers import COMPUTED, note
from tests.helpers import X, iris_net, y

pytest.importorskip("lmdb")


GAIN = 1.0
SETTINGS = {"shift": 0.0}


class Backbone(nn.Module):
    factors = [1.0]  # noqa: RUF012

    def __init__(self, width=5, scale=1.0, dtype=torch.float32, seed=1):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)
        self.linear.weight.data = torch.randn(width, 4, generator=torch.Generator().manual_seed(seed))
        self.linear.bias.data.zero_()
        self.scale, self.dtype, self.config = scale, dtype, SimpleNamespace(factors={"one": 1.0})

    def forward(self, x):
        note(x)
        return torch.tanh(self.norm(self.linear(x))).to(self.dtype) * self.scale * self.factor() + SETTINGS["shift"]

    def factor(self):
        return GAIN * self.factors[0] * self.config.factors["one"]


class Rescaled(Backbone):
    def forward(self, x):
        return super().forward(x) * 2


class Network(nn.Module):
    def __init__(self, backbone=Backbone, width=5, **params):
        super().__init__()
        self.backbone, self.head = backbone(width, **params), nn.Linear(width, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, 3 * width).reshape(3, width))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.backbone(x).float())


def net_with(store=None, *, cache=None, cached=True, **params):
    callbacks = [CallbackSetUnfreeze(select_prefix("head"), frozen_mode="eval")]
    if cached:
        callbacks.append(t_clbk("frozen_cache", store=store, **cache or {}))
    return iris_net(*callbacks, module=Network, audited=False, **params)


def trained(store=None, data=X, **params):
    """Train; return the net, and how many rows its backbone was given."""
    COMPUTED.rows.clear()
    net = net_with(store, **params).fit(data, y[: len(data)])
    return net, sum(COMPUTED.rows)


def losses(net):
    return net.history[:, "train_loss"]


def test_the_second_training_computes_only_what_is_compared(tmp_path):
    cold, _ = trained(tmp_path)
    warm, n_computed = trained(tmp_path)
    assert n_computed < 20
    assert cold.history[0, ("cache_hits", "cache_misses", "cache_hits_stored")] == (0, 150, 0)
    hits, misses, stored = warm.history[0, ("cache_hits", "cache_misses", "cache_hits_stored")]
    assert hits == stored >= 140
    assert misses == 150 - hits
    assert warm.history[1, ("cache_hits", "cache_hits_stored")] == (150, 0)  # from memory
    assert 0 < warm.history[-1, "cache_store_bytes"] < 1_000_000
    assert np.allclose(losses(warm), losses(trained(cached=False)[0]), atol=1e-6)


def test_a_training_that_finds_all_rows_writes_none_of_them_again(tmp_path):
    def content():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name}

    trained(tmp_path)
    before = content()
    _, n_computed = trained(tmp_path)
    assert n_computed
    assert content() == before
    assert before


def test_more_rows_than_memory_holds_come_from_the_store(tmp_path):
    trained(tmp_path)
    net, n_computed = trained(tmp_path, cache={"max_bytes": 8_000})
    assert n_computed < 50
    assert net.history[-1, "cache_hits"] == 150
    assert net.history[-1, "cache_hits_stored"] > 50
    assert net.history[-1, "cache_bytes"] <= 8_000


@pytest.mark.parametrize(
    "params",
    [
        {"module__scale": 1.5},
        {"module__dtype": torch.float64},
        {"module__seed": 2},
        {"module__backbone": Rescaled},
        {"cache": {"dtype": "float16"}},
    ],
)
def test_rows_of_another_part_are_not_used(tmp_path, params):
    trained(tmp_path)
    net, n_computed = trained(tmp_path, **params)
    assert n_computed >= 150
    assert net.history[0, "cache_hits_stored"] == 0


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has one setting alone")
@pytest.mark.parametrize("place", [torch.backends, torch.backends.mkldnn])
def test_rows_that_were_rounded_otherwise_are_not_used(tmp_path, monkeypatch, place):
    trained(tmp_path)
    monkeypatch.setattr(place, "fp32_precision", "bf16")
    net, _ = trained(tmp_path)
    assert net.history[0, "cache_hits_stored"] == 0


def test_asking_for_what_is_usual_changes_nothing(tmp_path):
    trained(tmp_path)
    torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
    net, _ = trained(tmp_path)
    assert net.history[0, "cache_hits_stored"] > 100


def test_code_that_was_edited_has_rows_of_its_own(tmp_path, monkeypatch):
    trained(tmp_path)
    monkeypatch.setattr(Backbone, "forward", lambda self, x: torch.relu(self.linear(x)))
    edited, _ = trained(tmp_path)
    assert edited.history[0, "cache_hits_stored"] == 0
    assert np.allclose(losses(edited), losses(trained(cached=False)[0]), atol=1e-6)


@pytest.mark.slow
def test_random_edits_never_serve_a_row_of_another_part(tmp_path):
    draw = np.random.default_rng(0)
    for _ in range(25):
        params = {
            "module__scale": float(draw.choice([1.0, 1.5, -1.0])),
            "module__seed": int(draw.integers(2)),
            "module__dtype": [torch.float32, torch.float64][draw.integers(2)],
            "module__backbone": [Backbone, Rescaled][draw.integers(2)],
            "max_epochs": 2,
        }
        data = X[draw.permutation(150)[:60]]
        net, _ = trained(tmp_path, data, **params)
        assert np.allclose(losses(net), losses(trained(None, data, cached=False, **params)[0]), atol=1e-6)


def test_rows_that_are_not_what_is_computed_are_dropped(tmp_path):
    trained(tmp_path)
    disk = opened(tmp_path)
    for key, size in list(disk.sizes(b"r")):
        if size:
            disk.put({key: np.full(size // 4, 0.5, dtype=np.float32).tobytes()})
    with pytest.warns(UserWarning, match="not what it computes now, so they are dropped"):
        net, n_computed = trained(tmp_path)
    assert n_computed >= 150
    assert np.allclose(losses(net), losses(trained(cached=False)[0]), atol=1e-6)
    assert trained(tmp_path)[1] < 300  # kept again


def test_a_damaged_row_is_computed(tmp_path):
    trained(tmp_path)
    disk = opened(tmp_path)
    (key, _), *_ = [(key, size) for key, size in disk.sizes(b"r") if size]
    disk._within(lambda transaction: transaction.put(key, b"x" * 28), write=True)
    net, n_computed = trained(tmp_path)
    assert n_computed < 25
    assert np.allclose(losses(net), losses(trained(cached=False)[0]), atol=1e-6)


def test_weights_written_through_data_while_rows_wait_are_not_stored_for_the_old_ones(tmp_path):
    class Writes(CallbackSetUnfreeze):
        def on_batch_begin(self, net, **kwargs):
            super().on_batch_begin(net, **kwargs)
            if len(net.history) == 1 and len(net.history[-1, "batches"]) == 2:
                net.module_.backbone.linear.weight.data.zero_()

    net = net_with(tmp_path)
    net.callbacks[0] = Writes(select_prefix("head"), frozen_mode="eval")
    net.fit(X, y)
    honest, _ = trained(tmp_path)
    assert np.allclose(losses(honest), losses(trained(cached=False)[0]), atol=1e-6)


def test_rows_that_are_augmented_do_not_stay_in_the_store(tmp_path):
    class Augments(CallbackSetUnfreeze):
        def on_batch_begin(self, net, batch=None, **kwargs):
            super().on_batch_begin(net, batch=batch, **kwargs)
            batch[0].add_(torch.rand(1))

    net = net_with(tmp_path)
    net.callbacks[0] = Augments(select_prefix("head"), frozen_mode="eval")
    with pytest.warns(UserWarning, match="none of its rows came again"):
        net.fit(X.copy(), y)
    assert sum(size > 0 for _, size in opened(tmp_path).sizes(b"r")) == 0


def test_code_that_cannot_be_read_is_not_stored_and_says_so(tmp_path):
    class Odd(Backbone):
        def __init__(self, *args, **params):
            super().__init__(*args, **params)
            self.reader = (one for one in range(3))

    with pytest.warns(UserWarning, match="kept in memory alone, as no other process can tell the 'reader' of its Odd"):
        net, _ = trained(tmp_path, module__backbone=Odd)
    assert net.history[1, "cache_hits"] == 150
    assert opened(tmp_path).sizes(b"") == []


def test_a_class_that_is_made_at_run_time_is_stored_by_what_it_computes(tmp_path):
    class Normed(Backbone):
        def __init__(self, *args, dim=0, **params):
            super().__init__(*args, **params)
            weight_norm(self.linear, dim=dim)

    for _ in range(2):
        net, _ = trained(tmp_path, module__backbone=Normed)
    assert net.history[0, "cache_hits_stored"] > 140
    net, _ = trained(tmp_path, module__backbone=Normed, module__dim=1)
    assert net.history[0, "cache_misses"] == 150


def test_a_full_store_stops_filling_and_training_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="keeps no more rows: it takes the 32,768 bytes"):
        net, _ = trained(tmp_path, cache={"max_store_bytes": 32_768})
    assert net.history[1, "cache_hits"] == 150
    assert opened(tmp_path).n_bytes <= 32_768


def test_half_precision_takes_half_and_differs_a_little(tmp_path):
    trained(tmp_path, cache={"dtype": "float16"})
    sizes = {size for _, size in opened(tmp_path).sizes(b"r") if size}
    net, n_computed = trained(tmp_path, cache={"dtype": "float16"})
    assert sizes == {10}
    assert n_computed < 20
    assert np.allclose(losses(net), losses(trained(cached=False)[0]), atol=1e-3)


def test_a_value_too_large_for_half_precision_is_not_stored(tmp_path):
    trained(tmp_path, cache={"dtype": "float16"}, module__scale=1e5, lr=1e-9)
    assert max((size for _, size in opened(tmp_path).sizes(b"r")), default=0) == 0


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_the_workers_of_a_search_share_a_store(tmp_path, backend):
    grid = {"lr": [0.3, 0.1]}
    plain = GridSearchCV(net_with(cached=False), grid, cv=3).fit(X, y)
    with parallel_backend(backend, n_jobs=2):
        search = GridSearchCV(net_with(tmp_path), grid, cv=3).fit(X, y)
    assert search.best_params_ == plain.best_params_
    assert np.allclose(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], atol=1e-5)
    rows = [key for key, size in opened(tmp_path).sizes(b"r") if size]
    assert len(rows) == len(np.unique(X, axis=0))


def test_two_trainings_at_once_share_a_store(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        nets = list(pool.map(lambda _: net_with(tmp_path).fit(X, y), range(2)))
    expected = losses(trained(cached=False)[0])
    assert all(np.allclose(losses(net), expected, atol=1e-6) for net in nets)


def test_a_store_that_was_removed_is_made_again(tmp_path):
    trained(tmp_path / "rows")
    shutil.rmtree(tmp_path / "rows")
    assert trained(tmp_path / "rows")[1] >= 150
    assert trained(tmp_path / "rows")[1] < 20


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "rows.lmdb").write_bytes(b"something else" * 1000)
    with pytest.raises(ValueError, match="cannot be opened"):
        trained(tmp_path)


def test_without_lmdb_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'mlr3torch_py\[store\]'"):
        trained(tmp_path / "rows")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"store": ""}, "`store` is ''"),
        ({"store": 3}, "`store` is 3"),
        ({"store": "rows", "dtype": "int8"}, "`dtype` is 'int8'"),
        ({"dtype": "float16"}, "there is none"),
        ({"store": "rows", "max_store_bytes": 0}, "`max_store_bytes` is 0"),
    ],
)
def test_wrong_arguments_are_refused(params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        t_clbk("frozen_cache", **params)


def computed_by(call, *args):
    """Return how many rows the backbone was given while something was called."""
    COMPUTED.rows.clear()
    call(*args)
    return sum(COMPUTED.rows)


@pytest.mark.parametrize("store", [None, "rows"])
def test_scoring_after_training_takes_known_rows(tmp_path, store):
    net, _ = trained(store and tmp_path / store, cache={"keep": True})
    expected = net.forward(X)
    assert computed_by(net.score, X, y) < (20 if store else 60)  # what is compared
    assert computed_by(net.score, X, y) == computed_by(net.predict_proba, X) == 0
    plain, _ = trained(cached=False)
    assert torch.allclose(net.forward(X), plain.forward(X), atol=1e-6)
    assert torch.equal(net.forward(X), expected)
    assert net.fit(X, y).score(X, y) == plain.score(X, y)


def test_rows_that_were_compared_in_training_are_not_compared_in_scoring(tmp_path):
    trained(tmp_path)
    net, n_computed = trained(tmp_path, cache={"keep": True})
    assert n_computed
    assert computed_by(net.predict, X) == 0


def test_rows_that_scoring_computes_are_stored(tmp_path):
    net, _ = trained(tmp_path, X[:100], cache={"keep": True})
    net.predict(X[100:])
    assert trained(tmp_path)[1] < 20


def write_data(net):
    net.module_.backbone.linear.weight.data.mul_(2)


def write_numpy(net):
    net.module_.backbone.linear.weight.detach().numpy()[:] *= 2


def write_buffer(net):
    net.module_.backbone.norm.running_mean.data.add_(1)


def write_setting(net):
    net.module_.backbone.scale = 3.0


def replace_layer(net):
    net.module_.backbone.linear = nn.Linear(4, 5).requires_grad_(False)


def load(net):
    net.module_.load_state_dict({name: value * 2 for name, value in net.module_.state_dict().items()})


def unfreeze(net):
    net.module_.requires_grad_(True)
    with torch.no_grad():
        net.module_.backbone.linear.weight.mul_(2)


def replace_code(net):
    Backbone.forward = edited


def edit_code(net):
    """As Jupyter's autoreload does."""
    Backbone.forward.__code__ = edited.__code__


def edited(self, x):
    return -torch.tanh(self.norm(self.linear(x)))


def replace_global(net):
    globals()["GAIN"] = 2.0


def change_global(net):
    SETTINGS["shift"] = 2.0


def change_value_of_class(net):
    Backbone.factors[0] = 2.0


def change_within_an_object(net):
    net.module_.backbone.config.factors["one"] = 2.0


@pytest.mark.parametrize("folder", [None, "store"])
@pytest.mark.parametrize(
    "change",
    [
        *(write_data, write_numpy, write_buffer, write_setting, replace_layer, load, unfreeze),
        *(replace_code, edit_code, replace_global),
        *(change_global, change_value_of_class, change_within_an_object),
    ],
)
def test_whatever_changes_the_frozen_part_after_training_counts_at_once(tmp_path, monkeypatch, folder, change):
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", FunctionType(forward.__code__, globals()))
    monkeypatch.setitem(globals(), "GAIN", GAIN)
    monkeypatch.setitem(SETTINGS, "shift", 0.0)
    monkeypatch.setattr(Backbone, "factors", [1.0])
    net, _ = trained(folder and tmp_path / folder, cache={"keep": True})
    net.predict(X)
    change(net)
    found = net.forward(X)
    with torch.no_grad():
        expected = copy.deepcopy(net.module_).eval()(torch.as_tensor(X))
    assert torch.allclose(found, expected, atol=1e-6)


def test_code_that_is_edited_again_and_again_counts_each_time(monkeypatch):
    net, _ = trained(cache={"keep": True})
    net.predict(X)
    net.module_.backbone.scale = 2.0
    for sign in (1.0, -1.0, 1.0):
        monkeypatch.setattr(Backbone, "forward", lambda self, x, sign=sign: sign * edited(self, x))
        found, again = net.forward(X), net.forward(X)
        expected = net.module_.head(sign * edited(net.module_.backbone, torch.as_tensor(X)))
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(found, again)


def test_copies_and_pickles_carry_no_rows(tmp_path):
    net, _ = trained(cache={"keep": True})
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert computed_by(other.predict, X) == 150
        assert np.array_equal(other.predict(X), net.predict(X))
    assert len(pickle.dumps(net)) < 40_000 + len(pickle.dumps(trained(cached=False)[0]))


def test_without_keep_nothing_is_left_after_training(tmp_path):
    net, _ = trained(tmp_path)
    assert computed_by(net.predict, X) == 150


class Doubled(Backbone):
    def forward(self, x):
        return super().forward(x) * (2 if len(x) > 40 else 1)


def test_rows_on_disk_are_tried_before_they_are_used_in_a_larger_batch(tmp_path):
    trained(tmp_path, module__backbone=Doubled, batch_size=30)
    params = {"module__backbone": Doubled, "batch_size": 75}
    larger, plain = trained(tmp_path, **params)[0], trained(cached=False, **params)[0]
    assert np.allclose(losses(larger), losses(plain), atol=1e-6)
