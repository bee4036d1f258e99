"""Factors on learning rates that have no effect are refused; unusual optimizers that use them are not."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch.testing import assert_close

from mlr3torch_py import MLP, CallbackSetUnfreeze, select_all, select_prefix
from tests.helpers import Trace, X, copies, iris_net, moved, weights, y

SLOW = {"epoch": [1], "weights": [select_prefix("0")], "lr_mult": [0.1]}


def with_factors(table=SLOW):
    return CallbackSetUnfreeze(select_all(), table)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization, whose documented use is by two steps of its own names."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base.param_groups

    def tensors(self):
        return [tensor for group in self.param_groups for tensor in group["params"] if tensor.grad is not None]

    @torch.no_grad()
    def first_step(self):
        self.moved = [(tensor, 0.01 * tensor.grad) for tensor in self.tensors()]
        for tensor, by in self.moved:
            tensor += by
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for tensor, by in self.moved:
            tensor -= by
        self.update()

    def update(self):
        for group in self.base.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    tensor -= group["lr"] * tensor.grad
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        loss = closure()
        self.first_step()
        closure()
        self.second_step()
        return loss


class InTwoSteps(NeuralNetClassifier):
    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_.first_step()
        self.train_step_single(batch, **fit_params)
        self.optimizer_.second_step()
        return step


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer, and does not call `Optimizer.__init__`, as that of timm."""

    def __init__(self, params, lr):
        self.base = torch.optim.SGD(params, lr=lr)
        self.defaults, self.param_groups, self.state = self.base.defaults, self.base.param_groups, self.base.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    tensor -= group["lr"] * tensor.grad
        return loss


class WithoutHooks(Lookahead):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        del self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks


class WithInner(torch.optim.Optimizer):
    """Has groups, but updates by another optimizer, which has groups of its own."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD([{"params": group["params"]} for group in self.param_groups], lr=lr)

    def step(self, closure=None):
        return self.inner.step(closure)


class Several(torch.optim.Optimizer):
    """Made of several, such as one for matrices and one for all else."""

    def __init__(self, params, lr, kind=list):
        super().__init__(params, {"lr": lr})
        tensors = self.param_groups[0]["params"]
        inner = {n: torch.optim.SGD([one for one in tensors if one.ndim == n], lr=lr) for n in (1, 2)}
        self.inner = kind(inner.values()) if kind is list else kind(inner)

    def step(self, closure=None):
        loss = closure()
        for one in self.inner.values() if isinstance(self.inner, dict) else self.inner:
            one.step()
        return loss


class InBackward(torch.optim.SGD):
    """Updates each tensor as soon as it has its gradient, as the tutorial of torch shows."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for tensor in self.param_groups[0]["params"]:
            tensor.register_post_accumulate_grad_hook(self.update)

    @torch.no_grad()
    def update(self, tensor):
        tensor -= self.param_groups[0]["lr"] * tensor.grad
        tensor.grad = None


class RatesBeside(torch.optim.SGD):
    """Keeps something for each group beside the groups, as AdaBound does."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.initial = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for group, _ in zip(self.param_groups, self.initial, strict=False):
            for tensor in group["params"]:
                tensor -= group["lr"] * tensor.grad
        return loss


class Flat(torch.optim.SGD):
    """Keeps its parameters beside the groups, and has one rate, as LBFGS does."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.tensors = self.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for tensor in self.tensors:
            tensor -= self.param_groups[0]["lr"] * tensor.grad
        return loss


class RateAtFirst(torch.optim.SGD):
    """Has a schedule of its own for its rates, but not at its first steps, as that of schedule-free with RAdam."""

    def step(self, closure=None):
        loss, self.n_steps = closure(), getattr(self, "n_steps", 0) + 1
        for group in self.param_groups:
            group["so_far"] = group.get("so_far", 0.0) + (group["lr"] if self.n_steps > 3 else 0.0)
        super().step()
        return loss


class WithoutRate(torch.optim.SGD):
    """Finds the rate by itself, as Adafactor does on demand."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["lr"] = None


class Own:
    """An optimizer that is none of torch's."""

    def __init__(self, params, lr):
        self.tensors, self.lr = list(params), lr

    def zero_grad(self, set_to_none=True):
        for tensor in self.tensors:
            tensor.grad = None

    @torch.no_grad()
    def step(self, closure):
        loss = torch.enable_grad()(closure)()
        for tensor in self.tensors:
            if tensor.grad is not None:
                tensor -= self.lr * tensor.grad
        return loss


class OwnNet(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = Own(self.module_.parameters(), self.lr)
        return self

    def _zero_grad_optimizer(self, set_to_none=None):
        self.optimizer_.zero_grad()

    def _step_optimizer(self, step_fn):
        self.optimizer_.step(step_fn)


NO_EFFECT = "`lr_mult`, which has no effect: {} updates the weights otherwise"


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"cls": InTwoSteps, "optimizer": SAM}, "SAM"),
        ({"optimizer": Lookahead}, "Lookahead"),
        ({"optimizer": InBackward}, "InBackward"),
        ({"cls": OwnNet}, "Own"),
    ],
)
def test_a_rate_without_effect_is_refused_after_the_first_batch(params, name):
    net = iris_net(with_factors(), audited=False, **params)
    with pytest.raises(ValueError, match=NO_EFFECT.format(name)):
        net.fit(X, y)
    assert len(net.history) == 1
    assert sum("train_loss" in entry for entry in net.history[0]["batches"]) == 1


