"""A plan that is measured: what it says comes from steps of the net itself, and nothing is changed by it."""

import os
import random
import re
import threading
import time

import matplotlib as mpl
import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EpochScoring, LRScheduler, TrainEndCheckpoint
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import freeze_plan, network_blocks, network_summary, select_all, select_name, select_prefix, t_clbk
from tests import helpers
from tests.forecast.nets import KINDS, DictNet, Net, X, make, y

mpl.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore:frozen_cache")


def tensors(net):
    """What a net holds: its weights and buffers, and their flags, by module."""
    modules = {name: value for name, value in vars(net).items() if isinstance(value, nn.Module)}
    return {
        f"{name}.{key}": (id(tensor), tensor.detach().clone(), tensor.requires_grad, tensor.grad is None)
        for name, module in modules.items()
        for key, tensor in module.state_dict(keep_vars=True).items()
    }


def layers(net):
    modules = [value for value in vars(net).values() if isinstance(value, nn.Module)]
    return [
        (layer.training, len(layer._forward_hooks), len(layer._forward_pre_hooks), "_compiled_call_impl" in vars(layer))
        for module in modules
        for layer in module.modules()
    ]


def random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_net_is_measured_and_left_as_it_was(kind):
    net, features, target = KINDS[kind]()
    inner = net.steps[-1][1] if hasattr(net, "steps") else net
    keys, before, modes, states = set(vars(inner)), tensors(inner), layers(inner), random_states()
    n_epochs = len(inner.history or ())
    plan = freeze_plan(net, features, target, measure=True)
    assert [phase.seconds > 0 for phase in plan.measured.phases] == [True, True], plan.notes
    assert plan.measured.seconds > 0
    assert plan.cache is not None
    assert set(vars(inner)) == keys
    after = tensors(inner)
    assert before.keys() == after.keys()
    for (i, tensor, *flags), (i_after, tensor_after, *flags_after) in zip(before.values(), after.values(), strict=True):
        assert i_after == i
        assert torch.equal(tensor_after, tensor)
        assert flags_after == flags
    assert layers(inner) == modes
    assert random_states() == states
    assert len(inner.history or ()) == n_epochs
    assert inner.fit(features, target) is inner


def test_the_state_of_what_a_net_holds_beside_its_modules_is_left():
    net, _, _ = KINDS["a fitted AMP"]()
    scale = net.scaler.state_dict()
    freeze_plan(net, X, y, measure=True)
    assert net.scaler.state_dict() == scale


def test_nothing_is_written_and_other_callbacks_are_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = [Checkpoint(), TrainEndCheckpoint(), EpochScoring("accuracy"), LRScheduler("StepLR", step_size=1)]
    net = make(callbacks=[*others, t_clbk("checkpoint", path="run", freq=1)], train_split=ValidSplit(3))
    assert freeze_plan(net, X, y, measure=True).measured is not None
    assert os.listdir() == []


class Slow(Net):
    """An encoder that takes two milliseconds for each row."""

    def forward(self, X):
        time.sleep(0.002 * len(X) * (not self.training or not X.requires_grad))
        return super().forward(X)


def test_milliseconds_and_the_total_are_those_of_training():
    plan = freeze_plan(make(module=Slow, cached=False, train_split=ValidSplit(4)), X, y, measure=True)
    for phase in plan.measured.phases:  # 36 rows in three batches
        assert 24 <= phase.seconds * 1e3 < 60
    assert 4 * 48 * 0.002 <= plan.measured.seconds < 2.5 * 4 * 48 * 0.002  # validation included
    assert plan.measured.seconds_cached is None


class SlowEncoder(Net):
    def __init__(self):
        super().__init__()
        self.encoder.append(Sleeps())


class Sleeps(nn.Module):
    def forward(self, x):
        time.sleep(0.002 * len(x))
        return x


