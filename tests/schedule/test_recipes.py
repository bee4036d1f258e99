import copy
import json
import pickle
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

import mlr3torch_py
from mlr3torch_py import (
    MLP,
    chain_thaw,
    freeze_plan,
    from_dict,
    gradual_unfreezing,
    head_first,
    select_first,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_trainable,
    t_clbk,
    to_dict,
)
from tests.helpers import Nested, Trace, X, iris_net, moved, y


class Backbone(nn.Module):
    """A convolutional network with norm layers in sequential containers, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)


class Shell(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Nested(blocks=2)


def blocks(network):
    schedule = gradual_unfreezing(network)
    return [*schedule["unfreeze"]["weights"][::-1], schedule["starting_weights"]]


def test_blocks_are_the_children_with_sequential_containers_opened():
    assert blocks(Nested(blocks=2)) == [select_prefix(path) for path in ("embed", "encoder.0", "encoder.1", "head")]


def test_norm_layers_belong_to_the_block_before_and_own_weights_to_the_first():
    assert blocks(Backbone()) == [
        select_name(["scale"]) | select_prefix("features.0", "features.1"),
        select_prefix("features.3", "norm"),
        select_prefix("head"),
    ]


def test_a_shell_around_a_network_is_opened():
    assert blocks(Shell())[0] == select_prefix("net.embed")
    assert blocks(Shell())[-1] == select_prefix("net.head")


class Residual(nn.Module):
    """The shape of a ResNet's block."""

    def __init__(self, downsample):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
        if downsample:
            self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.layer1 = nn.Sequential(Residual(False), Residual(False))
        self.layer2 = nn.Sequential(Residual(True))
        self.fc = nn.Linear(2, 2)


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(2)
        self.attention = nn.MultiheadAttention(2, 1)
        self.ln_2 = nn.LayerNorm(2)
        self.mlp = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.ones(2))
        self.layers = nn.Sequential(EncoderLayer(), EncoderLayer())
        self.ln = nn.LayerNorm(2)


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.ones(2))
        self.conv_proj = nn.Conv2d(1, 2, 3)
        self.encoder = Encoder()
        self.heads = nn.Sequential(nn.Linear(2, 2))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.ModuleDict({"word": nn.Embedding(2, 2), "LayerNorm": nn.LayerNorm(2)})
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList([EncoderLayer(), EncoderLayer()])
        self.bert.pooler = nn.Linear(2, 2)
        self.classifier = nn.Linear(2, 2)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.model = inner


SHAPES = {
    ResNet: [["conv1", "bn1"], ["layer1.0"], ["layer1.1"], ["layer2.0"], ["fc"]],
    ViT: [["conv_proj"], ["encoder.layers.0"], ["encoder.layers.1", "encoder.ln"], ["heads.0"]],
    Bert: [
        ["bert.embeddings.word", "bert.embeddings.LayerNorm"],
        ["bert.encoder.layer.0"],
        ["bert.encoder.layer.1"],
        ["bert.pooler"],
        ["classifier"],
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_of_well_known_shapes_are_found_and_cover_every_weight(shape, wrapped):
    network = Wrapped(shape()) if wrapped else shape()
    prefix = "model." if wrapped else ""
    found = blocks(network)
    names = [name for name, _ in network.named_parameters()]
    covered = [name for block in found for name in block.expand(network)]
    assert sorted(covered) == sorted(names)
    in_order = SHAPES[shape]
    own = {"class_token": 0, "encoder.pos_embedding": 1}
    for block, paths in zip(found, in_order, strict=True):
        expected = {name for name in names for path in paths if name.startswith(f"{prefix}{path}.")}
        expected |= {f"{prefix}{name}" for name, i in own.items() if shape is ViT and in_order[i] == paths}
        assert set(block.expand(network)) == expected


def test_a_net_and_a_wrapped_network_have_the_blocks_of_the_network():
    net = iris_net(module=Nested).initialize()
    assert blocks(net) == blocks(nn.DataParallel(Nested())) == blocks(Nested())
    with pytest.raises(TypeError, match="after net.initialize"):
        gradual_unfreezing(iris_net(module=Nested))


def trained(schedule, max_epochs=6):
    trace = Trace()
    unfreeze = t_clbk("unfreeze", **schedule)
    iris_net(
        unfreeze, trace, module__neurons=(4, 4), module__activation=nn.Tanh, batch_size=150, max_epochs=max_epochs
    ).fit(X, y)
    steps = zip(trace.weights_, trace.weights_[1:], strict=False)
    return [sorted({name[0] for name in moved(before, after)}) for before, after in steps]


NETWORK = MLP(4, 3, neurons=(4, 4))


def test_gradual_unfreezing_goes_from_the_head_to_the_input():
    assert trained(gradual_unfreezing(NETWORK)) == [["6"], ["3", "6"], *[["0", "3", "6"]] * 4]
    assert trained(gradual_unfreezing(NETWORK, every=2, start=2)) == [*[["6"]] * 3, *[["3", "6"]] * 2, ["0", "3", "6"]]
    by_batch = gradual_unfreezing(NETWORK, every=3, unit="batch")
    assert by_batch["unfreeze"]["batch"].tolist() == [4, 7]


def test_chain_thaw_trains_the_head_then_each_block_alone_then_all():
    assert trained(chain_thaw(NETWORK)) == [["6"], ["0"], ["3"], *[["0", "3", "6"]] * 3]
    assert trained(chain_thaw(NETWORK, every=2)) == [["6"], ["6"], ["0"], ["0"], ["3"], ["3"]]


def test_head_first_trains_the_head_then_all():
    assert trained(head_first(NETWORK, epochs=4)) == [*[["6"]] * 4, *[["0", "3", "6"]] * 2]


@pytest.mark.parametrize("make", [gradual_unfreezing, chain_thaw, head_first])
def test_groups_of_the_user_take_the_place_of_blocks(make):
    schedule = make(NETWORK, groups=[select_first(2), select_last(1)])
    assert trained(schedule)[0] == ["6"]
    assert trained(schedule)[-1] == ["0", "3", "6"]
    assert set(trained(make(MLP(4, 3), groups=[select_last(1)]))[-1]) == {"6"}


@pytest.mark.parametrize("make", [gradual_unfreezing, chain_thaw, head_first])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["0"]}, "`groups`: entry 0 is '0'"),
        ({"groups": []}, "`groups` is empty"),
        ({"network": nn.ReLU()}, "`network` has no parameters"),
        ({"network": 3}, "`network` is 3; write `(every|epochs)=3`, since the network comes first"),
        ({"network": None}, "`network` is None; give a torch.nn.Module, or a net after net.initialize()"),
        ({"groups": select_last(1)}, r"`groups` is select_last\(1\); give a list of selectors"),
        ({"groups": "0"}, "`groups` is '0'; give a list"),
        ({"groups": [select_name("x")], "among": select_last(1)}, "`among`, or `groups`, does not fit .*'x'"),
    ],
)
def test_wrong_blocks_are_refused(make, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**{"network": NETWORK} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"every": 0}, "`every` is 0"), ({"start": 1.5}, "`start` is 1.5"), ({"unit": "step"}, "`unit` is 'step'")],
)
def test_wrong_times_are_refused(arguments, message):
    for make, network in product((gradual_unfreezing, chain_thaw), (NETWORK, MLP(4, 3))):
        with pytest.raises((TypeError, ValueError), match=message):
            make(network, **arguments)


