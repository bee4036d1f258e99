"""The audit of what is trainable: what never moves is warned of with the reason, and ordinary trainings are not."""

import warnings

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlr3torch_py import CallbackSetUnfreeze, Freezer, select_all, select_last, select_prefix, t_clbk
from tests.helpers import Stops, X, iris_net, y


class Beside(nn.Module):
    """A network that is used, and a layer beside it that is not, or hardly."""

    def __init__(self, beside=lambda layer, x: 0 * layer(x), layer=None):
        super().__init__()
        self.used = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        self.idle = layer or nn.Linear(4, 3)
        self.beside = beside

    def forward(self, x):
        return self.used(x) + self.beside(self.idle, x)


def warnings_of(net, x=X):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net.fit(x, y)
    return [str(one.message) for one in said if one.category is UserWarning]


def audited(*callbacks, freezer=None, max_epochs=2, **params):
    freezer = freezer or Freezer("used.0.bias")
    return iris_net(freezer, *callbacks, t_clbk("freeze_audit"), max_epochs=max_epochs, **params)


def optimizer_of(names, **groups):
    """The class of a net whose optimizer holds some parameters, and others in groups with rates of their own."""

    class Chosen(NeuralNetClassifier):
        def initialize_optimizer(self, *args, **kwargs):
            named = dict(self.module_.named_parameters())
            rates = {"": self.lr, **groups}
            members = {prefix: [p for n, p in named.items() if n.startswith(prefix)] for prefix in rates}
            chosen = [p for n, p in named.items() if n.startswith(names) and not n.startswith(tuple(groups))]
            members[""] = chosen
            self.optimizer_ = torch.optim.SGD(
                [{"params": params, "lr": rates[prefix]} for prefix, params in members.items()], lr=self.lr
            )
            return self

    return Chosen


def added(layer, x):
    return layer(x)


def unused(layer, x):
    return 0


