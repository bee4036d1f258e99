"""What is replaced while a net trains gets the flags, pins, rates and scheduler of what was there before."""

import copy

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, InputShapeSetter
from torch import nn
from torch.nn.utils import parametrizations, prune

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    select_glob,
    select_name,
    select_none,
    select_prefix,
    select_trainable,
    t_clbk,
    torch_callback,
    trainable_names,
)
from mlr3torch_py.network.evaluation import pinned_modules
from mlr3torch_py.network.unwrap import bare
from mlr3torch_py.protocols import last_event
from tests.freezing.test_rates_refused import Own
from tests.helpers import Trace, X, iris_net, moved, weights, y


class Network(nn.Module):
    """`frozen` stays frozen, `slow` trains with a tenth of the rate, `head` with the rate."""

    def __init__(self, width=4):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
        self.slow = nn.Sequential(nn.Linear(width, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.slow(self.frozen(x))))


SLOW = {"epoch": [1], "weights": [select_prefix("slow")], "lr_mult": [0.1]}


def schedule(table=SLOW, **options):
    return CallbackSetUnfreeze(select_prefix("slow", "head"), table, **{"frozen_mode": "eval"} | options)


def new(net, path):
    """Replace a parameter under its name, or a module, and tell the optimizer."""
    before = net.module_.get_parameter(path) if path.endswith(("weight", "bias")) else net.module_.get_submodule(path)
    parent, _, name = path.rpartition(".")
    if isinstance(before, nn.Parameter):
        after = nn.Parameter(before.detach() + 0.1)
        added = [after]
    else:
        after = type(before)(*(4, 3) if path == "head" else [4] * (1 + isinstance(before, nn.Linear)))
        added = list(after.parameters())
    setattr(net.module_.get_submodule(parent), name, after)
    net.optimizer_.add_param_group({"params": added})


def add(net, part):
    layer = nn.Linear(4, 4)
    getattr(net.module_, part).append(layer)
    net.optimizer_.add_param_group({"params": list(layer.parameters())})


def parametrize(net, part):
    """Put a weight apart into its size and its direction, which are new parameters under new names."""
    layer = getattr(net.module_, part)[0]
    parametrizations.weight_norm(layer)
    net.optimizer_.add_param_group({"params": list(layer.parametrizations.parameters())})


def another_optimizer(net):
    net.optimizer_ = torch.optim.SGD(net.module_.parameters(), lr=0.1)


def wrap(net):
    net.module_ = nn.DataParallel(net.module_)


def sync(net):
    net.module_ = nn.SyncBatchNorm.convert_sync_batchnorm(net.module_)
    another_optimizer(net)


REPLACEMENTS = {
    "frozen parameter": lambda net: new(net, "frozen.0.weight"),
    "slow parameter": lambda net: new(net, "slow.0.weight"),
    "parameter of the head": lambda net: new(net, "head.bias"),
    "frozen layer": lambda net: new(net, "frozen.0"),
    "frozen normalisation": lambda net: new(net, "frozen.1"),
    "slow layer": lambda net: new(net, "slow.0"),
    "head": lambda net: new(net, "head"),
    "layer added to what is frozen": lambda net: add(net, "frozen"),
    "layer added to what is slow": lambda net: add(net, "slow"),
    "weight_norm of what is frozen": lambda net: parametrize(net, "frozen"),
    "weight_norm of what is slow": lambda net: parametrize(net, "slow"),
    "module": lambda net: net.set_params(module__width=5),
    "optimizer": another_optimizer,
    "optimizer by a new criterion": lambda net: net.set_params(criterion__reduction="mean"),
    "wrapper around the module": wrap,
    "other normalisation": sync,
}


def parameters(net):
    return {name: tensor.detach().clone() for name, tensor in bare(net.module_).named_parameters()}


