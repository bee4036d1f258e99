"""torch.compile, mixed precision, activation checkpointing, and networks that are odd."""

import warnings

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    select_all,
    select_last,
    select_name,
    select_prefix,
    t_clbk,
    trainable_names,
)
from tests.helpers import Nested, Trace, X, copies, iris_net, moved, weights, y

# Tracing a criterion asks a tensor for its gradient, of which torch warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.skipif(torch.__version__ < "2.12", reason="this torch does not follow a schedule"),
]


def compiled(n_patterns, **params):
    names = [name for name, _ in Nested().named_parameters()][: n_patterns - 1]
    table = {"epoch": list(range(2, n_patterns + 1)), "weights": list(map(select_name, names))}
    params = {"module": Nested, "compile": True, "compile__backend": "eager", "max_epochs": n_patterns} | params
    return iris_net(CallbackSetUnfreeze(select_last(1), table), **params)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def hits_limit(net, caplog):
    with caplog.at_level("WARNING", logger="torch._dynamo"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.fit(X, y)
    ours = [str(one.message) for one in caught if "torch.compile: " in str(one.message)]
    return "recompile_limit" in caplog.text, ours


VALID = {"train_split": ValidSplit(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_patterns", "params", "needed"),
    [
        (8, {}, None),
        (9, {}, 9),
        (4, VALID, None),
        (5, VALID, 10),
        (7, {"batch_size": 40}, None),
        (8, {"batch_size": 40}, 9),
    ],
)
def test_a_schedule_with_more_patterns_than_torch_compiles_is_warned_of_and_no_other(
    n_patterns, params, needed, caplog
):
    hit, ours = hits_limit(compiled(n_patterns, **params), caplog)
    assert hit == (needed is not None)
    assert len(ours) == (needed is not None)
    if needed:
        assert f"torch.compile: {n_patterns} sets of trainable weights in training" in ours[0]
        assert f"set torch._dynamo.config.recompile_limit = {needed}, or unfreeze in fewer steps" in ours[0]


@pytest.mark.slow
def test_the_remedy_helps(caplog):
    with torch._dynamo.config.patch(recompile_limit=9):
        assert hits_limit(compiled(9), caplog) == (False, [])


def in_place():
    module = Nested()
    module.compile(backend="eager")
    return module


@pytest.mark.slow
@pytest.mark.parametrize("module", [in_place, lambda: nn.Sequential(torch.compile(Nested(), backend="eager"))])
def test_a_module_that_is_compiled_in_place_or_in_part_is_warned_of_too(module, caplog):
    names = [name for name, _ in Nested().named_parameters()][:8]
    prefix = "0." if isinstance(network := module(), nn.Sequential) else ""
    table = {"epoch": list(range(2, 10)), "weights": [select_name(prefix + name) for name in names]}
    unfreeze = CallbackSetUnfreeze(select_name([prefix + "head.weight", prefix + "head.bias"]), table)
    hit, ours = hits_limit(iris_net(unfreeze, module=network, max_epochs=9), caplog)
    assert hit
    assert len(ours) == 1


def test_an_uncompiled_net_is_not_warned_of(caplog):
    assert hits_limit(compiled(9, compile=False), caplog) == (False, [])


@pytest.mark.slow
def test_a_network_whose_forward_is_torchs_own_counts_with_the_criterion(caplog):
    table = {"epoch": list(range(2, 9)), "weights": [select_name(f"{i}.weight") for i in (0, 2, 4, 6, 8, 10, 12)]}
    layers = [layer for _ in range(8) for layer in (nn.Linear(4, 4), nn.ReLU())]
    params = {"module": nn.Sequential(*layers, nn.Linear(4, 3)), "compile": True, "compile__backend": "eager"}
    net = iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=8, **params)
    hit, ours = hits_limit(net, caplog)
    assert hit
    assert "8 sets of trainable weights in training need 9 compilations" in ours[0]


TABLES = {
    "epochs": {"epoch": [2, 3], "weights": [select_prefix("encoder"), select_all()]},
    "batches": {"batch": [2, 5], "weights": [select_prefix("encoder"), select_all()]},
    "freezing": {"batch": [2, 5], "weights": [select_all(), select_prefix("head")], "action": ["unfreeze", "freeze"]},
}


def both(table, backend, **params):
    """Train eagerly and compiled from the same weights; return the traces."""
    traces = []
    for module, options in zip(copies(Nested(), 2), [{}, {"compile": True, "compile__backend": backend}], strict=True):
        trace = Trace()
        unfreeze = CallbackSetUnfreeze(select_last(1), table)
        iris_net(unfreeze, trace, module=module, max_epochs=3, **params, **options).fit(X, y)
        traces.append(trace)
    return traces


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_compiled_and_eager_nets_train_the_same_weights_under_the_same_names(table):
    eagerly, compiled = both(table, "aot_eager")
    assert compiled.batches_ == eagerly.batches_
    for one, other in zip(eagerly.weights_, compiled.weights_, strict=True):
        for (name, a), b in zip(one.items(), other.values(), strict=True):
            torch.testing.assert_close(b, a, msg=name)
    names = ["_orig_mod." + name for name in eagerly.weights_[0]]
    assert list(compiled.weights_[0]) == names


# Mixed precision


class Mixed(NeuralNetClassifier):
    """Trains under autocast with a gradient scaler, as torch's documentation has it."""

    def __init__(self, *args, dtype=torch.bfloat16, **kwargs):
        self.dtype = dtype
        super().__init__(*args, **kwargs)

    def initialize(self):
        self.scaler_ = torch.amp.GradScaler("cpu", init_scale=16.0)
        return super().initialize()

    def train_step(self, batch, **fit_params):
        self._set_training(True)
        self._zero_grad_optimizer()
        with torch.autocast("cpu", dtype=self.dtype):
            y_pred = self.infer(batch[0])
            loss = self.get_loss(y_pred, batch[1], X=batch[0], training=True)
        self.scaler_.scale(loss).backward()
        self.notify("on_grad_computed", named_parameters=self.get_all_learnable_params(), batch=batch, training=True)
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        return {"loss": loss, "y_pred": y_pred}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_mixed_precision_freezes_as_ever(dtype, table):
    trace = Trace()
    table = table | {"lr_mult": [0.5, None], "lr_mult_from": ["row", None]}
    net = iris_net(
        CallbackSetUnfreeze(select_last(1), table), trace, module=Nested, cls=Mixed, dtype=dtype, max_epochs=3
    )
    net.fit(X, y)
    for trains, before, after in zip(trace.batches_, trace.weights_, trace.weights_[1:], strict=False):
        assert moved(before, after) <= set(trains)
    assert moved(trace.weights_[0], trace.weights_[-1]) == set(trace.weights_[0])
    assert net.history[-1, "batches", -1, "lr_0_x0.5"] == pytest.approx(0.05)


# Activation checkpointing


class Checkpointed(Nested):
    use_reentrant = False

    def forward(self, x):
        x = self.embed(x)
        for block in self.encoder:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)