NOT_MOVED = "idle.weight, idle.bias did not move in batches 1 to 6, though trainable: "
BROKEN = {
    "in no optimizer": (added, optimizer_of("used"), "no optimizer holds it"),
    "unused and in no optimizer": (unused, optimizer_of("used"), "no optimizer holds it"),
    "a factor of zero": (lambda layer, x: 0 * layer(x), NeuralNetClassifier, "its gradient was zero"),
    "a rounding": (lambda layer, x: layer(x).round(), NeuralNetClassifier, "its gradient was zero"),
    "a rate of zero": (added, optimizer_of("used", idle=0.0), "its learning rate is 0"),
    "updates too small": (added, optimizer_of("used", idle=1e-12), "it got gradients, but its updates are too small"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_never_moves_is_warned_of_with_the_reason(kind):
    beside, cls, reason = BROKEN[kind]
    (message,) = warnings_of(audited(module=Beside, module__beside=beside, cls=cls))
    assert message.startswith(NOT_MOVED + reason)


def test_what_never_gets_a_gradient_is_warned_of():
    (message,) = warnings_of(audited(module=Beside, module__beside=lambda layer, x: layer(x).detach()))
    assert message.startswith(
        "idle.weight, idle.bias never got a gradient in batches 1 to 6, though trainable: not used"
    )


def test_every_name_has_its_reason_in_one_warning_at_each_event_and_at_the_end():
    network = Beside(lambda layer, x: layer[0](x).detach() + 0 * layer[1](x), nn.ModuleList([nn.Linear(4, 3)] * 1))
    network.idle.append(nn.Linear(4, 3))
    table = {"epoch": [3], "weights": [select_prefix("used.0")]}
    unfreeze = CallbackSetUnfreeze(select_all() - select_prefix("used.0"), table)
    said = warnings_of(audited(freezer=unfreeze, module=network, max_epochs=4))
    assert [message.count("idle") for message in said] == [4, 4]
    for message, batches in zip(said, ["1 to 6", "7 to 12"], strict=True):
        never, zero = message.split("; ")
        assert never.startswith(f"idle.0.weight, idle.0.bias never got a gradient in batches {batches}, though")
        assert zero.startswith(
            f"idle.1.weight, idle.1.bias did not move in batches {batches}, though trainable: its gr"
        )


def test_a_gradient_that_a_hook_takes_away_is_warned_of():
    module = iris_net().initialize().module_
    module[3].weight.register_hook(torch.zeros_like)
    (message,) = warnings_of(audited(freezer=Freezer("0.bias"), module=module))
    assert message.startswith("3.weight did not move in batches 1 to 6, though trainable: its gradient was zero")


def test_what_is_put_back_after_each_step_is_warned_of():
    class PutsBack(Callback):
        def on_train_begin(self, net, **kwargs):
            self.kept_ = net.module_.used[2].weight.detach().clone()

        def on_batch_end(self, net, **kwargs):
            net.module_.used[2].weight.data.copy_(self.kept_)

    (message,) = warnings_of(audited(PutsBack(), module=Beside, module__beside=added))
    assert message.startswith("used.2.weight did not move in batches 1 to 6, though trainable: it got gradients, but")


def test_a_single_value_that_moves_is_enough():
    words = torch.zeros(150, 2, dtype=torch.int64)
    words[:, 1] = torch.arange(150) % 2
    network = nn.Sequential(nn.EmbeddingBag(500, 4, sparse=False), nn.Linear(4, 4), nn.Linear(4, 3))
    assert warnings_of(audited(freezer=Freezer("1.bias"), module=network), words) == []
    network[0].sparse = True
    assert warnings_of(audited(freezer=Freezer("1.bias"), module=network), words) == []


def dead(network):
    """Let no unit of the first layer fire."""
    with torch.no_grad():
        network[0].bias.fill_(-1000.0)
    return network


class Normalised(nn.Module):
    """A bias and keys whose effect is taken away by what follows."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.value(x))[:, None]
        steps = torch.cat([x, -x, 2 * x], 1)
        weights = (self.query(steps) @ self.key(steps).transpose(1, 2)).softmax(-1)
        return self.head((weights @ steps).mean(1))


class Adapter(nn.Module):
    """The second factor begins with zeros, and so does the gradient of the first."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3)
        self.a, self.b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(2, 3))

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b


class Accumulates(NeuralNetClassifier):
    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        self.notify("on_grad_computed", named_parameters=self.get_all_learnable_params(), batch=batch, training=True)
        if self.history[-1, "batches", -1] and len(self.history[-1]["batches"]) % self.every == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step

    every = 2


class AccumulatesMore(Accumulates):
    every = 99


def plain(**params):
    return {"freezer": Freezer("0.bias")} | params


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))


ORDINARY = {
    "a rate of zero": lambda: plain(lr=0.0),
    "a rate that begins with zero": lambda: {
        "freezer": (Freezer("0.bias"), LRScheduler("LambdaLR", lr_lambda=lambda epoch: min(epoch, 1)))
    },
    "a bias before a normalisation": lambda: {"freezer": Freezer("head.bias"), "module": Normalised()},
    "a bias before a normalisation, alone": lambda: {
        "freezer": CallbackSetUnfreeze(select_last(1) | select_prefix("value.bias", "key.bias", "norm")),
        "module": Normalised(),
    },
    "units that never fire": lambda: {"freezer": Freezer("4.bias"), "module": dead(mlp())},
    "units that never fire below": lambda: {"freezer": Freezer(["2.bias", "4.weight"]), "module": dead(mlp())},
    "units that never fire behind what is frozen": lambda: {
        "freezer": CallbackSetUnfreeze(select_last(2)),
        "module": dead(mlp()),
    },
    "an adapter": lambda: {"freezer": Freezer(name_starts_with="base"), "module": Adapter()},
    "an adapter, event after event": lambda: {
        "freezer": CallbackSetUnfreeze(
            select_prefix("a", "b"),
            {
                "batch": [2, 3, 4, 5],
                "weights": [select_prefix("base")] * 4,
                "action": ["unfreeze", "freeze"] * 2,
            },
        ),
        "module": Adapter(),
    },
    "accumulated gradients": lambda: plain(cls=Accumulates),
    "accumulated gradients without a step": lambda: plain(cls=AccumulatesMore),
    "Ctrl-C at once": lambda: {"freezer": (Freezer("base.bias"), Stops(KeyboardInterrupt, 1)), "module": Adapter()},
    "Ctrl-C": lambda: plain(freezer=(Freezer("0.bias"), Stops(KeyboardInterrupt, 2))),
    "LBFGS": lambda: plain(optimizer=torch.optim.LBFGS, lr=0.1),
    "Adam": lambda: plain(optimizer=torch.optim.Adam, lr=1e-2),
    "validation": lambda: plain(train_split=None, max_epochs=1),
}