@pytest.mark.slow
def test_filling_the_cache_counts():
    plan = freeze_plan(make(module=SlowEncoder), X, y, measure=True)
    net = make(module=SlowEncoder).fit(X, y)
    forecast, came = plan.cache["cache_saved"].tolist(), net.history[:, "cache_saved"]
    assert forecast[0] < -0.2 * 48 * 0.002  # each trial computes a fourth of the rows again
    np.testing.assert_allclose(forecast, came, atol=0.5 * 48 * 0.002)
    saved = plan.measured.seconds - plan.measured.seconds_cached
    assert saved == pytest.approx(sum(forecast))
    assert "filling included" in str(plan)


def test_what_a_step_asks_for_twice_comes_from_memory_at_once():
    net, features, target = KINDS["a GAN"]()
    plan = freeze_plan(net, features, target)
    net.fit(features, target)
    assert plan.cache["cache_hits"].tolist() == net.history[:, "cache_hits"] == [48, 96, 0, 0]
    assert plan.cache["cache_misses"].tolist() == net.history[:, "cache_misses"]


def test_memory_is_that_of_tensors():
    def make_wide(optimizer):
        return make(module__width=200, cached=False, optimizer=optimizer)

    weights = 4 * sum(tensor.numel() for tensor in Net(width=200).parameters())
    head = 4 * sum(tensor.numel() for tensor in Net(width=200).head.parameters())
    for optimizer, n_states in ((torch.optim.SGD, 0), (torch.optim.Adam, 2)):
        first, last = freeze_plan(make_wide(optimizer), X, y, measure=True).measured.phases
        activations = 16 * 200 * 4 * 6
        assert 0 <= first.peak_bytes - (weights + head * (1 + n_states)) < activations
        assert 0 <= last.peak_bytes - weights * (2 + n_states) < activations + 2 * weights  # in the optimizer