class Reentrant(Checkpointed):
    use_reentrant = True


def test_activation_checkpointing_gives_the_weights_of_plain_training():
    plain, checkpointed = Nested(), Checkpointed()
    checkpointed.load_state_dict(plain.state_dict())
    ends = []
    for module in (plain, checkpointed):
        unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_prefix("encoder")]})
        ends.append(weights(iris_net(unfreeze, module=module).fit(X, y)))
    assert not moved(*ends)


def test_reentrant_checkpointing_below_which_nothing_trains_is_warned_of():
    """Torch gives the weights in such a block no gradient when its input needs none."""
    unfreeze = CallbackSetUnfreeze(select_last(1) | select_prefix("encoder"))
    net = iris_net(unfreeze, t_clbk("freeze_audit"), module=Reentrant)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        with pytest.warns(UserWarning, match="encoder.0.fc2.bias never got a gradient .* use_reentrant=True"):
            net.fit(X, y)


# Odd networks


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.LazyLinear(4)
        self.norm = nn.LazyBatchNorm1d()
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.norm(self.body(x)))


@pytest.mark.parametrize("norm", ["train", "eval"])
def test_lazy_modules_freeze_once_they_have_their_shape(norm):
    trace = Trace()
    table = {"epoch": [2], "weights": [select_prefix("body")]}
    unfreeze = CallbackSetUnfreeze(select_prefix("head"), table, frozen_norm=norm)
    net = iris_net(unfreeze, module=Lazy, audited=False).initialize()
    with torch.no_grad():
        net.module_(torch.tensor(X))
    net.initialize_optimizer()
    net.callbacks_.append(("trace", trace))
    net.partial_fit(X, y)
    assert moved(trace.weights_[0], trace.weights_[3]) == {"head.weight", "head.bias"}
    assert moved(trace.weights_[3], trace.weights_[-1]) == {"head.weight", "head.bias", "body.weight", "body.bias"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        self.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)))


@pytest.mark.usefixtures("no_schedule_warnings")  # rows select some of the names of a tied tensor
def test_tied_and_integer_parameters():
    trace = Trace()
    table = {"epoch": [2, 3], "weights": [select_name("decoder.weight"), select_all()]}
    iris_net(CallbackSetUnfreeze(select_prefix("head"), table), trace, module=Tied).fit(X, y)
    head = {"head.weight", "head.bias"}
    assert moved(trace.weights_[0], trace.weights_[3]) == head
    assert moved(trace.weights_[3], trace.weights_[6]) == head | {"encoder.weight"}
    assert moved(trace.weights_[6], trace.weights_[-1]) == head | {"encoder.weight", "encoder.bias", "decoder.bias"}


class Wide(nn.Module):
    """10,000 parameters."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(9_998))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) + self.parts[5]


def test_ten_thousand_parameters():
    table = {"batch": [2, 3], "weights": [select_name("parts.5"), select_prefix("parts")]}
    trace = Trace()
    net = iris_net(CallbackSetUnfreeze(select_prefix("head"), table), trace, module=Wide, audited=False, max_epochs=1)
    net.fit(X, y)
    assert [len(names) for names in trace.batches_] == [2, 3, 10_000]
    assert moved(trace.weights_[0], trace.weights_[1]) == {"head.weight", "head.bias"}


class Empty(nn.Module):
    def forward(self, x):
        return x[:, :3]


@pytest.mark.parametrize("callback", [CallbackSetUnfreeze(select_all()), Freezer(["weight"])])
def test_a_network_without_parameters_is_an_error_that_says_so(callback):
    class Weighted(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, scores, target):
            return super().forward(scores * self.scale, target)

    net = iris_net(callback, module=Empty, criterion=Weighted, audited=False)
    if isinstance(callback, Freezer):
        with pytest.raises(ValueError, match="`names` has 'weight', which matches no weight of the network"):
            net.fit(X, y)
    else:
        with pytest.warns(UserWarning, match="`starting_weights`: select_all"):
            net.fit(X, y)
        assert trainable_names(net.module_) == []