class Replaces(Callback):
    """Replaces something in the second of four epochs, between two batches or at its end, and watches what comes."""

    def __init__(self, replace, when):
        self.replace = replace
        self.when = when

    def on_train_begin(self, net, **kwargs):
        self.seen_ = {}

    def on_batch_begin(self, net, training=None, **kwargs):
        self.before_ = parameters(net)

    def on_grad_computed(self, net, **kwargs):
        named = bare(net.module_).named_parameters()
        self.gradients_ = {name: one.grad for name, one in named if one.grad is not None}

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            batch = len(net.history) * 100 + len(net.history[-1]["batches"])
            moved_by = {name: self.before_[name] - one for name, one in parameters(net).items()}
            effective = {
                name: float((moved_by[name].flatten() @ gradient.flatten()) / gradient.norm() ** 2)
                for name, gradient in self.gradients_.items()
                if gradient.norm() > 0
            }
            network = bare(net.module_)
            self.seen_[batch] = {
                "flags": set(trainable_names(network)),
                "moved": {name for name, by in moved_by.items() if by.any()},
                "rates": effective,
                "pinned": pinned_modules(network).keys(),
                "names": {name for name, _ in network.named_parameters()},
                "recorded": {key for key in net.history[-1]["batches"][-1] if key.startswith("lr_")},
            }
            if self.when == "batch" and batch == 202:
                self.replace(net)

    def on_epoch_end(self, net, **kwargs):
        if self.when == "epoch" and len(net.history) == 2:
            self.replace(net)


def seen_of(replace, when, *callbacks, **params):
    watch = Replaces(replace, when)
    params = {"module": Network, "audited": False, "criterion": nn.CrossEntropyLoss} | params
    net = iris_net(*callbacks, watch, **params).fit(X, y)
    return net, watch.seen_


def check(seen, rate=0.1):
    """What a batch must look like, for each part of the network."""
    expected = {name for name in seen["names"] if "frozen." not in name}
    assert seen["flags"] == expected
    assert seen["moved"] == seen["rates"].keys() <= expected
    for name, effective in seen["rates"].items():
        assert effective == pytest.approx(rate * (0.1 if "slow." in name else 1), rel=0.02), name
    assert {name.split(".")[0] for name in seen["moved"]} == {"slow", "head"}
    assert {path.split(".")[0] for path in seen["pinned"]} == {"frozen"}
    assert seen["pinned"] >= {"frozen", "frozen.0", "frozen.1"}


@pytest.mark.sample(3)
@pytest.mark.parametrize("what", REPLACEMENTS)
@pytest.mark.parametrize("when", ["epoch", "batch"])
def test_what_is_replaced_is_followed(what, when):
    net, seen = seen_of(REPLACEMENTS[what], when, schedule())
    for batch in (101, 103, 201, 202, 203, 301, 303, 401):
        check(seen[batch])
    assert not pinned_modules(net.module_)
    assert all(one.training for one in net.module_.train().modules())


class At(Callback):
    """Does something once: at the end of an epoch, or after a batch of it."""

    def __init__(self, do, epoch=1, batch=None):
        self.do = do
        self.epoch = epoch
        self.batch = batch

    def on_batch_end(self, net, training=None, **kwargs):
        if training and len(net.history) == self.epoch and len(net.history[-1]["batches"]) == self.batch:
            self.do(net)

    def on_epoch_end(self, net, **kwargs):
        if self.batch is None and len(net.history) == self.epoch:
            self.do(net)


