"""Nets and habits of users that nobody listed: flags, pins and rates hold, and nothing is left behind."""

import warnings

import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet, NeuralNetClassifier
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping
from skorch.callbacks import Freezer as FreezerOfSkorch
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn.utils import prune

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    select_all,
    select_last,
    select_none,
    select_prefix,
    t_clbk,
    trainable_names,
)
from mlr3torch_py.network.evaluation import pinned_modules
from tests.freezing.modes import BATCH, KINDS, Probe, buffers, modes, scripted
from tests.freezing.modes import Network as OfModes
from tests.freezing.test_replaced import SLOW, At, Network, schedule
from tests.helpers import Stops, Trace, X, iris_net, moved, y

SLOW_AND_HEAD = ["slow.0.weight", "slow.0.bias", "head.weight", "head.bias"]


def rates(net):
    return [sorted(key for key in entry if key.startswith("lr")) for row in net.history for entry in row["batches"]]


def only_head(**options):
    return CallbackSetUnfreeze(select_prefix("head"), **{"frozen_mode": "eval"} | options)


class TwoOptimizers(NeuralNetClassifier):
    """Has optimizers of other names, one of which takes a step with every second batch only."""

    def initialize_optimizer(self, *args, **kwargs):
        body = [*self.module_.frozen.parameters(), *self.module_.slow.parameters()]
        self.optimizer_body_ = torch.optim.SGD(body, lr=0.1)
        self.optimizer_head_ = torch.optim.SGD(self.module_.head.parameters(), lr=0.3)
        return self

    def train_step(self, batch, **fit_params):
        for optimizer in (self.optimizer_body_, self.optimizer_head_):
            optimizer.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_head_.step()
        if len(self.history[-1]["batches"]) % 2 == 0:
            self.optimizer_body_.step()
        return step


def test_optimizers_of_other_names_that_take_turns():
    trace = Trace()
    net = iris_net(schedule(), trace, cls=TwoOptimizers, module=Network, max_epochs=2).fit(X, y)
    assert trace.batches_ == [SLOW_AND_HEAD] * 6
    head, both = ["lr_optimizer_head_0"], ["lr_optimizer_body_0_x0.1", "lr_optimizer_head_0"]
    assert [[name for name in names if name != "lr_optimizer_body_0"] for names in rates(net)] == [head, both, head] * 2


class WithGenerator(NeuralNet):
    """Trains a generator by an optimizer of its own, before `module_`."""

    def initialize_module(self):
        self.generator_ = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.module_ = OfModes(KINDS["BatchNorm1d"]())
        return self

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_generator_ = torch.optim.SGD(self.generator_.parameters(), lr=0.1)
        self.optimizer_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
        return self

    def infer(self, x, **fit_params):
        return self.module_(self.generator_(x))

    def train_step(self, batch, **fit_params):
        self.optimizer_generator_.zero_grad()
        step = super().train_step(batch, **fit_params)
        self.optimizer_generator_.step()
        return step


def test_a_module_beside_is_neither_frozen_nor_pinned():
    probe = Probe()
    net = iris_net(only_head(), probe, cls=WithGenerator, module=nn.Module, max_epochs=1).initialize()
    before = buffers(net.generator_)
    net.partial_fit(X, torch.as_tensor(y))
    assert probe.is_fixed_ == [True] * 3
    assert moved(before, buffers(net.generator_))