@pytest.mark.parametrize("where", ["0", "6"])
@pytest.mark.parametrize("times", [{}, {"epoch": [2], "lr_mult_from": ["row"]}])
@pytest.mark.parametrize("optimizer", [RatesBeside, Flat])
def test_an_optimizer_that_passes_over_groups_is_refused_at_the_first_step_that_needs_them(optimizer, times, where):
    table = SLOW | {"weights": [select_prefix(where)]} | times
    net = iris_net(with_factors(table), optimizer=optimizer, audited=False)
    with pytest.raises(ValueError, match=f"`lr_mult`, but {optimizer.__name__} passes over some of its groups"):
        net.fit(X, y)
    assert len(rates(net)) == 1 + 3 * bool(times)


@pytest.mark.parametrize(
    ("table", "batch"),
    [
        ({"epoch": [2], "weights": [select_all()], "lr_mult": [0.1], "lr_mult_from": ["row"]}, 5),
        ({"epoch": [1], "weights": [select_all()], "warmup": [8]}, 2),
    ],
)
def test_rprop_which_reads_a_rate_only_once_is_refused_when_it_should_read_another(table, batch):
    net = iris_net(CallbackSetUnfreeze(select_prefix("6"), table), optimizer=torch.optim.Rprop, audited=False)
    with pytest.raises(ValueError, match="but Rprop updates weights without reading the learning rate"):
        net.fit(X, y)
    assert len(rates(net)) == batch


def test_rprop_is_taken_where_the_factor_is_there_from_the_start():
    table = {"epoch": [2], "weights": [select_prefix("0", "3")], "lr_mult": [0.1]}
    net = iris_net(CallbackSetUnfreeze(select_prefix("6"), table), optimizer=torch.optim.Rprop, max_epochs=2)
    net.fit(X, y).partial_fit(X, y)
    assert len(rates(net)) == 12


def test_an_optimizer_whose_groups_begin_to_differ_later_is_refused_then():
    net = iris_net(with_factors(), optimizer=RateAtFirst, audited=False)
    with pytest.raises(ValueError, match="RateAtFirst keeps 'so_far' for each of its groups, which differs"):
        net.fit(X, y)
    assert len(rates(net)) == 4


def test_a_rate_without_effect_is_refused_also_after_the_only_batch():
    with pytest.raises(ValueError, match=NO_EFFECT.format("SAM")):
        iris_net(with_factors(), cls=InTwoSteps, optimizer=SAM, max_epochs=1, batch_size=150, audited=False).fit(X, y)


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        (WithoutHooks, "WithoutHooks does not call Optimizer.__init__"),
        (Several, "Several updates by an inner SGD"),
        (partial(Several, kind=dict), "Several updates by an inner SGD"),
        (WithInner, "WithInner updates by an inner SGD, which has groups of its own"),
        (WithoutRate, "WithoutRate has no learning rate in its groups"),
    ],
)
def test_an_optimizer_that_cannot_take_the_rates_is_refused_when_training_begins(optimizer, why):
    net = iris_net(with_factors(), optimizer=optimizer)
    with pytest.raises(ValueError, match=f"`unfreeze` has a column `lr_mult`, but {why}"):
        net.fit(X, y)
    assert len(net.history) == 0


@pytest.mark.parametrize("factor", [1.0, None])
def test_without_factors_any_optimizer_is_taken(factor):
    table = {"epoch": [2], "weights": [select_prefix("0")], "lr_mult": [factor]}
    net = iris_net(
        CallbackSetUnfreeze(select_prefix("3", "6"), table), trace := Trace(), optimizer=WithInner, max_epochs=2
    ).fit(X, y)
    late = {"0.weight", "0.bias"}
    assert moved(trace.weights_[0], trace.weights_[3]) == set(weights(net)) - late
    assert moved(trace.weights_[3], trace.weights_[6]) == set(weights(net))


class Accumulates(NeuralNetClassifier):
    """Takes a step with every third batch only, as the documentation of skorch shows."""

    def __init__(self, *args, every=3, **kwargs):
        super().__init__(*args, **kwargs)
        self.every = every

    def initialize(self):
        super().initialize()
        self.n_batches_ = 0
        return self

    def train_step(self, batch, **fit_params):
        self.n_batches_ += 1
        step = self.train_step_single(batch, **fit_params)
        if self.n_batches_ % self.every == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


def rates(net):
    return [sorted(key for key in entry if key.startswith("lr_")) for row in net.history for entry in row["batches"]]


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("table", [SLOW, {"batch": [4], "weights": [select_prefix("0")], "lr_mult": [0.1]}])
def test_gradient_accumulation_is_not_refused(every, table):
    starting = select_prefix("3", "6") if "batch" in table else select_all()
    net = iris_net(CallbackSetUnfreeze(starting, table), cls=Accumulates, every=every, audited=False).fit(X, y)
    assert rates(net) == [["lr_0", "lr_0_x0.1"] if batch % every == 0 else [] for batch in range(1, 13)]


