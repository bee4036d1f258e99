"""What the package promises on each device: flags, pins, rates, mixed precision, resuming, audit, cache and store.

The same tests run on the CPU, and where there is a GPU, on it, by ``nox -s gpu``.
"""

import copy
import itertools
import warnings
from contextlib import contextmanager

import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, freeze_plan, select_all, select_prefix, t_clbk
from mlr3torch_py.cache.passes.stopwatch import Pace, Stopwatch
from mlr3torch_py.cache.rows.call import Call
from mlr3torch_py.cache.rows.output import OutputSpec
from mlr3torch_py.cache.storage.memory import Memory
from mlr3torch_py.network.device_hash import hash_rows, hash_tensors
from tests.helpers import X, iris_net, moved, weights, y

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}
LATER = {"epoch": [3], "weights": [select_all()]}
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD fused": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "fused": True}),
    "Adam fused": (torch.optim.Adam, {"fused": True, "weight_decay": 0.1}),
    "AdamW foreach": (torch.optim.AdamW, {"foreach": True}),
    "Adam capturable": (torch.optim.Adam, {"capturable": True}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "LBFGS": (torch.optim.LBFGS, {}),
}


class Network(nn.Module):
    """`body`, with normalisation and dropout, and `head`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def net_of(device, *callbacks, **params):
    return iris_net(*callbacks, **{"module": Network, "device": device, "lr": 0.01, "max_epochs": 2} | params)


def is_there(net, device):
    return all(tensor.device.type == device for tensor in weights(net).values())


def freezing(table=None, **options):
    return CallbackSetUnfreeze(select_prefix("head"), table, **{"frozen_mode": "eval"} | options)


def state(net):
    return {name: tensor.clone() for name, tensor in net.module_.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_frozen_keeps_its_bits_and_then_trains(device, optimizer):
    if device == "cpu" and optimizer == "Adam capturable":
        pytest.skip("the CPU captures no graphs")
    kind, params = OPTIMIZERS[optimizer]
    given = {f"optimizer__{name}": value for name, value in params.items()}
    net = net_of(device, freezing(LATER), optimizer=kind, **given).initialize()
    before = state(net)
    net.partial_fit(X, y)
    assert moved(before, state(net)) == {"head.weight", "head.bias"}
    halfway = weights(net)
    net.partial_fit(X, y)
    assert moved(halfway, weights(net)) == set(halfway)
    assert is_there(net, device)


def test_factors_on_rates_do_what_groups_by_hand_do(device):
    table = {"epoch": [1], "weights": [select_prefix("body")], "lr_mult": [0.1]}
    ours = net_of(device, CallbackSetUnfreeze(select_all(), table), audited=False).fit(X, y)
    torch.manual_seed(0)
    by_hand = net_of(device, audited=False, optimizer__param_groups=[("body*", {"lr": 0.001})]).fit(X, y)
    for one, other in zip(weights(ours).values(), weights(by_hand).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class Scaled(NeuralNetClassifier):
    """Trains in half precision with a GradScaler, as the documentation of torch shows."""

    def initialize(self):
        super().initialize()
        self.scaler_ = torch.amp.GradScaler(self.device)
        return self

    def train_step(self, batch, **fit_params):
        inputs, targets = batch
        self._set_training(True)
        self.optimizer_.zero_grad()
        with torch.autocast(self.device, dtype=HALF[self.device]):
            y_pred = self.infer(inputs, **fit_params)
            loss = self.get_loss(y_pred, targets, X=inputs, training=True)
        self.scaler_.scale(loss).backward()
        self.notify("on_grad_computed", named_parameters=self.get_all_learnable_params())
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        return {"loss": loss, "y_pred": y_pred}


@pytest.mark.parametrize("lr_mult", [None, 0.1])
def test_mixed_precision_with_a_scaler(device, lr_mult):
    table = {"epoch": [3], "weights": [~select_prefix("head")], "lr_mult": [lr_mult]}
    net = net_of(device, freezing(table), cls=Scaled, audited=False).initialize()
    before = state(net)
    net.partial_fit(X, y)
    assert moved(before, state(net)) == {"head.weight", "head.bias"}
    halfway = weights(net)
    net.partial_fit(X, y)
    assert moved(halfway, weights(net)) == set(halfway)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_equals_one_without_a_stop_bit_for_bit(tmp_path, device, stop):
    def run(folder, max_epochs):
        torch.manual_seed(0)
        torch.cuda.manual_seed_all(0)
        checkpoint = t_clbk("checkpoint", path=tmp_path / folder, freq=1, resume=True)
        schedule = CallbackSetUnfreeze(select_prefix("head"), {"epoch": [3], "weights": [select_all()]})
        params = {"optimizer": torch.optim.Adam, "iterator_train__shuffle": True, "audited": False}
        return net_of(device, schedule, checkpoint, max_epochs=max_epochs, **params).fit(X, y)

    whole = run("whole", 4)
    run("stopped", stop)
    resumed = run("stopped", 4)
    assert not moved(state(whole), state(resumed))
    assert resumed.history[:, "train_loss"] == whole.history[:, "train_loss"]


@pytest.mark.parametrize("place", [None, "cpu"])
def test_the_cache_takes_rows_from_memory_and_gives_the_same_weights(device, place):
    network = Network()
    params = {"max_epochs": 4, "batch_size": 32, "iterator_train__shuffle": True}
    torch.manual_seed(1)
    plainly = net_of(device, freezing(), module=copy.deepcopy(network), **params).fit(X, y)
    torch.manual_seed(1)
    cached = net_of(device, freezing(), t_clbk("frozen_cache", device=place), module=network, **params).fit(X, y)
    assert cached.history[:, "cache_hits"][1:] == [150] * 3
    for one, other in zip(weights(plainly).values(), weights(cached).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [None, "cpu"])
def test_a_resumed_run_has_the_rows_of_the_one_that_was_stopped(tmp_path, device, place):
    def run(folder, max_epochs):
        torch.manual_seed(0)
        checkpoint = t_clbk("checkpoint", path=tmp_path / folder, freq=1, resume=True)
        cache = t_clbk("frozen_cache", device=place)
        return net_of(device, freezing(), cache, checkpoint, max_epochs=max_epochs, audited=False).fit(X, y)

    whole = run("whole", 4)
    run("stopped", 2)
    resumed = run("stopped", 4)
    assert not moved(state(whole), state(resumed))
    assert resumed.history[:, "cache_hits"] == whole.history[:, "cache_hits"] == [0, 150, 150, 150]


def test_a_store_serves_the_next_training_and_predictions(device, tmp_path):
    network = Network()
    plainly = net_of(device, freezing(), module=copy.deepcopy(network)).fit(X, y)
    for is_warm in (False, True):
        torch.manual_seed(0)
        cache = t_clbk("frozen_cache", store=tmp_path, keep=True)
        net = net_of(device, freezing(), cache, module=copy.deepcopy(network)).fit(X, y)
        assert (sum(net.history[:, "cache_hits_stored"]) > 100) is is_warm
        for one, other in zip(weights(plainly).values(), weights(net).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        torch.testing.assert_close(net.forward(X), plainly.forward(X), rtol=0, atol=1e-4)


@pytest.mark.parametrize("frozen_mode", ["train", "eval"])
def test_what_is_pinned_keeps_its_statistics(device, frozen_mode):
    net = net_of(device, freezing(frozen_mode=frozen_mode), audited=False).initialize()
    before = state(net)
    net.partial_fit(X, y)
    statistics = {name for name in moved(before, state(net)) if name.startswith("body.1")}
    assert (statistics == set()) is (frozen_mode == "eval")


def test_a_compiled_network_is_refused_by_the_cache_before_the_first_step(device):
    with pytest.raises(ValueError, match="`module_` is compiled by torch.compile"):
        net_of(device, freezing(), t_clbk("frozen_cache"), compile=True).fit(X, y)


def test_the_audit_finds_a_write(device):
    class Writes(Network):
        def forward(self, x):
            if self.training:
                self.body[0].weight.data += 1e-3
            return super().forward(x)

    with pytest.raises(RuntimeError, match="body.0.weight"):
        net_of(device, freezing(), module=Writes).fit(X, y)


def test_early_stopping_puts_the_best_weights_back_where_they_were(device):
    stopping = t_clbk("early_stopping", monitor="train_loss", patience=1, min_delta=100.0, restore_best_weights=True)
    net = net_of(device, stopping, max_epochs=5, audited=False).fit(X, y)
    assert len(net.history) == 2
    assert is_there(net, device)


def test_a_plan_is_made_without_training(device):
    net = net_of(device, freezing(LATER), max_epochs=4).initialize()
    before = state(net)
    plan = freeze_plan(net, X, y)
    assert [phase.epoch for phase in plan.phases] == [1, 3]
    assert not moved(before, state(net))


# ---- what only a GPU can show


@contextmanager
def no_waiting():
    """Let torch raise where Python would wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(action="ignore"):  # it is called a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.int64, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (5,), (64, 7), (3, 2**16 + 1)])
