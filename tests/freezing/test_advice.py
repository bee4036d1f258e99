"""What is said, when training begins or later, about what is probably a mistake; and what is not said."""

import re
import warnings

import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    chain_thaw,
    freeze_plan,
    gradual_unfreezing,
    head_first,
    select_all,
    select_first,
    select_glob,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_trainable,
    t_clbk,
)
from tests.freezing.test_freezer import Criterion
from tests.helpers import Trace, X, iris_net, y

CAME_IN_FROZEN = "parameters that required no gradient before training will be trained by the schedule: {};"


class Fixed(nn.Module):
    """Keeps its positions fixed, as networks with sinusoidal embeddings do."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.sin(torch.arange(4.0)), requires_grad=False)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x + self.positions)))


class Pretrained(nn.Module):
    """Looks up an embedding that was given as frozen."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.randn(10, 4), freeze=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.embed(x.long()).flatten(1))


class LoRA(nn.Module):
    """A frozen base in each layer, and small layers beside it."""

    def __init__(self, n=2):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"base": nn.Linear(4, 4), "a": nn.Linear(4, 1, bias=False), "b": nn.Linear(1, 4, bias=False)})
            for _ in range(n)
        )
        for layer in self.layers:
            layer["base"].requires_grad_(False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer["base"](x) + layer["b"](layer["a"](x)))
        return self.head(x)


def frozen_by_hand():
    network = MLP(4, 3, neurons=(3, 3))
    network[0].requires_grad_(False)
    network[3].bias.requires_grad_(False)
    return network


CASES = [
    (Fixed, "positions"),
    (Pretrained, "embed"),
    (LoRA, "layers.0.base, layers.1.base"),
    (frozen_by_hand, "0, 3.bias"),
    (lambda: LoRA(8), "layers.0.base, .*layers.5.base and 2 more"),
]
cases = pytest.mark.parametrize(("make", "names"), CASES)


@pytest.mark.sample(3)
@cases
@pytest.mark.parametrize("later", [False, True])
def test_what_came_in_frozen_and_will_be_trained_is_warned_of_once(make, names, later):
    table = {"epoch": [2], "weights": [select_all()]} if later else None
    net = iris_net(CallbackSetUnfreeze(select_last(1) if later else select_all(), table), module=make())
    with pytest.warns(UserWarning, match=CAME_IN_FROZEN.format(names)) as caught:
        net.fit(X, y)
    assert len(caught) == 1
    net.partial_fit(X, y)
    net.fit(X, y)  # trainable by now
    iris_net(CallbackSetUnfreeze(select_all()), module=net.module_, max_epochs=1).fit(X, y)


@cases
def test_what_came_in_frozen_and_stays_so_is_not_warned_of(make, names):
    network = make()
    fixed = {name for name, tensor in network.named_parameters() if not tensor.requires_grad}
    for _ in range(2):  # and the same at a second fit
        trace = Trace()
        iris_net(CallbackSetUnfreeze(select_all() & select_trainable()), trace, module=network, max_epochs=1).fit(X, y)
        assert not fixed & set(trace.batches_[0])
    iris_net(CallbackSetUnfreeze(select_last(1)), module=network, max_epochs=1).fit(X, y)
    with pytest.warns(UserWarning, match=CAME_IN_FROZEN.format(names)):
        iris_net(CallbackSetUnfreeze(select_all()), module=network, max_epochs=1).fit(X, y)


@cases
def test_the_remedy_of_the_message_is_taken(make, names):
    network, trace = make(), Trace()
    iris_net(CallbackSetUnfreeze(select_last(1)), module=network, max_epochs=1).fit(X, y)
    network.requires_grad_(True)
    iris_net(CallbackSetUnfreeze(select_all() & select_trainable()), trace, module=network, max_epochs=1).fit(X, y)
    assert trace.batches_[0] == [name for name, _ in network.named_parameters()]


@cases
def test_a_freezer_warns_of_what_came_in_frozen_only_if_it_releases_it(make, names):
    prefix = names.partition(",")[0].partition(".bias")[0]
    iris_net(Freezer(name_starts_with=prefix), module=make(), max_epochs=1).fit(X, y)
    with pytest.warns(UserWarning, match=CAME_IN_FROZEN.format(".*")):
        iris_net(Freezer(name_starts_with=prefix, until_epoch=1), module=make(), max_epochs=2).fit(X, y)


def test_a_net_that_makes_its_module_at_each_fit_warns_at_each():
    net = iris_net(CallbackSetUnfreeze(select_all()), module=Fixed, max_epochs=1)
    for _ in range(2):
        with pytest.warns(UserWarning, match=CAME_IN_FROZEN.format("positions")):
            net.fit(X, y)


def said_by(*callbacks, **params):
    """All that is said in a training, and in a second call that continues it."""
    net = iris_net(*callbacks, audited=False, **{"max_epochs": 2} | params)
    calls = []
    for call in (net.fit, net.partial_fit):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(X, y)
        calls.append([str(warning.message) for warning in caught])
    return calls


