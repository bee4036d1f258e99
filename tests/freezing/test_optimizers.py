"""Frozen weights, and what the optimizer keeps of them, under every optimizer of torch."""

import copy
from itertools import pairwise

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, GradientNormClipping
from torch import nn
from torch.optim import LBFGS
from torch.testing import assert_close

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last, select_prefix
from tests.helpers import Trace, X, iris_net, moved, weights, y


class Matrices(nn.Sequential):
    """Three layers without biases, since Muon takes matrices only."""

    def __init__(self):
        layers = [nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Tanh()]
        super().__init__(*layers, nn.Linear(4, 3, bias=False))


def _kinds():
    for name in torch.optim.__all__:
        kind = getattr(torch.optim, name)
        takes_dense_gradients = name not in ("Optimizer", "SparseAdam")
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and takes_dense_gradients:
            yield name, kind, {}
    yield "SGD_all", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    yield "SGD_foreach", torch.optim.SGD, {"momentum": 0.9, "foreach": True}
    yield "SGD_fused", torch.optim.SGD, {"momentum": 0.9, "fused": True}
    yield "Adam_foreach", torch.optim.Adam, {"foreach": True, "amsgrad": True}
    yield "Adam_fused", torch.optim.Adam, {"fused": True}
    yield "AdamW_fused", torch.optim.AdamW, {"fused": True, "weight_decay": 0.1}
    yield "LBFGS_wolfe", LBFGS, {"line_search_fn": "strong_wolfe", "max_iter": 4}


KINDS = [pytest.param(kind, arguments, id=name) for name, kind, arguments in _kinds()]


class States(Callback):
    """Keeps a copy of what the optimizer holds of each parameter after every batch."""

    def __init__(self):
        self.states_ = []

    def on_batch_end(self, net, training=None, **kwargs):
        state = net.optimizer_.state
        copies = {
            name: {key: copy.deepcopy(value) for key, value in state[tensor].items()}
            for name, tensor in net.module_.named_parameters()
            if tensor in state
        }
        self.states_.append(copies)


class ZeroesInPlace(NeuralNetClassifier):
    def _zero_grad_optimizer(self, set_to_none=None):
        super()._zero_grad_optimizer(set_to_none=False)


class Accumulates(NeuralNetClassifier):
    """Takes a step every second batch, as the documentation of skorch shows."""

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        if len(self.history[-1]["batches"]) % 2 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


THAW_AND_FREEZE = {
    "batch": [4, 8],
    "weights": [select_prefix("0", "2")] * 2,
    "action": ["freeze", "unfreeze"],
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("cls", [NeuralNetClassifier, ZeroesInPlace])
@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_frozen_weights_and_their_optimizer_state_stay_as_they_are(kind, arguments, cls):
    trace, states = Trace(), States()
    iris_net(
        CallbackSetUnfreeze(select_all(), THAW_AND_FREEZE),
        trace,
        states,
        GradientNormClipping(1.0),
        module=Matrices,
        cls=cls,
        optimizer=kind,
        lr=0.01,
        **{f"optimizer__{name}": value for name, value in arguments.items()},
    ).fit(X, y)
    steps = list(zip(pairwise(trace.weights_), trace.batches_, strict=True))
    for (before, after), trainable in steps:
        # A line search may end in a step that is too small for some weights to change.
        assert moved(before, after) <= set(trainable) if kind is LBFGS else moved(before, after) == set(trainable)
    assert [len(trainable) for _, trainable in steps] == [3] * 3 + [1] * 4 + [3] * 5
    if kind is not LBFGS:  # which keeps one state for all parameters
        for before, after in pairwise(states.states_[2:7]):
            for name in ("0.weight", "2.weight"):
                assert_close(before.get(name), after.get(name), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [LBFGS, torch.optim.Adam])
def test_what_is_frozen_between_two_calls_stays_as_it_is(kind):
    trace = Trace()
    unfreeze = ("unfreeze", CallbackSetUnfreeze(select_all()))
    net = iris_net(unfreeze, ("trace", trace), optimizer=kind, batch_size=150, module=Matrices).fit(X, y)
    net.set_params(callbacks__unfreeze__starting_weights=select_last(1))
    net.partial_fit(X, y)
    after = trace.weights_[-4:]
    assert not {"0.weight", "2.weight"} & moved(after[0], after[-1])


def test_lbfgs_goes_on_with_its_memory_where_nothing_is_frozen():
    net = iris_net(CallbackSetUnfreeze(select_all()), optimizer=LBFGS, max_epochs=1, batch_size=150)
    net.fit(X, y).partial_fit(X, y)
    (state,) = net.optimizer_.state.values()
    assert state["n_iter"] > 20


class Norms(Callback):
    """Keeps the norm of all gradients as clipping sees it."""

    def __init__(self):
        self.of_frozen_ = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.of_frozen_.append([name for name, tensor in named_parameters if tensor.grad is not None])


def test_clipping_counts_no_stale_gradients():
    norms = Norms()
    iris_net(CallbackSetUnfreeze(select_all(), THAW_AND_FREEZE), norms, module=Matrices, cls=ZeroesInPlace).fit(X, y)
    assert [len(names) for names in norms.of_frozen_] == [3] * 3 + [1] * 4 + [3] * 5


def test_gradients_may_be_accumulated_over_batches():
    trace = Trace()
    iris_net(
        CallbackSetUnfreeze(select_all(), THAW_AND_FREEZE),
        trace,
        module=Matrices,
        cls=Accumulates,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        batch_size=38,
    ).fit(X, y)
    for (before, after), trainable in zip(pairwise(trace.weights_), trace.batches_, strict=True):
        assert moved(before, after) <= set(trainable)
    assert sum(bool(moved(*pair)) for pair in pairwise(trace.weights_)) == 8


@pytest.mark.sample(5)
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"weight_decay": 0.1}, {"maximize": True}])
@pytest.mark.parametrize("table", [{"epoch": [2, 3]}, {"batch": [2, 6]}, {"epoch": [2, 3], "lr_mult": [0.1, None]}])
def test_fused_sgd_trains_what_is_unfrozen_later_as_the_other_kinds_do(table, options):
    def trained(fused):
        torch.manual_seed(0)
        schedule = table | {"weights": [select_prefix("3"), select_all()]}
        given = {f"optimizer__{name}": value for name, value in options.items()}
        net = iris_net(
            CallbackSetUnfreeze(select_prefix("6"), schedule), optimizer=torch.optim.SGD, optimizer__momentum=0.9,
            optimizer__fused=fused, lr=0.01, **given,
        )  # fmt: skip
        return net.fit(X, y).partial_fit(X, y)

    fused, plain = trained(True), trained(None)
    for one, other in zip(weights(fused).values(), weights(plain).values(), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)