class Parallel(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.module_ = nn.DataParallel(self.module_)
        return self


def test_data_parallel():
    trace = Trace()
    net = iris_net(schedule(), trace, cls=Parallel, module=Network, max_epochs=2).fit(X, y)
    assert trace.batches_ == [SLOW_AND_HEAD] * 6
    assert rates(net) == [["lr_0", "lr_0_x0.1"]] * 6
    assert not pinned_modules(net.module_)


def test_two_nets_take_turns_with_one_module():
    network, trace = Network(), Trace()
    one = iris_net(schedule(), module=network, max_epochs=1)
    other = iris_net(CallbackSetUnfreeze(select_all()), trace, module=network, max_epochs=1)
    for _ in range(2):
        one.partial_fit(X, y)
        assert trainable_names(network) == SLOW_AND_HEAD
        assert not pinned_modules(network)
        other.partial_fit(X, y)
    assert [len(names) for names in trace.batches_] == [8] * 6
    assert all(modes(network.train()))


def test_warm_start_goes_on():
    trace = Trace()
    table = {"epoch": [3], "weights": [select_prefix("slow")], "lr_mult": [0.1]}
    callback = CallbackSetUnfreeze(select_prefix("head"), table, frozen_mode="eval")
    iris_net(callback, trace, module=Network, max_epochs=2, warm_start=True).fit(X, y).fit(X, y)
    assert trace.batches_ == [SLOW_AND_HEAD[2:]] * 6 + [SLOW_AND_HEAD] * 6


def test_no_epoch_at_all_leaves_the_network_as_it_was():
    network = Network().eval()
    net = iris_net(schedule(), module=network, max_epochs=0).fit(X, y)
    assert len(trainable_names(network)) == 8
    assert not any(modes(network))
    net.set_params(max_epochs=1).fit(X, y)
    assert trainable_names(network) == SLOW_AND_HEAD


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_stop_before_the_first_step_and_a_fit_after_it(error, is_before):
    class StopsAtOnce(Callback):
        def on_batch_begin(self, net, **kwargs):
            if not stopped:
                stopped.append(True)
                raise error

    stopped, network = [], Network()
    callbacks = [StopsAtOnce(), schedule()] if is_before else [schedule(), StopsAtOnce()]
    net = iris_net(*callbacks, module=network, max_epochs=1)
    try:
        net.fit(X, y)
    except ZeroDivisionError:
        assert error is ZeroDivisionError
    assert not pinned_modules(network)
    net.fit(X, y)
    assert trainable_names(network) == SLOW_AND_HEAD
    assert rates(net) == [["lr_0", "lr_0_x0.1"]] * 3


def test_a_callback_that_is_taken_out_after_an_error():
    net = iris_net(("unfreeze", schedule()), ("stops", Stops(ZeroDivisionError, 4)), module=Network, audited=False)
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    net.set_params(callbacks__stops=None).fit(X, y)
    assert trainable_names(net.module_) == SLOW_AND_HEAD
    net.set_params(callbacks__unfreeze=None).fit(X, y)
    assert len(trainable_names(net.module_)) == 8
    assert set(map(tuple, rates(net))) == {()}


@pytest.mark.slow
def test_a_search_in_processes():
    callback = t_clbk("unfreeze", starting_weights=select_prefix("slow", "head"), unfreeze=SLOW)
    net = iris_net(callback, module=Network, max_epochs=2, audited=False)
    grid = {"callbacks__unfreeze__frozen_mode": ["train", "eval"]}
    search = GridSearchCV(net, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    best = search.best_estimator_
    assert rates(best) == [["lr_0", "lr_0_x0.1"]] * 6
    assert not pinned_modules(best.module_)


def test_a_network_that_is_scripted_as_a_whole():
    network, trace = scripted(OfModes(KINDS["BatchNorm1d"]())), Trace()
    before = buffers(network)
    table = {"epoch": [2], "weights": [select_all()]}
    net = iris_net(only_head(unfreeze=table), trace, module=network, max_epochs=1).fit(X, y)
    assert trace.batches_ == [["head.weight", "head.bias"]] * 3
    assert not moved(before, buffers(network))
    net.partial_fit(X, y)
    assert [len(names) for names in trace.batches_[3:]] == [6] * 3
    assert moved(before, buffers(network))


def test_a_network_that_is_traced_as_a_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.trace(OfModes(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), BATCH)
    trace = Trace()
    iris_net(only_head(), trace, module=network, max_epochs=1).fit(X, y)
    assert trace.batches_ == [["head.weight", "head.bias"]] * 3


class Scaled(nn.Module):
    """A criterion with a weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, predicted, target):
        return nn.functional.cross_entropy(predicted * self.scale, target)


def test_a_network_that_is_frozen_from_end_to_end_is_pinned_as_a_whole():
    probe, network = Probe(), OfModes(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()))
    callback = CallbackSetUnfreeze(select_none(), frozen_mode="eval")
    net = iris_net(callback, probe, cls=NeuralNet, module=network, criterion=Scaled, max_epochs=1)
    net.fit(X, torch.as_tensor(y))
    assert probe.is_fixed_ == [True] * 3
    assert all(modes(network))
    assert not pinned_modules(network)


class Scaling(NeuralNetClassifier):
    """Scales gradients against underflow; the first steps overflow and are left out."""

    def initialize(self):
        super().initialize()
        self.scaler_ = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        return self

    def train_step(self, batch, **fit_params):
        self.optimizer_.zero_grad()
        self._set_training(True)
        features, target = batch
        loss = self.get_loss(self.infer(features), target)
        self.scaler_.scale(loss * 4).backward()
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        return {"loss": loss, "y_pred": None}


def test_steps_that_a_gradient_scaler_leaves_out_are_not_mistaken_for_updates_without_factors():
    net = iris_net(schedule(), cls=Scaling, module=Network, max_epochs=3, audited=False).fit(X, y)
    assert rates(net)[0] == []
    assert rates(net)[-1] == ["lr_0", "lr_0_x0.1"]


def test_a_weight_that_is_pruned_while_it_trains_keeps_its_factor():
    trace = Trace()
    cut = At(lambda net: prune.l1_unstructured(net.module_.slow[0], "weight", 0.5))
    net = iris_net(schedule(), cut, trace, module=Network, max_epochs=2, audited=False).fit(X, y)
    assert set(trace.batches_[-1]) == {"slow.0.weight_orig", *SLOW_AND_HEAD} - {"slow.0.weight"}
    assert rates(net)[-1] == ["lr_0", "lr_0_x0.1"]


@pytest.mark.parametrize("beside", [EarlyStopping("train_loss", patience=1), GradientNormClipping(1.0)])
def test_callbacks_of_skorch_beside(beside):
    trace = Trace()
    iris_net(beside, schedule(), trace, module=Network, max_epochs=2).fit(X, y)
    assert trace.batches_ == [SLOW_AND_HEAD] * 6


@pytest.mark.filterwarnings("ignore:parameters that required no gradient:UserWarning")
def test_the_freezer_of_skorch_beside():
    trace = Trace()
    iris_net(FreezerOfSkorch("slow.*"), schedule(), trace, module=Network, max_epochs=1, audited=False).fit(X, y)
    assert "head.weight" in trace.batches_[0]
    assert not any("frozen" in name for names in trace.batches_ for name in names)


class OldWeightDrop(nn.Module):
    """Puts what it has computed among the parameters of its layer, as the LSTM of ULMFiT does."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.raw = nn.Parameter(self.layer.weight.data)

    def forward(self, x):
        self.layer._parameters["weight"] = nn.functional.dropout(self.raw, 0.5, self.training)
        return self.head(self.layer(x))


@pytest.mark.parametrize("train_split", [None, ValidSplit(3, stratified=True)], ids=["without", "with validation"])
def test_what_a_forward_pass_puts_among_the_parameters_is_none(train_split):
    body = select_all() - select_prefix("head")
    rows = {"epoch": [2, 4], "weights": [body, body], "action": ["freeze", "unfreeze"]}
    net = iris_net(CallbackSetUnfreeze(select_all(), rows), module=OldWeightDrop, train_split=train_split).fit(X, y)
    assert net.history[:, "n_trainable"] == [35, 15, 15, 35]
    report = dict(net.callbacks_)["freeze_audit"].report().query("name == 'raw'")
    assert (report["frozen_from"].min(), report["frozen_to"].max(), report["moved"].any()) == (2, 3, False)


class LastBlocks(CallbackSetUnfreeze):
    def __init__(self, k=1):
        super().__init__(select_last(k))
        self.k = k
        self.seen = []

    def on_epoch_end(self, net, **kwargs):
        super().on_epoch_end(net, **kwargs)
        self.seen.append(net.history[-1, "n_trainable"])


class FirstBlocks(Freezer):
    def __init__(self, k=1):
        super().__init__(name_starts_with=[f"{3 * i}." for i in range(k)])
        self.k = k
        self.seen = []

    def on_epoch_end(self, net, **kwargs):
        super().on_epoch_end(net, **kwargs)
        self.seen.append(net.history[-1, "n_trainable"])


@pytest.mark.parametrize("kind", [LastBlocks, FirstBlocks])
def test_a_subclass_follows_its_own_parameter_and_is_renewed_by_a_fit(kind):
    expected = iris_net(kind(2), max_epochs=1).fit(X, y).history[-1, "n_trainable"]
    net = iris_net(("blocks", kind(1)), max_epochs=1).fit(X, y)
    assert net.history[-1, "n_trainable"] != expected
    net.set_params(callbacks__blocks__k=2).fit(X, y).fit(X, y)
    assert dict(net.callbacks_)["blocks"].seen == [expected]