class Tied(nn.Module):
    """`first.weight` and `last.weight` are names of one tensor, as the two ends of a language model have."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.head(self.last(torch.tanh(self.first(x))))


class SharedMemory(Tied):
    """`first.weight` and `last.weight` are two parameters with the same memory, as older networks tie them."""

    def __init__(self):
        super().__init__()
        self.last.weight = nn.Parameter(self.first.weight.data)


FIRST = "'first.weight' and 'last.weight' share weights, which are trainable as long as"


@pytest.mark.parametrize("module", [Tied, SharedMemory])
@pytest.mark.parametrize(
    ("callback", "places"),
    [
        (CallbackSetUnfreeze(select_prefix("first", "head")), ["`starting_weights`: "]),
        (
            CallbackSetUnfreeze(select_prefix("head"), {"epoch": [2], "weights": [select_prefix("first")]}),
            ["`unfreeze`: row 0 "],
        ),
        (
            CallbackSetUnfreeze(
                select_all(), {"epoch": [2], "weights": [select_prefix("first")], "action": ["freeze"]}
            ),
            ["`unfreeze`: row 0 "],
        ),
        (CallbackSetUnfreeze(select_prefix("head", "first", "last")), []),
        (CallbackSetUnfreeze(select_prefix("head"), {"epoch": [2], "weights": [select_all()]}), []),
        (CallbackSetUnfreeze(select_prefix("head", "first.bias")), []),
        (Freezer(name_starts_with="first"), [""]),
        (Freezer(name_starts_with=["first", "last"]), []),
        (Freezer(names="last.bias"), []),
    ],
)
def test_a_tied_weight_that_is_selected_by_some_of_its_names_is_warned_of_once(callback, places, module):
    first, _ = said_by(callback, module=module)
    tied = [message for message in first if FIRST in message]
    assert len(tied) == len(places)
    assert all(message.startswith(place) for message, place in zip(tied, places, strict=True))


class Filtered(NeuralNetClassifier):
    """Gives the optimizer what requires a gradient when it is made, as the questions of skorch show."""

    def initialize_optimizer(self, *args, **kwargs):
        params = [tensor for tensor in self.module_.parameters() if tensor.requires_grad]
        self.optimizer_ = torch.optim.SGD(params, lr=0.1)
        return self


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (None, None),
        ({"epoch": [2], "weights": [select_all()]}, "0, 3"),
        ({"batch": [4], "weights": [select_prefix("3")]}, "3"),
        ({"epoch": [9], "weights": [select_name("0.bias")]}, "0.bias"),
        ({"when": [Plateau("train_loss")], "weights": [select_prefix("0")]}, "0"),
        ({"epoch": [2], "weights": [select_prefix("6.bias")], "action": ["freeze"]}, None),
    ],
)
def test_what_is_to_be_trained_and_is_in_no_optimizer_is_warned_of_once(table, names):
    network = MLP(4, 3, neurons=(3, 3))
    network[0].requires_grad_(False)
    network[3].requires_grad_(False)
    first, second = said_by(CallbackSetUnfreeze(select_last(1), table), cls=Filtered, module=network)
    told = [message for message in first if "no optimizer holds them" in message]
    assert len(told) == (names is not None)
    if names:
        assert f"no optimizer holds them: {names}; give the optimizer all parameters" in told[0]
    assert not any("no optimizer holds them" in message for message in second)


def test_a_freezer_says_so_only_of_what_it_releases():
    network = MLP(4, 3, neurons=(3, 3))
    network[0].requires_grad_(False)
    (first, second) = said_by(Freezer(name_starts_with="0.", until_epoch=1), cls=Filtered, module=network)
    assert [message for message in first if "no optimizer holds them: 0;" in message]
    assert not second
    assert said_by(Freezer(name_starts_with="3."), cls=Filtered, module=network) == [[], []]


class Limited(nn.Module):
    def __init__(self, kind=nn.Embedding, max_norm=0.1):
        super().__init__()
        self.embed = kind(10, 4, max_norm=max_norm)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        embedded = self.embed(x.long())
        return self.head(embedded if embedded.ndim == 2 else embedded.mean(1))


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize(
    ("callback", "is_told"),
    [
        (CallbackSetUnfreeze(select_last(1)), True),
        (CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_all()]}), True),
        (
            CallbackSetUnfreeze(
                select_all(), {"epoch": [2], "weights": [select_prefix("embed")], "action": ["freeze"]}
            ),
            True,
        ),
        (Freezer(name_starts_with="embed", until_epoch=1), True),
        (CallbackSetUnfreeze(select_all()), False),
        (Freezer(name_starts_with="head.bias"), False),
        (Freezer(name_starts_with="embed", until_epoch=0), False),
    ],
)
def test_an_embedding_whose_forward_pass_writes_its_frozen_weight_is_warned_of(kind, callback, is_told):
    first, second = said_by(callback, module=Limited, module__kind=kind)
    message = f"embed.weight will be frozen, but the {kind.__name__} has max_norm=0.1"
    assert [said.startswith(message) for said in first] == [True] * is_told
    assert not second
    assert said_by(callback, module=Limited, module__kind=kind, module__max_norm=None) == [[], []]


@pytest.mark.parametrize(
    ("select", "parts"),
    [
        (select_prefix("0", "layr3"), ["select_prefix('layr3')"]),
        (select_prefix("0") | select_glob("*.bais"), ["select_glob('*.bais')"]),
        (select_all() - select_glob("*.bais"), ["select_glob('*.bais')"]),
        (~select_prefix("6", "7"), ["select_prefix('7')"]),
        (select_prefix("0") & select_all(), []),
        (select_prefix("0", "3") ^ select_prefix("3"), []),
        (select_prefix("a", "0", "b"), ["select_prefix('a')", "select_prefix('b')"]),
    ],
)
@pytest.mark.parametrize("where", ["row", "starting_weights"])
def test_misspelt_parts_are_warned_of_in_rows_as_in_the_starting_weights(select, parts, where):
    if where == "row":
        callback = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select]})
        place = r"`unfreeze`: row 0 \(epoch 2: .*\): "
    else:
        callback, place = CallbackSetUnfreeze(select), "`starting_weights`: "
    first, _ = said_by(callback)
    told = [message for message in first if "matches no weight" in message]
    assert len(told) == len(parts)
    for message, part in zip(told, parts, strict=True):
        assert re.match(f"{place}{re.escape(part)} matches no weight of the network", message)


def test_what_is_frozen_by_hand_between_two_calls_is_warned_of_once():
    table = {"epoch": [2], "weights": [select_all()]}
    net = iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=2).fit(X, y)
    net.module_[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=CAME_IN_FROZEN.format("0")) as said:
        net.partial_fit(X, y)
    assert len(said) == 1
    net.partial_fit(X, y)
    net.module_[0].requires_grad_(False)
    net.set_params(callbacks=[Freezer("3.weight")])
    net.partial_fit(X, y)  # which keeps what it does not govern


def test_an_epoch_at_which_nothing_will_train_is_warned_of_when_training_begins():
    callback = CallbackSetUnfreeze(select_all(), {"epoch": [3], "weights": [select_all()], "action": ["freeze"]})
    with (
        pytest.warns(UserWarning, match=r"row 0 \(epoch 3: freeze .* so that `fit` will fail there; freeze less"),
        pytest.raises(ValueError, match="nothing trains at batch 7"),
    ):
        iris_net(callback, max_epochs=3).fit(X, y)
    assert len(iris_net(callback, max_epochs=2).fit(X, y).history) == 2
    assert len(iris_net(callback, max_epochs=3).set_params(criterion=Criterion).fit(X, y).history) == 3


def test_a_factor_that_also_slows_what_trains_before_its_row_is_warned_of():
    table = {"epoch": [2, 3], "weights": [select_last(2), select_all()], "lr_mult": [0.3, 0.1]}
    sentence = r"row 0 \(.*\) has the lr_mult 0.3, which from the first step on also holds for 6, trained before"
    with pytest.warns(UserWarning, match=sentence) as warned:
        iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=3).fit(X, y)
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("starting_weights", "table"),
    [
        (select_last(1), {"epoch": [2], "weights": [select_all()], "lr_mult": [0.1], "lr_mult_from": ["row"]}),
        (select_last(1), {"epoch": [1], "weights": [select_all()], "lr_mult": [0.1]}),
        (select_none(), {"epoch": [1, 2], "weights": [select_last(1), select_all()], "lr_mult": [1, 0.1]}),
        (select_all(), {"epoch": [2], "weights": [select_first(1)], "lr_mult": [0.1]}),
    ],
)
def test_a_factor_that_is_meant_so_is_not_warned_of(starting_weights, table):
    assert freeze_plan(iris_net(CallbackSetUnfreeze(starting_weights, table))).notes == ()


@pytest.mark.parametrize("schedule", [gradual_unfreezing(every=2), chain_thaw(), head_first(epochs=2)])
def test_a_schedule_that_finds_one_block_is_warned_of(schedule):
    net = iris_net(t_clbk("unfreeze", schedule=schedule), module=MLP(4, 3))
    with pytest.warns(UserWarning, match=r"`schedule`: .* freezes nothing, since the network has one block"):
        net.fit(X, y)


@pytest.mark.parametrize("schedule", [gradual_unfreezing(n_groups=1), gradual_unfreezing(groups=[select_all()])])
def test_a_schedule_of_which_one_block_is_asked_is_not_warned_of(schedule):
    assert freeze_plan(iris_net(t_clbk("unfreeze", schedule=schedule), module=MLP(4, 3))).notes == ()