class Averages(torch.optim.Optimizer):
    """Lookahead as it is copied most: it has no hooks, and averages every third step."""

    def __init__(self, params, lr):
        self.inner, self.slow, self.n_steps = torch.optim.Adam(params, lr=lr), {}, 0
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, {}

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inner.step(torch.enable_grad()(closure))
        self.n_steps += 1
        for tensor in self.param_groups[0]["params"] if self.n_steps % 3 == 0 else ():
            slow = self.slow.setdefault(tensor, tensor.clone())
            slow += (tensor - slow) / 2
            tensor.copy_(slow)
        return loss


class MovesBeforeClosure(torch.optim.SGD):
    """Computes gradients where it will be, as schedule-free does."""

    def step(self, closure=None):
        with torch.no_grad():
            for tensor in self.param_groups[0]["params"]:
                tensor -= 0.01 * self.state[tensor].setdefault("average", torch.ones_like(tensor))
        return super().step(closure)


class FlatMomentum(torch.optim.SGD):
    """Has one momentum for all parameters."""

    @torch.no_grad()
    def step(self, closure=None):
        loss, tensors = torch.enable_grad()(closure)(), self.param_groups[0]["params"]
        flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in tensors])
        self.momentum = flat + 0.9 * getattr(self, "momentum", torch.zeros_like(flat))
        for tensor, by in zip(tensors, self.momentum.split([one.numel() for one in tensors]), strict=True):
            tensor -= 0.01 * by.view_as(tensor)
        return loss


FREEZE = {"batch": [5], "weights": [select_prefix("0", "2")], "action": ["freeze"]}


@pytest.mark.parametrize("optimizer", [Averages, MovesBeforeClosure, FlatMomentum])
def test_an_optimizer_that_moves_what_is_frozen_is_warned_of_once(optimizer):
    net = iris_net(CallbackSetUnfreeze(select_all(), FREEZE), module=Matrices, optimizer=optimizer, audited=False)
    with pytest.warns(UserWarning, match=f"moved in an update though frozen: {optimizer.__name__} still") as said:
        net.fit(X, y)
    assert len(said) == 1


class Rescales(Matrices):
    def forward(self, x):
        with torch.no_grad():
            self[0].weight *= 0.99
        return super().forward(x)


class Writes(Callback):
    def on_batch_begin(self, net, **kwargs):
        with torch.no_grad():
            net.module_[0].weight *= 0.99

    on_batch_end = on_batch_begin


@pytest.mark.parametrize("cls", [NeuralNetClassifier, Accumulates])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, LBFGS, torch.optim.Adam])
def test_what_else_writes_into_frozen_weights_is_not_mistaken_for_the_optimizer(optimizer, cls):
    if optimizer is LBFGS and cls is Accumulates:
        pytest.skip("LBFGS needs the closure")
    net = iris_net(
        CallbackSetUnfreeze(select_all(), FREEZE), Writes(), module=Rescales, optimizer=optimizer, cls=cls, lr=0.01,
        audited=False,
    )  # fmt: skip
    net.fit(X, y)
    assert len(net.history) == 4
