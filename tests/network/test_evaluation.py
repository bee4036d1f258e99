"""Normalisation and dropout of frozen parts, held in evaluation or not."""

import copy
import pickle
from functools import partial

import pytest
import torch
from sklearn.base import clone
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, Freezer, select_all, select_last, select_none, select_prefix
from mlr3torch_py.network.evaluation import Pins, frozen_modules, pinned_modules
from mlr3torch_py.network.parameters import freeze
from mlr3torch_py.network.unwrap import bare
from tests.helpers import FOLLOWS_SCHEDULES, Stops, Trace, X, copies, iris_net, moved, weights, y

EVAL = {"frozen_norm": "eval", "frozen_dropout": "eval"}


class Normed(nn.Module):
    """Two blocks with norm layers and dropout, one of them without parameters, and a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(dropout))
        self.second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class Buffers(Trace):
    """Keeps the buffers after each training batch too."""

    def __init__(self):
        super().__init__()
        self.buffers_ = []

    def on_train_begin(self, net, **kwargs):
        self.buffers_ = self.buffers_ or [buffers(net)]

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.buffers_.append(buffers(net))


def buffers(net):
    return {name: tensor.clone() for name, tensor in bare(net.module_).named_buffers()}


def layers(changed):
    return {name.rpartition(".")[0] for name in changed}


def moving(trace):
    """Which layers move their statistics at each batch."""
    return [sorted(layers(moved(a, b))) for a, b in zip(trace.buffers_, trace.buffers_[1:], strict=False)]


TABLE = {"epoch": [2, 3], "weights": [select_prefix("second"), select_all()]}


@pytest.mark.sample(3)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from the tracing of the criterion
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"optimizer": torch.optim.Adam},
        {"train_split": None},
        pytest.param(
            {"compile": True, "compile__backend": "eager"},
            marks=pytest.mark.skipif(not FOLLOWS_SCHEDULES, reason="refused with this torch"),
        ),
    ],
)
def test_frozen_norm_layers_keep_their_statistics_to_the_bit_until_they_are_unfrozen(params):
    trace = Buffers()
    unfreeze = CallbackSetUnfreeze(select_last(1), TABLE, **EVAL)
    net = iris_net(unfreeze, trace, module=Normed, max_epochs=3, **params).fit(X, y)
    assert moving(trace) == [[]] * 3 + [["second.1"]] * 3 + [["first.1", "second.1"]] * 3
    assert not pinned_modules(net.module_)


def test_in_training_mode_they_drift_as_in_r():
    trace = Buffers()
    with pytest.warns(UserWarning, match=r"^first.1.running_mean, .* moved in a frozen part"):
        iris_net(CallbackSetUnfreeze(select_last(1), TABLE), trace, module=Normed, max_epochs=3).fit(X, y)
    assert moving(trace) == [["first.1", "second.1"]] * 9


def test_they_are_held_again_when_frozen_again_by_batches():
    trace = Buffers()
    table = {
        "batch": [2, 4],
        "weights": [select_prefix("first"), select_prefix("first")],
        "action": ["unfreeze", "freeze"],
    }
    iris_net(CallbackSetUnfreeze(select_last(1), table, **EVAL), trace, module=Normed, max_epochs=2).fit(X, y)
    assert moving(trace) == [[], ["first.1"], ["first.1"], [], [], []]


def test_a_freezer_holds_what_it_freezes():
    trace = Buffers()
    iris_net(Freezer(name_starts_with="first", until_epoch=1, **EVAL), trace, module=Normed, max_epochs=2).fit(X, y)
    assert moving(trace) == [["second.1"]] * 3 + [["first.1", "second.1"]] * 3


def test_each_callback_decides_for_what_it_holds():
    trace = Buffers()
    callbacks = [Freezer(name_starts_with="first", **EVAL), Freezer(name_starts_with="second")]
    with pytest.warns(UserWarning, match=r"^second.1.running_mean, .* moved in a frozen part"):
        iris_net(*callbacks, trace, module=Normed, max_epochs=1).fit(X, y)
    assert moving(trace) == [["second.1"]] * 3


def test_a_layer_that_trains_in_part_is_not_frozen():
    trace = Buffers()
    iris_net(Freezer(names=["first.1.weight"], **EVAL), trace, module=Normed, max_epochs=1).fit(X, y)
    assert moving(trace) == [["first.1", "second.1"]] * 3


def outputs_of_epoch(**options):
    """The losses at the batches of one epoch with nothing that changes but by dropout: a rate of zero."""
    torch.manual_seed(0)
    module = Normed(dropout=0.9)
    unfreeze = CallbackSetUnfreeze(select_last(1), None, **options)
    params = {"module": copy.deepcopy(module), "batch_size": 150, "lr": 0.0, "max_epochs": 3}
    return iris_net(unfreeze, **params).fit(X, y).history[:, "train_loss"]


def test_dropout_of_frozen_parts_does_nothing_if_asked_for():
    assert len(set(outputs_of_epoch(frozen_norm="eval"))) == 3
    assert len(set(outputs_of_epoch(**EVAL))) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, clone, lambda net: pickle.loads(pickle.dumps(net))])
def test_the_option_goes_with_a_copy_of_the_net(copied):
    callbacks = [("unfreeze", CallbackSetUnfreeze(select_last(1), TABLE, **EVAL)), ("trace", Buffers())]
    net = iris_net(*callbacks, module=Normed, max_epochs=1)
    if copied is not clone:
        net.fit(X, y)
    net = copied(net)
    net.partial_fit(X, y)
    net.partial_fit(X, y)
    trace = dict(net.callbacks_)["trace"]
    assert moving(trace)[:6] == ([[]] * 3 + [["second.1"]] * 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_the_network_made_while_it_trains_has_no_pins(copied):
    class Copies(Trace):
        def on_batch_end(self, net, **kwargs):
            made.append(copied(net.module_))

    made = []
    net = iris_net(CallbackSetUnfreeze(select_last(1), None, **EVAL), Copies(), module=Normed, max_epochs=1).fit(X, y)
    copy_ = made[0].train()
    assert all(module.training for module in copy_.modules())
    assert all("train" not in vars(module) for module in copy_.modules())
    trace = Buffers()
    iris_net(trace, CallbackSetUnfreeze(select_all()), module=copy_, max_epochs=1).fit(X, y)
    assert moving(trace) == [["first.1", "second.1"]] * 3
    assert not pinned_modules(net.module_)


def test_layers_are_let_go_of_though_the_options_have_changed():
    class Changes(Trace):
        def on_epoch_end(self, net, **kwargs):
            unfreeze.frozen_norm = unfreeze.frozen_dropout = "train"

    unfreeze = CallbackSetUnfreeze(select_last(1), None, **EVAL)
    net = iris_net(unfreeze, Changes(), module=Normed(), max_epochs=2, audited=False).fit(X, y)
    assert not pinned_modules(net.module_)
    assert net.module_.train().first[1].training


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, None])
def test_nothing_is_left_behind(error):
    module = Normed()
    stops = [] if error is None else [Stops(error, 2)]
    net = iris_net(CallbackSetUnfreeze(select_last(1), None, **EVAL), *stops, module=module)
    if error is ZeroDivisionError:
        with pytest.raises(error):
            net.fit(X, y)
    else:
        net.fit(X, y)
    assert not pinned_modules(module)
    assert all("train" not in vars(layer) for layer in module.modules())
    module.train()
    assert all(layer.training for layer in module.modules())
    before = buffers(net)
    plain = iris_net(module=module, max_epochs=1, audited=False).fit(X, y)
    assert layers(moved(before, buffers(plain))) == {"first.1", "second.1"}


def test_a_second_fit_holds_anew():
    trace = Buffers()
    net = iris_net(CallbackSetUnfreeze(select_last(1), TABLE, **EVAL), trace, module=Normed(), max_epochs=3)
    net.fit(X, y)
    first, trace.buffers_ = moving(trace), []
    net.fit(X, y)
    assert moving(trace) == first


def test_a_held_layer_is_used_as_in_evaluation():
    """One training step gives what the running statistics give, not those of the batch."""
    module = Normed()
    with torch.no_grad():
        module.first[1].running_mean.fill_(3.0)
    expected = nn.functional.cross_entropy(copy.deepcopy(module).eval()(torch.tensor(X)), torch.tensor(y)).item()
    net = iris_net(CallbackSetUnfreeze(select_last(1), None, **EVAL), module=module, batch_size=150, max_epochs=1)
    assert net.fit(X, y).history[0, "train_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "is_normalisation"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm2d(4, affine=False), True),
        (nn.SyncBatchNorm(4), True),
        (nn.InstanceNorm1d(4, affine=True), True),
        (nn.LayerNorm(4), False),
        (nn.GroupNorm(2, 4), False),
        (nn.Dropout2d(), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("option", ["frozen_mode", "frozen_norm", "frozen_dropout"])
def test_which_option_pins_which_layers(layer, is_normalisation, option):
    pinned = []

    class Looks(Trace):
        def on_batch_begin(self, net, **kwargs):
            pinned.append("0.0" in pinned_modules(net.module_))

    module = nn.Sequential(nn.Sequential(layer, nn.Linear(4, 4)), nn.Linear(4, 3))
    module.forward = lambda x: module[1](x)
    unfreeze = CallbackSetUnfreeze(select_last(1), None, **{option: "eval"})
    iris_net(unfreeze, Looks(), module=module, max_epochs=1, batch_size=150).fit(X, y)
    assert pinned == [option == "frozen_mode" or (option == "frozen_norm") is is_normalisation]


@pytest.mark.parametrize("callback", [CallbackSetUnfreeze, Freezer])
@pytest.mark.parametrize("argument", ["frozen_norm", "frozen_dropout"])
def test_other_modes_are_refused(callback, argument):
    first = select_none() if callback is CallbackSetUnfreeze else ["0.weight"]
    with pytest.raises(ValueError, match=f"`{argument}` is 'off'; give 'train', or 'eval' to pin"):
        iris_net(callback(first, **{argument: "off"})).fit(X, y)


def test_weights_train_the_same_with_both_modes_where_there_is_nothing_to_hold():
    ends = []
    for options, module in zip([{}, EVAL], copies(iris_net().initialize().module_, 2), strict=True):
        ends.append(weights(iris_net(CallbackSetUnfreeze(select_last(1), None, **options), module=module).fit(X, y)))
    assert not moved(*ends)


def test_a_shared_module_is_frozen_only_in_all_of_its_places():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            dropout = nn.Dropout()
            self.first = nn.Sequential(nn.Linear(4, 4), dropout)
            self.second = nn.Sequential(nn.Linear(4, 4), dropout)

    network = Shared()
    for parts, expected in (({"first"}, []), ({"first", "second"}, ["first.1", "second.1"])):
        held = {name for name, _ in network.named_parameters() if name.partition(".")[0] in parts}
        freeze(network, held)
        assert [path for path, one in frozen_modules(network, held).items() if isinstance(one, nn.Dropout)] == expected


def test_modules_without_parameters_go_with_what_runs_before_them():
    network = nn.Sequential(
        nn.Dropout(),
        nn.Linear(2, 2),
        nn.Sequential(nn.ReLU(), nn.Dropout()),
        nn.Dropout(),
        nn.Linear(2, 2),
        nn.Dropout(),
    )
    freeze(network, held := {"1.weight", "1.bias"})
    assert list(frozen_modules(network, held)) == ["1", "2", "2.0", "2.1", "3"]
    freeze(network, held := {"4.weight", "4.bias"})
    assert list(frozen_modules(network, held)) == ["4", "5"]
    freeze(network, held := {name for name, _ in network.named_parameters()})
    assert list(frozen_modules(network, held)) == ["", "0", "1", "2", "2.0", "2.1", "3", "4", "5"]
    assert list(frozen_modules(network, set())) == []


def test_a_part_that_was_frozen_by_hand_is_not_frozen_by_the_callback():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    assert list(frozen_modules(network, {"1.weight", "1.bias"})) == ["", "1"]


def noted(module, mode=True):
    """A ``train`` method that notes what it is told."""
    vars(module).setdefault("told", []).append(mode)
    return nn.Module.train(module, mode)


class Tells(nn.BatchNorm1d):
    train = noted


def nested():
    return nn.Sequential(
        nn.Linear(2, 2), nn.Sequential(), nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    )


def added(network):
    network[2][1].append(nn.Dropout())
    return network[2][1][1]


def put_in_place(network):
    network[2][0] = nn.BatchNorm1d(2)
    return network[2][0]


def of_another_class(network):
    network[2][0].__class__ = Tells
    return network[2][0]


def with_train_of_its_own(network):
    vars(network[2][0])["train"] = partial(noted, network[2][0])
    return network[2][0]


@pytest.mark.parametrize("change", [added, put_in_place, of_another_class, with_train_of_its_own])
def test_train_reaches_what_has_changed_below_pinned_modules(change):
    network, pins = nested(), Pins()
    pins.set(network.modules())
    network.train().train()
    assert not any(module.training for module in network.modules())
    changed = change(network)
    network.eval().train()
    assert changed.training or changed.told == [False, True]
    assert not any(module.training for module in network.modules() if module is not changed)
    pins.set([])
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("mode", [False, True])
def test_modules_are_let_go_of_in_the_mode_that_train_has_asked_for(mode):
    network, pins = nested(), Pins()
    pins.set(network.modules())
    network.train(not mode).train(mode)
    pins.set([])
    assert {module.training for module in network.modules()} == {mode}