def test_rows_have_the_same_hash_on_a_gpu(dtype, shape):
    rows = torch.randint(0, 256, shape).to(dtype)
    assert torch.equal(hash_rows(rows.cuda()).cpu(), hash_rows(rows))
    turned = rows.transpose(0, -1)
    assert torch.equal(hash_rows(turned.cuda()).cpu(), hash_rows(turned))


@pytest.mark.gpu
@NEEDS_GPU
def test_rows_on_a_gpu_are_known_by_their_content():
    rows, mask = torch.randn(50, 700, device="cuda"), torch.rand(50, 3, device="cuda") > 0.5
    large = torch.randn(2**20, device="cuda")
    before = torch.cuda.get_rng_state()
    known = Call((rows, mask), {}).row_keys()
    order = torch.randperm(50)
    assert Call((rows[order], mask[order]), {}).row_keys() == [known[i] for i in order]
    assert len(set(known)) == 50
    assert not set(known) & set(Call((rows, ~mask), {}).row_keys())
    small, number = large[:7], torch.tensor(3, device="cuda")
    others = [
        -large,
        large[1:],
        large[:-1],
        torch.cat([large, torch.zeros_like(small)]),
        number,
        number + 1,
        -small,
        rows.half(),
    ]
    hashes = hash_tensors([large, small, *others, large.clone(), small.cpu()])
    assert hashes[:2] == hashes[-2:]
    assert len(set(hashes)) == 2 + len(others)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("place", [None, torch.device("cpu")])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_nothing_waits_for_the_gpu_when_rows_are_hashed_written_and_read(place, order):
    rows = torch.empty_permuted((4000, 30, 7), order, device="cuda").normal_()
    memory = Memory(OutputSpec.of(rows, len(rows)).tensors[0], place)
    memory.grow(len(rows))
    hash_rows(rows)  # which moves the multipliers there
    with no_waiting():
        hash_rows(rows)
        for start in range(0, len(rows), 100):
            memory.write(start, rows[start : start + 100])
        places = torch.randperm(len(rows)).tolist()
        some, few = memory.read(places), memory.read([7, 8, 9])
    assert memory.device.type == ("cuda" if place is None else "cpu")
    assert torch.equal(some, rows[places])
    assert torch.equal(few, rows[7:10])
    assert some.stride() == rows.stride()
    memory.keep([3, 1])
    assert torch.equal(memory.on_cpu(2), rows[[3, 1]].cpu())