class HeadFirst(nn.Module):
    """The order of names is not that in which modules run, and a weight is used by a function."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(8))
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Linear(6, 8)

    def forward(self, X):
        x = (self.body(X) * self.scale)[:, None]
        return self.head(self.mix(x, x, x)[0][:, 0])


MIX = {"mix.in_proj_weight", "mix.in_proj_bias", "mix.out_proj.weight", "mix.out_proj.bias"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("select", "passed"),
    [
        (select_prefix("head"), set()),
        (select_prefix("mix.out_proj"), HEAD),
        (select_name("scale"), HEAD | MIX),
        (select_name("body.bias"), HEAD | MIX | {"scale"}),
    ],
)
@pytest.mark.parametrize("cls", [NeuralNetClassifier, type(KINDS["AMP"]()[0])])
def test_what_the_backward_pass_goes_through_is_what_autograd_keeps(select, passed, cls):
    net = make(cls, HeadFirst, cached=False, callbacks=[])
    net.set_params(callbacks=[t_clbk("unfreeze", starting_weights=select)])
    plan = freeze_plan(net, X, y, measure=True)
    (phase,) = plan.measured.phases
    assert phase.passed == passed
    n_frozen = 9 - plan.summary()["trainable_tensors"][1]
    assert plan.summary()["frozen_prefix"][1] == n_frozen - len(passed)


def test_a_warning_names_what_trains_below():
    net = make(module=HeadFirst, cached=False)
    net.set_params(callbacks=[t_clbk("unfreeze", starting_weights=select_name("body.bias"))])
    assert freeze_plan(net, X, y).warnings() == []
    (warning,) = freeze_plan(net, X, y, measure=True).warnings()
    assert warning.startswith("phase 1: body.bias trains nearer to the input than 7 frozen tensors")


def test_parametrized_weights_are_passed_as_the_modules_that_use_them():
    net = make(module=KINDS["parametrized"]()[0].module, cached=False)
    net.set_params(callbacks=[t_clbk("unfreeze", starting_weights=select_prefix("encoder.0"))])
    (phase,) = freeze_plan(net, X, y, measure=True).measured.phases
    assert phase.passed == {"encoder.2.bias", "encoder.2.parametrizations.weight.original", *HEAD}


def test_milliseconds_stand_in_every_view():
    plan = freeze_plan(make(), X, y, measure=True)
    shown = [f"{phase.seconds * 1e3:,.3g}" for phase in plan.measured.phases]
    texts = [text.get_text() for text in plan.plot().texts if text.get_text().endswith(" ms")]
    assert texts == [f"{milliseconds} ms" for milliseconds in shown]
    for view in (str(plan), plan._repr_html_()):
        assert re.search("ms.per.batch", view)
        assert re.search("peak.mb", view, re.IGNORECASE)
        assert all(milliseconds in view for milliseconds in shown)
        assert "measured: all batches of the training take about" in " ".join(view.split())
    assert "ms_per_batch" not in str(freeze_plan(make(), X, y))


class Raises(Net):
    def forward(self, X):
        raise RuntimeError("no\nway")


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class NoParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(2))

    def forward(self, X):
        return X[:, :2] * self.factor


class NeedsDomain(NeuralNetClassifier):
    def fit(self, X, y, domain):
        return super().fit({"X": X, "domain": domain}, y)


class ByDomain(torch.utils.data.DataLoader):
    def __init__(self, dataset, batch_size):
        super().__init__(dataset, batch_size, sampler=[i for i, (x, _) in enumerate(dataset) if x["domain"] >= 0])


@pytest.mark.parametrize(
    ("net", "data", "why"),
    [
        (lambda: make(module=Raises), (X, y), "phase 1 cannot be trained on a copy of the net: RuntimeError: no;"),
        (lambda: make(module=Locked()), (X, y), "the network cannot be copied: TypeError: cannot pickle"),
        (lambda: make(module=NoParameters), (X, y), "nothing is trainable"),
        (lambda: make(optimizer__nonsense=1), (X, y), "TypeError: SGD.__init__() got an unexpected"),
        (lambda: make(DictNet), (X, y), "cannot be trained on a copy of the net"),
        (lambda: make(NeedsDomain, iterator_train=ByDomain), (X, y), "`X` and `y` cannot be split and loaded"),
        (make, (X.astype("float64"), y), "must have the same dtype"),
        (make, (None, None), "it needs data; give a net with `X` and `y`"),
    ],
)
@pytest.mark.parametrize("measure", [True, False])
def test_a_plan_is_not_lost_when_it_cannot_be_measured(net, data, why, measure):
    plan = freeze_plan(net(), *data, measure=measure)
    assert plan.max_epochs == 4
    assert plan.cache is plan.measured is None
    what = "not measured and no forecast of frozen_cache: " if measure else "no forecast of frozen_cache: "
    (note,) = (note for note in plan.notes if what in note)
    assert why in note


def test_a_network_alone_is_not_measured():
    callbacks = [t_clbk("unfreeze", starting_weights=select_prefix("head"))]
    plan = freeze_plan(Net(), callbacks=callbacks, measure=True)
    assert plan.notes == ("not measured: a network alone takes no steps; give a net with `X` and `y`",)


def test_a_fitted_network_that_cannot_be_copied_is_made_anew():
    plan = freeze_plan(make(module=Locked).fit(X, y), X, y, measure=True)
    assert plan.measured is not None


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_tensors_that_a_module_has_computed_are_copied():
    def normed():
        network = Net()
        nn.utils.weight_norm(network.head)
        return network

    assert freeze_plan(make(module=normed).fit(X, y), X, y, measure=True).measured is not None


def test_a_net_that_cannot_make_its_network_says_what_to_give():
    with pytest.raises(ValueError, match="`net` cannot make its network: ValueError: the width; give a net that is"):
        freeze_plan(make(module=KINDS["learns in fit"]()[0].module))


def test_measure_is_a_flag():
    with pytest.raises(TypeError, match="`measure` is 'yes'; give True or False"):
        freeze_plan(make(), X, y, measure="yes")


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_a_scripted_part_is_measured_and_summarised():
    network = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 3))
    unfreeze = t_clbk(
        "unfreeze", starting_weights=select_prefix("1"), unfreeze={"epoch": [2], "weights": [select_all()]}
    )
    net = helpers.iris_net(unfreeze, module=network, audited=False)
    assert len(freeze_plan(net, helpers.X, helpers.y, measure=True).measured.phases) == 2
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in network.parameters())
    assert len(network_blocks(network, helpers.X[:2])) == 2
    assert "(150, 3)" in str(network_summary(network, helpers.X))