class Tied(nn.Module):
    """`first` and `second` have one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def untie(net):
    new(net, "second.weight")


def tie(net):
    net.module_.first.weight = net.module_.second.weight


@pytest.mark.filterwarnings("ignore:.* share weights:UserWarning")
def test_a_weight_that_is_no_longer_tied_to_a_trainable_one_is_frozen():
    trace = Trace()
    iris_net(Freezer(name_starts_with="first"), At(untie), trace, module=Tied, max_epochs=2, audited=False).fit(X, y)
    assert trace.batches_[0] == ["first.weight", "second.weight", "second.bias", "head.weight", "head.bias"]
    assert trace.batches_[3] == ["second.weight", "second.bias", "head.weight", "head.bias"]
    assert not moved(trace.weights_[-2], trace.weights_[-1]) & {"first.weight", "first.bias"}


@pytest.mark.filterwarnings("ignore:.* share weights:UserWarning")
def test_a_weight_that_is_tied_to_a_trainable_one_trains():
    trace = Trace()
    callbacks = Freezer(name_starts_with="first"), At(untie), At(tie, epoch=2), trace
    iris_net(*callbacks, module=Tied, max_epochs=3, audited=False).fit(X, y)
    assert trace.batches_[-1] == ["first.weight", "second.weight", "second.bias", "head.weight", "head.bias"]


def test_a_frozen_weight_that_is_tied_to_a_name_that_nobody_holds_trains():
    def tie_to_frozen(net):
        net.module_.slow[0].weight = net.module_.frozen[0].weight

    trace = Trace()
    freezer = Freezer(name_starts_with="frozen.0")
    iris_net(freezer, At(tie_to_frozen), trace, module=Network, max_epochs=2, audited=False).fit(X, y)
    assert "slow.0.weight" in trace.batches_[0]
    assert "frozen.0.weight" in trace.batches_[-1]


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("has_more", [False, True])
def test_a_frozen_weight_that_gets_the_name_of_a_trainable_one_trains_also_in_the_next_call(when, has_more):
    def replace(self):
        network = self.ctx.net.module_
        if self.ctx.epoch == when:
            network.slow, network.frozen = network.frozen, nn.Linear(4, 4)
            network.add_module("more", nn.Linear(4, 4) if has_more else None)

    trace = Trace()
    freezer = Freezer(name_starts_with="frozen", frozen_mode="eval")
    callbacks = freezer, torch_callback("replaces", on_epoch_end=replace), trace
    net = iris_net(*callbacks, module=Network, max_epochs=2, audited=False).fit(X, y)
    net.partial_fit(X, y)
    assert {"slow.0.weight", "slow.0.bias", "slow.1.weight", "slow.1.bias"} <= set(trace.batches_[-1])
    before_a_norm = {"slow.0.bias"}  # whose gradient is zero but for rounding
    expected = {name for name in trace.batches_[-1] if not name.startswith("more")}
    assert moved(*trace.weights_[-2:]) | before_a_norm == expected


@pytest.mark.parametrize(
    ("replace", "is_event"),
    [
        (weights, False),
        (lambda net: new(net, "frozen.0.weight"), True),
        (lambda net: new(net, "slow.0.weight"), True),
        (lambda net: setattr(net.module_.frozen, "1", nn.Tanh()), True),
        (lambda net: net.module_.slow.append(nn.Tanh()), True),
        (another_optimizer, False),
    ],
)
@pytest.mark.parametrize("callback", [schedule(frozen_mode="train"), Freezer(name_starts_with="frozen.0.")])
def test_a_network_with_another_part_counts_as_an_event(replace, is_event, callback):
    events = []

    class Looks(Callback):
        def on_batch_begin(self, net, **kwargs):
            events.append(last_event(net))

    iris_net(callback, Looks(), At(replace, epoch=2), module=Network, max_epochs=3, audited=False).fit(X, y)
    assert len(set(events[:6])) <= 2
    assert (events[5] != events[6]) is is_event
    assert events[6] == events[8]


NO_OPTIMIZER = "parameters will not be trained .* no optimizer holds them: {};"


def without_telling(net):
    net.module_.slow[0] = nn.Linear(4, 4)


@pytest.mark.parametrize("batch", [None, 2])
def test_what_is_replaced_without_telling_the_optimizer_is_warned_of_once(batch):
    net = iris_net(schedule(), At(without_telling, 1, batch), module=Network, audited=False)
    with pytest.warns(UserWarning, match=NO_OPTIMIZER.format("slow")) as caught:
        net.fit(X, y)
    assert len(caught) == 1
    net.partial_fit(X, y)
    with pytest.warns(UserWarning, match=NO_OPTIMIZER.format("slow")):
        net.fit(X, y)


def test_it_is_warned_of_also_when_it_happens_between_two_calls():
    net = iris_net(("unfreeze", schedule()), module=Network, max_epochs=1, audited=False).fit(X, y)
    without_telling(net)
    with pytest.warns(UserWarning, match=NO_OPTIMIZER.format("slow")):
        net.partial_fit(X, y)
    net.partial_fit(X, y)
    net.optimizer_.add_param_group({"params": list(net.module_.slow.parameters())})
    net.partial_fit(X, y)
    without_telling(net)
    with pytest.warns(UserWarning, match=NO_OPTIMIZER.format("slow")):
        net.partial_fit(X, y)


def test_an_optimizer_that_holds_less_is_warned_of():
    def head_alone(net):
        net.optimizer_ = torch.optim.SGD(net.module_.head.parameters(), lr=0.1)

    for batch in (None, 2):
        net = iris_net(schedule(None), At(head_alone, 2, batch), module=Network, audited=False)
        with pytest.warns(UserWarning, match=NO_OPTIMIZER.format("slow")) as caught:
            net.fit(X, y)
        assert len(caught) == 1


@pytest.mark.parametrize("path", ["frozen.0", "frozen.0.weight", "frozen.1", "head"])
def test_what_a_later_callback_replaces_when_an_epoch_begins_is_followed_in_that_epoch(path):
    class Replaces(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                new(net, path)
                before.update(weights(net))
                statistics.append(copy.deepcopy(net.module_.frozen[1].running_mean))

    before, statistics = {}, []
    net = iris_net(schedule(), Replaces(), module=Network, max_epochs=2, audited=False).fit(X, y)
    assert moved(before, weights(net)) == {name for name in before if name.startswith(("slow", "head"))}
    assert torch.equal(net.module_.frozen[1].running_mean, statistics[0])
    assert not net.module_.frozen[0].weight.requires_grad


def test_what_is_replaced_and_stays_frozen_is_not_warned_of():
    def replace(net):
        net.module_.frozen[0] = nn.Linear(4, 4)
        before.update(weights(net))

    before = {}
    net = iris_net(schedule(), At(replace), module=Network, audited=False).fit(X, y)
    assert moved(before, weights(net)) == {name for name in before if name.startswith(("slow", "head"))}


@pytest.mark.parametrize("what", ["module", "optimizer", "optimizer by a new criterion", "wrapper around the module"])
@pytest.mark.parametrize("when", ["epoch", "batch"])
def test_a_scheduler_follows_beside_the_factors(what, when):
    _, seen = seen_of(REPLACEMENTS[what], when, schedule(), t_clbk("lr_step", step_size=1, gamma=0.5))
    for batch in (101, 203, 301, 302, 401):
        check(seen[batch], rate=0.1 * 0.5 ** (batch // 100 - 1))


def test_what_input_shape_setter_makes_behind_us_is_followed():
    _, seen = seen_of(weights, "epoch", schedule(), InputShapeSetter(param_name="width"), module__width=5)
    for batch in (101, 102, 201):
        check(seen[batch])
    assert "lr_0_x0.1" in seen[101]["recorded"]


class Embedded(Network):
    def __init__(self, n=5):
        super().__init__()
        self.frozen = nn.Sequential(nn.Embedding(n, 4), nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return super().forward(x.long().clamp(0, 4))


def resize(net):
    """Put more rows into an embedding, as `resize_token_embeddings` of transformers does."""
    before = net.module_.frozen[0]
    net.module_.frozen[0] = after = nn.Embedding(8, 4)
    with torch.no_grad():
        after.weight[: len(before.weight)] = before.weight
    net.optimizer_.add_param_group({"params": [after.weight]})


def test_an_embedding_with_more_rows_stays_frozen():
    watch = Replaces(resize, "epoch")
    iris_net(schedule(), watch, module=Embedded, audited=False).fit(X, y)
    for batch in (202, 301, 401):
        assert watch.seen_[batch]["moved"] == {"slow.0.weight", "slow.0.bias", "head.weight", "head.bias"}
        assert "frozen.3" in watch.seen_[batch]["pinned"]


def test_what_is_replaced_while_it_is_frozen_trains_when_its_row_comes():
    table = {"epoch": [1, 4], "weights": [select_prefix("slow"), select_prefix("frozen")], "lr_mult": [0.1, 0.01]}
    for what in ("frozen parameter", "frozen layer", "frozen normalisation", "layer added to what is frozen"):
        _, seen = seen_of(REPLACEMENTS[what], "epoch", schedule(table))
        check(seen[303])
        assert seen[401]["flags"] == seen[401]["names"]
        assert not seen[401]["pinned"]
        assert {name for name in seen[401]["moved"] if "frozen" in name} >= {"frozen.1.weight", "frozen.0.weight"}
        for name in seen[401]["moved"]:
            if "frozen" in name:
                assert seen[401]["rates"][name] == pytest.approx(0.001, rel=0.05)


class Prunes(Callback):
    """Gives two weights other names, as torch's pruning does, at a stage of the second epoch."""

    def __init__(self, stage):
        self.stage = stage
        self.is_done_ = False

    def prune(self, stage, net):
        if stage == self.stage and len(net.history) == 2 and not self.is_done_:
            self.is_done_ = True
            for layer in (net.module_[0], net.module_[6]):
                prune.identity(layer, "weight")

    def on_epoch_begin(self, net, **kwargs):
        self.prune("epoch", net)

    def on_batch_end(self, net, **kwargs):
        self.prune("batch", net)