class Convolutions(nn.Module):
    """Convolutions, which a GPU computes by other units, and more or less coarsely, for batches of other sizes."""

    def __init__(self):
        super().__init__()
        widths = [3, 16, 64, 64, 64, 128, 128]
        layers = [
            layer
            for one, other in itertools.pairwise(widths)
            for layer in (nn.Conv2d(one, other, 3, padding=1), nn.BatchNorm2d(other), nn.ReLU())
        ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("half", [None, torch.float16, torch.bfloat16])
def test_rows_are_cached_whatever_units_compute_them(half):
    class Autocast(NeuralNetClassifier):
        def infer(self, x, **fit_params):
            with torch.autocast("cuda", half, enabled=half is not None):
                return super().infer(x, **fit_params)

    rows, labels = torch.randn(150, 3, 32, 32), torch.randint(3, (150,))
    network, params = Convolutions(), {"max_epochs": 4, "batch_size": 64, "iterator_train__shuffle": True}
    net = net_of("cuda", freezing(), t_clbk("frozen_cache", check=64), module=network, cls=Autocast, **params)
    net.fit(rows, labels)
    assert net.history[:, "cache_misses"][2:] == [0, 0]  # where trials take long, some wait for the second epoch


@pytest.mark.gpu
@NEEDS_GPU
def test_times_are_those_of_the_gpu():
    large, pace = torch.randn(4096, 4096, device="cuda"), Pace(1000.0)
    (large @ large).sum().item()
    with no_waiting():
        with Stopwatch(large.device) as watch:
            for _ in range(50):
                large @ large
        pace.note(watch, 10)
        assert pace.seconds_per_row == 1000  # not known yet
    torch.cuda.synchronize()
    assert pace.seconds_per_row == watch.seconds_on_device / 10
    assert watch.seconds_on_device > watch.seconds


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_store_serves_a_training_on_another_gpu(tmp_path):
    network = Network()
    for device in ("cuda:0", "cuda:1"):
        cache = t_clbk("frozen_cache", store=tmp_path)
        net = net_of(device, freezing(), cache, module=copy.deepcopy(network)).fit(X, y)
        assert (sum(net.history[:, "cache_hits_stored"]) > 100) is (device == "cuda:1")
        assert {str(tensor.device) for tensor in weights(net).values()} == {device}
