"""CallbackSetFrozenCache: the same weights as without it, and less computing."""

import copy
import logging
import re
import warnings

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import (
    CallbackSetFrozenCache,
    CallbackSetUnfreeze,
    Freezer,
    gradual_unfreezing,
    select_all,
    select_prefix,
    t_clbk,
    torch_callback,
)
from tests.cache.helpers import AGAIN, BOTH, CNN, N, X, hits
from tests.helpers import Nested, iris_net, weights, y
from tests.network.test_evaluation import EVAL, Normed


class Transformer(nn.Module):
    """The four columns as tokens, with dropout, and a padding mask."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        padding = torch.zeros(len(x), 4, dtype=torch.bool)
        return self.head(self.encoder(self.embed(x[:, :, None]), src_key_padding_mask=padding).mean(1))


DATA = {
    "in order": {},
    "shuffled": {"iterator_train__shuffle": True},
    "with validation": {"iterator_train__shuffle": True, "train_split": ValidSplit(5, stratified=True)},
    "with a short batch": {"batch_size": 64},
}


def train(module, *cache, max_epochs=6, **params):
    """Train with everything frozen but the head, then nothing, then everything but the head again."""
    torch.manual_seed(0)
    freezing = ("unfreeze", CallbackSetUnfreeze(select_prefix("head"), AGAIN, **EVAL))
    return iris_net(freezing, *cache, module=module, max_epochs=max_epochs, **params).fit(X, y)


@pytest.mark.sample(5)
@pytest.mark.parametrize("max_bytes", [2**30, 100_000])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("module", [CNN, Nested, Transformer])
def test_the_weights_are_those_without_it(module, data, max_bytes):
    plain = train(module, **DATA[data])
    net = train(module, t_clbk("frozen_cache", max_bytes=max_bytes), **DATA[data])
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(net)[name], tensor, rtol=0, atol=1e-5)
    for name, tensor in plain.module_.named_buffers():
        torch.testing.assert_close(net.module_.get_buffer(name), tensor, rtol=0, atol=1e-5)
    losses = [run.history[:, "train_loss"] for run in (plain, net)]
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert max(net.history[:, "cache_bytes"]) <= max_bytes
    if max_bytes == 2**30:
        assert hits(net) == [0, N, 0, 0, N, N]
        assert net.history[:, "cache_misses"] == [N, 0, 0, N, 0, 0]
    else:
        assert all(0 < n <= N for n in np.array(hits(net))[[1, 4, 5]])


def test_it_is_made_by_its_key_and_set_through_the_net():
    net = iris_net(t_clbk("frozen_cache"), callbacks__frozen_cache__check=0)
    assert dict(net.initialize().callbacks_)["frozen_cache"].check == 0
    assert t_clbk("frozen_cache").callback.get_params() == {
        "modules": None,
        "max_bytes": 2**30,
        "check": 1,
        "store": None,
        "max_store_bytes": 10 * 2**30,
        "dtype": None,
        "keep": False,
        "device": None,
    }


def test_rows_in_host_memory_give_the_same_training():
    def trained(**params):
        torch.manual_seed(0)
        return iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache", **params), module=Nested).fit(X, y)

    usual, in_host_memory = trained(), trained(device="cpu")
    assert hits(in_host_memory) == hits(usual) == [0, 150, 150, 150]
    assert in_host_memory.history[:, "train_loss"] == usual.history[:, "train_loss"]


@pytest.mark.parametrize(("value", "kind"), [("gpu", ValueError), (0, TypeError), (torch.device("cpu"), TypeError)])
def test_another_place_for_rows_is_refused_before_training(value, kind):
    with pytest.raises(kind, match=r"`device` is .*; give None or 'cpu'"):
        iris_net(t_clbk("frozen_cache", device=value)).fit(X, y)


def test_an_augmented_row_is_computed_and_modules_without_hits_are_dropped():
    class Augmented(Nested):
        def forward(self, x):
            return super().forward(x + torch.rand(1) if self.training and noise else x)

    for noise, expected in ((True, [0, 0, 0, 0]), (False, [0, 150, 150, 150])):
        with warnings.catch_warnings(record=True, action="always") as said:
            net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Augmented).fit(X, y)
        assert ["not caching 'embed', 'encoder': none of its rows came again" in str(one.message) for one in said] == [
            True
        ] * noise
        assert hits(net) == expected
        assert (net.history[-1, "cache_bytes"] == 0) == noise
        assert net.history[:, "cache_misses"] == ([150, 150, 0, 0] if noise else [150, 0, 0, 0])


def test_validation_rows_hit_though_training_rows_are_augmented():
    class Augmented(Nested):
        def forward(self, x):
            return super().forward(x + torch.rand(1) if self.training else x)

    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Augmented, train_split=ValidSplit(5)).fit(X, y)
    assert hits(net) == [0, 30, 30, 30]


def test_scoring_between_epochs_finds_the_rows_too():
    scores = torch_callback("scores", on_epoch_end=lambda self: self.ctx.net.predict(X))
    net = iris_net(copy.deepcopy(BOTH), scores, t_clbk("frozen_cache"), module=Nested).fit(X, y)
    assert hits(net) == [0, 300, 300, 300]


@pytest.mark.parametrize("freezing", [Freezer(name_starts_with=["embed", "encoder"]), None])
def test_modules_frozen_by_anyone_are_cached(freezing):
    module = Nested()
    if freezing is None:
        module.embed.requires_grad_(False)
        module.encoder.requires_grad_(False)
    callbacks = [] if freezing is None else [freezing]
    net = iris_net(*callbacks, t_clbk("frozen_cache"), module=module).fit(X, y)
    assert hits(net) == [0, 150, 150, 150]


def test_only_the_named_modules_are_cached():
    for modules in ("encoder", ["embed", "encoder"], ["encoder.0", "encoder.0.fc1"]):
        net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache", modules=modules), module=Nested).fit(X, y)
        assert hits(net) == [0] + [150] * 3


def test_the_whole_network_can_be_cached_while_another_module_trains():
    class Net(NeuralNetClassifier):
        def initialize_module(self):
            super().initialize_module()
            self.head_ = nn.Linear(3, 3)
            return self

        def infer(self, x, **fit_params):
            return self.head_(super().infer(x, **fit_params))

    net = iris_net(t_clbk("frozen_cache"), module=Nested().requires_grad_(False), cls=Net).fit(X, y)
    assert hits(net) == [0, 150, 150, 150]


# ---- when rows are forgotten


class AtEpochTwo(Callback):
    """Does something to the network at the end of the second epoch."""

    def __init__(self, what):
        self.what = what

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            self.what(net)


def load(net):
    net.module_.load_state_dict({name: value + 0.1 for name, value in net.module_.state_dict().items()})


def write_data(net):
    net.module_.second[0].weight.data += 0.1


def write_statistics(net):
    net.module_.second[1].running_mean.numpy()[:] += 0.1


def replace(net):
    net.module_.second[0] = nn.Linear(4, 4).requires_grad_(False)


def unfreeze_by_hand(net):
    net.module_.second[0].bias.requires_grad = True


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (load, [0, 150, 0, 150]),
        (write_data, [0, 150, 0, 150]),
        (write_statistics, [0, 150, 0, 150]),
        (replace, [0, 150, 0, 150]),
        (unfreeze_by_hand, [0, 150, 0, 150]),
        (lambda net: net.module_.load_state_dict(net.module_.state_dict()), [0, 150, 150, 150]),
    ],
)
def test_rows_of_a_module_that_has_changed_are_forgotten(what, expected):
    nets = []
    for cache in ([], [t_clbk("frozen_cache")]):
        torch.manual_seed(0)
        net = iris_net(copy.deepcopy(BOTH), AtEpochTwo(what), *cache, module=Normed, audited=False).fit(X, y)
        nets.append(net)
    for name, tensor in weights(nets[0]).items():
        torch.testing.assert_close(weights(nets[1])[name], tensor, rtol=0, atol=1e-5)
    assert hits(nets[1]) == expected


class Branches(nn.Module):
    """Two branches, each with a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x):
        return self.head[0](self.first(x)) + self.head[1](self.second(x))