@pytest.mark.parametrize("stage", ["epoch", "batch"])
@pytest.mark.parametrize(
    ("first", "last"),
    [(select_name("0.weight"), select_name(["6.weight", "6.bias"])), (select_glob("0.weight"), select_glob("6.*[ts]"))],
)
def test_a_tensor_that_gets_another_name_keeps_its_schedule(first, last, stage):
    trace, unfreeze = Trace(), CallbackSetUnfreeze(last, {"epoch": [4], "weights": [first]})
    net = iris_net(unfreeze, Prunes(stage), trace, max_epochs=4, batch_size=150, audited=False).fit(X, y)
    head = ["6.bias", "6.weight_orig"]
    assert [sorted(names) for names in trace.batches_[2:]] == [head, ["0.weight_orig", *head]]
    assert net.history[:, "event_unfrozen"] == [None, None, None, "+ 0.weight_orig"]
    assert moved(trace.weights_[-2], trace.weights_[-1]) == {"0.weight_orig", *head}


def test_a_tensor_that_trains_by_a_loaded_state_keeps_training_under_another_name():
    trace, unfreeze = Trace(), CallbackSetUnfreeze(select_none())
    unfreeze.load_state_dict({"trainable": ["0.weight", "6.bias"]})
    iris_net(unfreeze, Prunes("epoch"), trace, max_epochs=3, batch_size=150).fit(X, y)
    assert [sorted(names) for names in trace.batches_[1:]] == [["0.weight_orig", "6.bias"]] * 2