@pytest.mark.parametrize(("kind", "seed"), [("orthogonal", 4), ("weight_norm", 3)])
def test_a_bias_behind_a_parametrized_weight_and_before_a_normalisation_is_not_warned_of(kind, seed):
    x = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    layer = getattr(nn.utils.parametrizations, kind)(nn.Linear(4, 6))
    module = nn.Sequential(layer, nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    params = {"module": module, "max_epochs": 3, "batch_size": 16, "train_split": None}
    assert warnings_of(audited(freezer=Freezer("3.bias"), **params), x) == []


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", ORDINARY)
@pytest.mark.filterwarnings("ignore:`unfreeze`:UserWarning")
def test_ordinary_trainings_are_not_warned_of(kind):
    if kind == "LBFGS" and torch.__version__ < "2.13":
        pytest.skip("LBFGS of this torch is itself warned of a conversion")
    params = ORDINARY[kind]()
    freezer = params.pop("freezer")
    first, *rest = freezer if isinstance(freezer, tuple) else (freezer,)
    assert warnings_of(audited(*rest, freezer=first, **params)) == []


def test_what_has_moved_before_may_rest_later():
    class Fades(Beside):
        n_calls = 0

        def forward(self, x):
            self.n_calls += 1
            return self.used(x) + self.idle(x) * (self.n_calls < 5)

    table = {"epoch": [3], "weights": [select_prefix("used.0")]}
    unfreeze = CallbackSetUnfreeze(select_all() - select_prefix("used.0"), table)
    assert warnings_of(audited(freezer=unfreeze, module=Fades(), max_epochs=4)) == []


def test_activations_that_are_computed_again_may_rest():
    """What a graph of a checkpoint holds is not known."""

    class Recomputed(Beside):
        def forward(self, x):
            return self.used(x) + checkpoint(lambda x: 0 * self.idle(x), x.requires_grad_(), use_reentrant=True)

    assert warnings_of(audited(module=Recomputed())) == []


class OwnStep(NeuralNetClassifier):
    """A net without an optimizer of torch."""

    def initialize_optimizer(self, *args, **kwargs):
        return self

    def train_step(self, batch, **fit_params):
        self.module_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.notify("on_grad_computed", named_parameters=self.get_all_learnable_params(), batch=batch, training=True)
        with torch.no_grad():
            for tensor in self.module_.used.parameters():
                tensor -= 0 if tensor.grad is None else 0.1 * tensor.grad
        return step


def test_without_an_optimizer_of_torch_none_is_missing():
    assert warnings_of(iris_net(t_clbk("freeze_audit"), module=Beside, module__beside=added, cls=OwnStep))[
        0
    ].startswith("idle.weight, idle.bias did not move in batches 1 to 12, though trainable: it got gradients, but")


def test_what_is_trainable_is_watched_without_freezing_too():
    net = iris_net(t_clbk("freeze_audit"), module=Beside, max_epochs=2)
    (message,) = warnings_of(net)
    assert message.startswith(NOT_MOVED + "its gradient was zero")


def test_an_output_of_several_tensors_is_looked_at():
    class Two(Beside):
        def forward(self, x):
            return {"logits": [super().forward(x)]}

    class First(NeuralNetClassifier):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            return super().get_loss(y_pred["logits"][0], y_true, *args, **kwargs)

    (message,) = warnings_of(audited(module=Two, cls=First))
    assert message.startswith(NOT_MOVED + "its gradient was zero")


def test_lazy_weights_that_train_are_no_matter():
    assert (
        warnings_of(
            audited(freezer=Freezer("2.bias"), module=nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 3)))
        )
        == []
    )


def test_select_last_trains_a_head_over_units_that_never_fire():
    assert warnings_of(audited(freezer=CallbackSetUnfreeze(select_last(1)), module=dead(mlp()))) == []