def test_wrong_epochs_of_the_head_are_refused():
    for network in (NETWORK, MLP(4, 3)):
        with pytest.raises(ValueError, match="`epochs` is 0; give a whole number of epochs, at least 1"):
            head_first(network, epochs=0)


def test_whole_numbers_of_numpy_are_times():
    schedule = gradual_unfreezing(NETWORK, every=np.int64(2), start=np.int8(3))
    assert schedule["unfreeze"].equals(gradual_unfreezing(NETWORK, every=2, start=3)["unfreeze"])
    assert head_first(NETWORK, epochs=np.int64(3))["unfreeze"]["epoch"].tolist() == [4]


class Adapted(nn.Module):
    """A layer whose base is fixed, with an adapter, as LoRA has it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.adapter = nn.Linear(4, 4)


def network_with_a_fixed_part():
    return nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Adapted(), nn.Linear(4, 3))


@pytest.mark.parametrize("recipe", [gradual_unfreezing, chain_thaw, head_first])
def test_a_recipe_among_what_is_trainable_leaves_out_what_is_fixed(recipe):
    network = network_with_a_fixed_part()
    schedule = recipe(network, among=select_trainable())
    rows = [schedule["starting_weights"], *schedule["unfreeze"]["weights"]]
    names = {name for weights in rows for name in weights.expand(network)}
    assert names == {"1.adapter.weight", "1.adapter.bias", "2.weight", "2.bias"}
    assert all(weights.expand(network) for weights in rows)


def test_among_must_be_a_selector_that_selects_something():
    with pytest.raises(TypeError, match="`among` is '2.weight'"):
        head_first(network_with_a_fixed_part(), among="2.weight")
    with pytest.raises(ValueError, match=r"`among` is select_none\(\), which selects nothing in any block"):
        head_first(network_with_a_fixed_part(), among=select_none())


RECIPES = [
    gradual_unfreezing(every=2, lr_decay=2.6),
    chain_thaw(every=3, unit="batch", among=select_trainable()),
    head_first(epochs=2, head=["6"]),
    head_first(groups=[select_first(2), select_last(1)]),
    gradual_unfreezing(n_groups=2, level="stage", head=select_prefix("6")),
]


@pytest.mark.parametrize("schedule", RECIPES, ids=repr)
def test_a_schedule_without_a_network_is_a_value_that_prints_as_its_call(schedule):
    assert eval(repr(schedule), vars(mlr3torch_py)) == schedule
    for copied in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), clone(schedule, safe=False)):
        assert copied == schedule
        assert hash(copied) == hash(schedule)
    assert from_dict(json.loads(json.dumps(to_dict(schedule)))) == schedule
    with pytest.raises(AttributeError):
        schedule.level = "stage"


def test_equal_schedules_are_equal_whatever_was_written():
    assert gradual_unfreezing(every=1) == gradual_unfreezing(start=1) != gradual_unfreezing(every=2)
    assert repr(gradual_unfreezing(every=np.int64(1))) == "gradual_unfreezing()"
    assert head_first() != gradual_unfreezing()


@pytest.mark.parametrize("schedule", RECIPES, ids=repr)
def test_a_value_trains_as_the_schedule_of_the_network_does(schedule):
    resolved = trained(schedule.resolve(NETWORK))
    assert trained({"schedule": schedule}) == resolved


def test_a_network_that_is_given_makes_the_arguments_at_once():
    made = gradual_unfreezing(NETWORK, every=2)
    value = gradual_unfreezing(every=2).resolve(NETWORK)
    assert list(made) == list(value) == ["starting_weights", "unfreeze"]
    assert made["unfreeze"].equals(value["unfreeze"])


def test_a_grid_over_schedules_reads_well():
    net = iris_net(t_clbk("unfreeze"), module__neurons=(4, 4), max_epochs=2)
    grid = {"callbacks__unfreeze__schedule": [gradual_unfreezing(every=2), head_first()]}
    search = GridSearchCV(net, grid, cv=2, error_score="raise").fit(X, y)
    shown = [str(cell) for cell in search.cv_results_["param_callbacks__unfreeze__schedule"]]
    assert shown == ["gradual_unfreezing(every=2)", "head_first()"]
    assert repr(search.best_params_["callbacks__unfreeze__schedule"]) in shown


def test_schedules_are_sorted_by_their_code_where_a_table_is_grouped_by_them():
    schedules = [head_first(), chain_thaw(), gradual_unfreezing(every=2), chain_thaw()]
    results = pd.DataFrame({"schedule": schedules, "lr": [0.1, 0.1, 0.1, 0.2], "score": [1.0, 2.0, 3.0, 4.0]})
    ordered = [chain_thaw(), gradual_unfreezing(every=2), head_first()]
    assert results.groupby("schedule")["score"].mean().index.tolist() == ordered
    assert results.pivot_table(index="lr", columns="schedule", values="score").columns.tolist() == ordered
    assert results.sort_values("schedule")["score"].tolist()[2:] == [3.0, 1.0]
    with pytest.raises(TypeError, match="not supported between"):
        sorted([head_first(), 1])


def test_a_net_with_a_schedule_is_cloned_pickled_and_planned():
    unfreeze = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))
    net = iris_net(unfreeze, module__neurons=(4, 4), max_epochs=3)
    assert clone(net).initialize().get_params()["callbacks__unfreeze__schedule"] == gradual_unfreezing(every=2)
    assert [phase.epoch for phase in freeze_plan(net, max_epochs=9).phases] == [1, 3, 5]
    continued = pickle.loads(pickle.dumps(net.fit(X, y))).partial_fit(X, y)
    assert continued.history[:, "n_trainable"] == [15, 15, 35, 35, 55, 55]
    assert from_dict(to_dict(unfreeze)).callback.schedule == gradual_unfreezing(every=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": 3}, "`schedule` is 3; give one made without a network"),
        ({"schedule": gradual_unfreezing(NETWORK)}, "or pass its parts on by"),
        ({"schedule": head_first(), "starting_weights": select_last(1)}, "`schedule` and `starting_weights` are given"),
        ({"schedule": head_first(), "unfreeze": {}}, "`schedule` and `unfreeze` are given"),
        ({"starting_weights": head_first()}, r"give it as schedule=head_first\(\)"),
        ({"starting_weights": select_last(1), "unfreeze": head_first()}, "`unfreeze` is head_first"),
    ],
)
def test_a_schedule_in_the_wrong_place_is_explained(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        t_clbk("unfreeze", **arguments)


def test_a_schedule_in_the_place_of_a_callback_is_explained():
    with pytest.raises(TypeError, match=r"write t_clbk\('unfreeze', schedule=head_first\(\)\)"):
        iris_net(head_first()).initialize()


@pytest.mark.parametrize("recipe", [gradual_unfreezing, chain_thaw, head_first])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "hed"}, "`head` has 'hed', which matches no weight; did you mean 'head'"),
        ({"head": 5}, "`head` is 5"),
        ({"head": []}, r"`head` is \[\]; give the paths"),
        ({"n_groups": 0}, "`n_groups` is 0"),
        ({"level": "block"}, "`level` is 'block'"),
        ({"groups": [select_last(1)], "head": "head"}, "`groups` and `head` are given"),
    ],
)
def test_wrong_words_about_blocks_are_named(recipe, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        recipe(Nested(), **arguments)


def test_the_last_row_of_many_blocks_is_one_selector():
    assert repr(head_first(Nested(18))["unfreeze"]["weights"][0]) == "select_prefix('embed', 'encoder.{0..17}')"