@pytest.mark.parametrize("what", ["frozen parameter", "frozen layer", "frozen normalisation"])
def test_a_freezer_follows_too(what):
    freezer = Freezer(name_starts_with="frozen", until_epoch=3, frozen_mode="eval")
    _, seen = seen_of(REPLACEMENTS[what], "epoch", freezer)
    for batch in (203, 301, 303):
        assert {name.split(".")[0] for name in seen[batch]["moved"]} == {"slow", "head"}
        assert {path.split(".")[0] for path in seen[batch]["pinned"]} == {"frozen"}
    assert seen[401]["flags"] == seen[401]["names"]
    assert not seen[401]["pinned"]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (CallbackSetUnfreeze(select_name(["head.weight", "head.bias", "slow.0.weight"])), "'slow.0.weight'"),
        (Freezer(names="slow.0.weight"), "`names` has 'slow.0.weight', which matches no weight"),
    ],
)
def test_a_name_that_is_no_longer_there_is_an_error(callback, message):
    net = iris_net(callback, At(REPLACEMENTS["weight_norm of what is slow"]), module=Network, audited=False)
    with pytest.raises(ValueError, match=message):
        net.fit(X, y)
    assert len(net.history) == 1


@pytest.mark.sample(3)
@pytest.mark.parametrize("what", REPLACEMENTS)
def test_between_two_batches_it_is_followed_at_the_next_row(what):
    table = {"batch": [1, 6], "weights": [select_prefix("slow"), select_prefix("slow")], "lr_mult": [0.1, 0.1]}
    _, seen = seen_of(REPLACEMENTS[what], "batch", schedule(table))
    for batch in (202, 203, 301):  # the sixth batch is the last of the second epoch
        check(seen[batch])