@pytest.mark.parametrize(
    "params",
    [
        {"optimizer": torch.optim.Adam, "optimizer__fused": True},
        {"optimizer": torch.optim.SGD, "optimizer__fused": True},
        {"optimizer": torch.optim.AdamW, "optimizer__foreach": True},
        {"optimizer": torch.optim.SGD, "optimizer__foreach": True, "optimizer__momentum": 0.9},
        {"optimizer": torch.optim.Adagrad},
        {"optimizer": torch.optim.Rprop},
        {"optimizer": torch.optim.RAdam, "optimizer__capturable": False},
        {"optimizer": SAM},
        {"optimizer": torch.optim.SGD, "lr": 0.0},
    ],
)
def test_other_optimizers_are_not_refused(params):
    net = iris_net(with_factors(), audited=False, **params).fit(X, y)
    assert rates(net) == [["lr_0", "lr_0_x0.1"]] * 12


class Clamped(MLP):
    """Writes its weights in each forward pass, as weight normalisation by hand does."""

    def forward(self, x):
        clamp(self)
        return super().forward(x)


class Clamps(Callback):
    def on_batch_end(self, net, **kwargs):
        clamp(net.module_)


@torch.no_grad()
def clamp(module):
    for tensor in module.parameters():
        tensor.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("cls", [NeuralNetClassifier, Accumulates])
@pytest.mark.parametrize("where", ["forward", "callback"])
def test_weights_that_something_else_moves_are_not_mistaken_for_an_update(where, cls):
    callbacks = [Clamps()] if where == "callback" else []
    module = {"module": Clamped(4, 3)} if where == "forward" else {}
    net = iris_net(with_factors(), *callbacks, cls=cls, audited=False, **module).fit(X, y)
    assert sum("lr_0_x0.1" in keys for keys in rates(net)) == (4 if cls is Accumulates else 12)
    if where == "callback":
        assert max(tensor.abs().max() for tensor in weights(net).values()) <= 0.1


class ByName(torch.optim.SGD):
    """Looks up what it does by the names of the parameters."""

    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            self.seen |= {(name, id(one)) for name, one in zip(group["param_names"], group["params"], strict=True)}
        return loss


class Named(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = ByName(self.module_.named_parameters(), lr=0.1)
        self.optimizer_.seen = set()
        return self


def test_the_names_in_a_group_stay_beside_their_parameters():
    net = iris_net(with_factors(), cls=Named, audited=False, max_epochs=1).fit(X, y)
    assert net.optimizer_.seen == {(name, id(tensor)) for name, tensor in net.module_.named_parameters()}


@pytest.mark.slow
def test_a_compiled_step_uses_the_factors():
    class Compiled(NeuralNetClassifier):
        def initialize_optimizer(self, *args, **kwargs):
            super().initialize_optimizer(*args, **kwargs)
            self.step_ = torch.compile(lambda: self.optimizer_.step(), backend="eager")
            return self

        def train_step(self, batch, **fit_params):
            self.optimizer_.zero_grad()
            step = self.train_step_single(batch, **fit_params)
            self.step_()
            return step

    modules = copies(MLP(4, 3), 2)
    compiled, plain = (
        weights(iris_net(with_factors(), cls=cls, module=module, optimizer__momentum=0.9, audited=False).fit(X, y))
        for cls, module in zip((Compiled, NeuralNetClassifier), modules, strict=True)
    )
    for one, other in zip(compiled.values(), plain.values(), strict=True):
        assert_close(one, other)


class Interrupted(torch.optim.Optimizer):
    """Ctrl-C in the middle of an update."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        torch.enable_grad()(closure)()
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor -= group["lr"] * tensor.grad
                raise KeyboardInterrupt


def test_an_update_that_is_interrupted_is_not_refused():
    net = iris_net(with_factors(), optimizer=Interrupted, audited=False).fit(X, y)
    assert len(net.optimizer_.param_groups) == 1


class UpdatesByItself(torch.optim.SGD):
    """An optimizer of a net with two, which is never asked for its step."""

    @torch.no_grad()
    def update(self):
        for tensor in self.param_groups[0]["params"]:
            tensor -= 0.1 * tensor.grad


class TwoOptimizers(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.opt_body_ = UpdatesByItself(self.module_[:3].parameters(), lr=0.1)
        self.opt_head_ = torch.optim.SGD(self.module_[3:].parameters(), lr=0.1)
        return self

    def train_step(self, batch, **fit_params):
        self.module_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.opt_head_.step()
        self.opt_body_.update()
        return step


def test_a_step_of_one_optimizer_does_not_prove_the_rates_of_another():
    table = {"epoch": [1], "weights": [select_all()], "lr_mult": [0.1]}
    with pytest.raises(ValueError, match="which has no effect: UpdatesByItself updates the weights"):
        iris_net(with_factors(table), cls=TwoOptimizers, audited=False).fit(X, y)