class Together(Branches):
    """Two branches with one head."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.cat([self.first(x), self.second(x)], 1))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Branches, [(0, 300), (300, 0), (150, 0), (150, 0)]),
        (Together, [(0, 150), (150, 0), (0, 150), (150, 0)]),
        (Normed, [(0, 150), (150, 0), (0, 150), (150, 0)]),
    ],
)
def test_an_event_elsewhere_leaves_the_rows_but_of_what_led_to_it(module, expected):
    table = {"epoch": [3], "weights": [select_prefix("second")]}
    freezing = CallbackSetUnfreeze(select_prefix("head"), table, **EVAL)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=module).fit(X, y)
    assert list(zip(hits(net), net.history[:, "cache_misses"], strict=True)) == expected


def test_events_by_batch_are_followed():
    table = {"batch": [5, 8], "weights": [select_all(), ~select_prefix("head")], "action": ["unfreeze", "freeze"]}
    freezing = CallbackSetUnfreeze(select_prefix("head"), table, **EVAL)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Normed).fit(X, y)
    assert list(zip(hits(net), net.history[:, "cache_misses"], strict=True)) == [
        (0, 150),
        (50, 0),
        (0, 100),
        (100, 50),
    ]


def test_a_rejected_module_is_tried_again_after_an_event():
    table = {"epoch": [3], "weights": [select_prefix("embed")], "action": ["freeze"]}
    freezing = CallbackSetUnfreeze(select_prefix("embed", "head"), table)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Nested)
    with pytest.warns(UserWarning, match="not caching 'encoder': its input requires.*; so nothing is cached"):
        net.fit(X, y)
    assert hits(net) == [0, 0, 0, 150]


def test_a_training_without_on_train_begin_has_no_cache():
    net = iris_net(t_clbk("frozen_cache"), module=Nested, audited=False).initialize()
    net.fit_loop(X, y)
    assert len(net.history) == 4
    assert all("_compiled_call_impl" not in vars(module) for module in net.module_.modules())


def test_a_second_call_starts_with_an_empty_cache():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested, max_epochs=2).fit(X, y)
    net.partial_fit(X, y)
    assert hits(net) == [0, 150, 0, 150]
    net.fit(X, y)
    assert hits(net) == [0, 150]


def test_a_row_that_fails_the_check_stops_the_training():
    def write(self):
        if self.ctx.epoch == 2:
            self.ctx.network.encoder[0].fc2.weight.data += 1

    net = iris_net(
        copy.deepcopy(BOTH), t_clbk("frozen_cache", check=1), torch_callback("write", on_batch_begin=write),
        module=Nested, audited=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="frozen_cache: 'encoder' now gives another output for a row"):
        net.fit(X, y)
    assert all("_compiled_call_impl" not in vars(module) for module in net.module_.modules())


# ---- what is not cached


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"frozen_norm": "eval"}, "not caching 'first': in training mode it draws random.*with frozen_dropout='eval'"),
        ({"frozen_dropout": "eval"}, "not caching 'first': in training mode .* BatchNorm1d.*with frozen_norm='eval'"),
        ({"frozen_mode": "eval", "frozen_dropout": "train"}, "in training mode it draws.*with frozen_dropout='eval'"),
        ({}, "not caching 'first': in training mode .* BatchNorm1d.*freeze it with frozen_mode='eval'"),
    ],
)
def test_what_depends_on_its_mode_is_named_with_the_remedy(option, message):
    freezing = CallbackSetUnfreeze(~select_prefix("first"), None, **option)
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Normed, module__dropout=0.5, audited=False)
    with pytest.warns(UserWarning, match=message) as warned:
        net.fit(X, y)
    assert [one.filename for one in warned if "frozen_cache" in str(one.message)] == [__file__]
    assert hits(net) == [0, 0, 0, 0]


def test_a_named_module_that_never_freezes_is_warned_about():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache", modules=["head", "embed"]), module=Nested)
    with pytest.warns(UserWarning, match="nothing was cached for 'head', never called while frozen as a whole"):
        net.fit(X, y)


# ---- what is refused


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"max_bytes": 0}, ValueError, "`max_bytes` is 0; give a whole number of bytes, at least 1"),
        ({"max_bytes": "1 GB"}, TypeError, "`max_bytes` is '1 GB'; give a whole number of bytes"),
        ({"max_bytes": 1e9}, TypeError, "`max_bytes` is 1000000000.0; give a whole number of bytes"),
        ({"check": -1}, ValueError, "`check` is -1; give a whole number of rows, at least 0"),
        ({"check": True}, TypeError, "`check` is True; give a whole number of rows"),
        ({"modules": ""}, ValueError, "`modules` is '', and the network itself cannot be named; name modules in it"),
        ({"modules": ["head", ""]}, ValueError, "the network itself cannot be named"),
        ({"modules": 3}, TypeError, "`modules` is 3; give a name or a list of names"),
    ],
)
def test_bad_arguments_are_named(params, error, message):
    with pytest.raises(error, match=re.escape(message)):
        t_clbk("frozen_cache", **params)


def test_a_module_that_the_network_lacks_is_named_before_the_first_step():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache", modules="encodr"), module=Nested)
    with pytest.raises(ValueError, match="`modules` has 'encodr', which the network lacks; did you mean 'encoder'"):
        net.fit(X, y)
    assert len(net.history) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_is_refused_before_the_first_step():
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=Nested, compile=True, compile__backend="eager")
    with pytest.raises(ValueError, match="frozen_cache: `module_` is compiled by torch.compile"):
        net.fit(X, y)
    module = Nested()
    module.encoder.compile(backend="eager")
    with pytest.raises(ValueError, match="is compiled by torch.compile.*leave out compile=True, or the callback"):
        iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=module).fit(X, y)
    assert len(net.history) == 0


def test_copies_on_several_devices_are_refused_before_the_first_step():
    module = nn.DataParallel(Nested())
    module.device_ids = [0, 1]  # what it has on a machine with two devices
    net = iris_net(copy.deepcopy(BOTH), t_clbk("frozen_cache"), module=module, audited=False)
    with pytest.raises(ValueError, match="frozen_cache: `module_` is copied to several devices by DataParallel"):
        net.fit(X, y)
    assert len(net.history) == 0


def test_two_caches_in_one_net_are_refused():
    net = iris_net(
        copy.deepcopy(BOTH), ("one", CallbackSetFrozenCache()), ("two", CallbackSetFrozenCache()), module=Nested
    )
    with pytest.raises(ValueError, match="a net has two frozen_cache callbacks"):
        net.fit(X, y)


@pytest.mark.parametrize(("every", "is_said"), [(1, True), (2, False)])
def test_the_log_says_if_events_leave_no_epoch_to_use_what_was_cached(every, is_said, caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    freezing = t_clbk("unfreeze", schedule=gradual_unfreezing(every=every), frozen_mode="eval")
    net = iris_net(freezing, t_clbk("frozen_cache"), module=Nested, max_epochs=6).fit(X, y)
    assert (sum(hits(net)[:4]) < 10) is is_said
    assert any("hardly any row was used again" in message for message in caplog.messages) is is_said


class Switched(nn.Linear):
    """Counts how often its mode is set, which happens before each batch."""

    n_switched = 0

    def train(self, mode=True):
        self.n_switched += 1
        return super().train(mode)


def test_what_changes_between_all_calls_is_named():
    network = nn.Sequential(Switched(4, 4), nn.Linear(4, 3))
    freezing = CallbackSetUnfreeze(select_prefix("1"), frozen_mode="eval")
    net = iris_net(freezing, t_clbk("frozen_cache"), module=network, train_split=None, batch_size=25)
    with pytest.warns(UserWarning, match="'0': .*, since the 'n_switched' of its Switched changes from one to"):
        net.fit(X[::3], y[::3])