def test_what_is_replaced_back_and_forth_leaves_no_pins():
    parts = []

    def swap(net):
        parts.append(net.module_.frozen[1])
        new(net, "frozen.1")
        parts.append(net.module_.frozen[1])

    callbacks = [At(swap, epoch) for epoch in (1, 2, 3)]
    iris_net(schedule(), *callbacks, module=Network, audited=False).fit(X, y)
    assert len({id(part) for part in parts}) == 4
    assert all("train" not in vars(part) and part.train().training for part in parts)


def test_a_layer_that_comes_in_frozen_is_remembered():
    def add_frozen(net):
        add(net, "slow")
        net.module_.slow[1].requires_grad_(False)

    network, trace = Network(), Trace()
    among = select_prefix("slow", "head") & select_trainable()
    iris_net(CallbackSetUnfreeze(among), At(add_frozen), trace, module=network, max_epochs=2, audited=False).fit(X, y)
    iris_net(CallbackSetUnfreeze(among), trace, module=network, max_epochs=1, audited=False).fit(X, y)
    assert trace.batches_[0] == trace.batches_[3] == trace.batches_[6]
    assert trace.batches_[0] == ["slow.0.weight", "slow.0.bias", "head.weight", "head.bias"]


@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("replace", [lambda net: add(net, "slow"), lambda net: net.set_params(module__width=5)])
def test_flags_go_back_to_what_they_were_also_of_what_is_new(replace):
    class Replaces(Callback):
        def on_train_begin(self, net, **kwargs):
            replace(net)

    net = iris_net(CallbackSetUnfreeze(select_none()), Replaces(), module=Network, audited=False)
    with pytest.raises(ValueError, match="nothing trains"):
        net.fit(X, y)
    assert all(tensor.requires_grad for tensor in net.module_.parameters())


class Steps(NeuralNetClassifier):
    """Takes its steps by whatever `optimizer_` is."""

    def _zero_grad_optimizer(self, set_to_none=None):
        self.optimizer_.zero_grad()

    def _step_optimizer(self, step_fn):
        self.optimizer_.step(step_fn)


def an_own_optimizer(net):
    net.optimizer_ = Own(net.module_.parameters(), 0.1)


@pytest.mark.parametrize("batch", [None, 2])
def test_an_optimizer_that_is_none_of_torch_keeps_what_is_frozen_and_refuses_factors(batch):
    trace = Trace()
    replace = At(an_own_optimizer, 1, batch)
    iris_net(schedule(None), replace, trace, module=Network, cls=Steps, max_epochs=2, audited=False).fit(X, y)
    assert trace.batches_ == [["slow.0.weight", "slow.0.bias", "head.weight", "head.bias"]] * 6
    with pytest.raises(ValueError, match="`lr_mult`, which has no effect: Own updates"):
        iris_net(schedule(), replace, module=Network, cls=Steps, max_epochs=2, audited=False).fit(X, y)
