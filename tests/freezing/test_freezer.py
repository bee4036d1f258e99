"""Lighter's Freezer. The numbers are those of its guide: 1 to 4 its strategies, 5 combining them, 6 inspecting."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, Freezer, select_all, select_grep, select_prefix, t_clbk
from tests.helpers import Trace, X, iris_net, moved, y


class Model(nn.Module):
    """A model with the parts that the guide names."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.embedding = nn.Linear(4, 4)
        self.encoder = nn.Module()
        self.encoder.layer1 = nn.Linear(4, 4)
        self.encoder.layer2 = nn.Linear(4, 4)
        self.encoder.layer5 = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        for part in (self.backbone, self.embedding, self.encoder.layer1, self.encoder.layer2, self.encoder.layer5):
            x = torch.tanh(part(x))
        return self.classifier(x)


PARTS = ["backbone", "embedding", "encoder.layer1", "encoder.layer2", "encoder.layer5", "classifier"]


def train(*callbacks, max_epochs=8, batch_size=50, **params):
    trace = Trace()
    net = iris_net(*callbacks, ("trace", trace), module=Model, max_epochs=max_epochs, batch_size=batch_size, **params)
    net.fit(X, y)
    return net, trace


def frozen_epochs(*callbacks, max_epochs=8):
    """For how many epochs each part does not move by a bit; None if it never moves."""
    net, trace = train(*callbacks, max_epochs=max_epochs, batch_size=150)
    steps = [moved(before, after) for before, after in zip(trace.weights_, trace.weights_[1:], strict=False)]
    first = {}
    for part in PARTS:
        trains = [any(name.startswith(part) for name in step) for step in steps]
        first[part] = trains.index(True) if any(trains) else None
        assert all(trains[first[part] :] if any(trains) else [True])
    assert len(net.history) == max_epochs
    return first


def from_yaml(text):
    return instantiate(OmegaConf.create(text), _convert_="none")


EXAMPLES = {
    "configuration": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["encoder"]
          until_epoch: 10
        """,
        {"encoder": 10},
    ),
    "1_by_name_prefix": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["encoder", "embedding"]
          until_epoch: 5
        """,
        {"encoder": 5, "embedding": 5},
    ),
    "2_by_exact_name": (
        """
        - _target_: mlr3torch_py.Freezer
          names: ["classifier.weight", "classifier.bias"]
          until_step: 6
        """,
        {"classifier": 6},
    ),
    "3_exclude_layers": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["encoder"]
          except_name_starts_with: ["encoder.layer5"]
          until_epoch: 7
        """,
        {"encoder.layer1": 7, "encoder.layer2": 7},
    ),
    "4_either_condition_epoch_first": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["backbone"]
          until_epoch: 5
          until_step: 5000
        """,
        {"backbone": 5},
    ),
    "4_either_condition_step_first": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["backbone"]
          until_epoch: 5
          until_step: 3
        """,
        {"backbone": 3},
    ),
    "4_neither_condition": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["backbone"]
        """,
        {"backbone": None},
    ),
    "5_gradual_unfreezing": (
        """
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["backbone"]
          until_epoch: 5
        - _target_: mlr3torch_py.Freezer
          name_starts_with: ["encoder.layer1", "encoder.layer2"]
          start_epoch: 5
          unfreeze_every_n_epochs: 5
        """,
        {"backbone": 5, "encoder.layer1": 5, "encoder.layer2": 10},
    ),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_guide_release_what_they_say_when_they_say(example):
    text, expected = EXAMPLES[example]
    callbacks = [(f"freezer{i}", callback) for i, callback in enumerate(from_yaml(text))]
    wanted = {part: next((n for prefix, n in expected.items() if part.startswith(prefix)), 0) for part in PARTS}
    assert frozen_epochs(*callbacks, max_epochs=12) == wanted


def test_5_the_advanced_example_comes_out_the_same_in_any_order():
    a, b = (partial(from_yaml, EXAMPLES["5_gradual_unfreezing"][0])()[i] for i in (0, 1))
    assert frozen_epochs(("b", b), ("a", a), max_epochs=11) == frozen_epochs(("a", a), ("b", b), max_epochs=11)


def test_1_prefixes_are_plain_strings():
    assert frozen_epochs(Freezer(name_starts_with="encoder.layer", until_epoch=2))["encoder.layer5"] == 2
    assert frozen_epochs(Freezer(name_starts_with=["enc", "back"], until_epoch=2))["backbone"] == 2


def test_4_steps_count_training_batches():
    _, trace = train(Freezer(names="classifier.bias", until_step=4), max_epochs=3)
    assert ["classifier.bias" in names for names in trace.batches_] == [False] * 4 + [True] * 5


@pytest.mark.parametrize("until", [{"until_step": 0}, {"until_epoch": 0}, {"until_step": 0, "until_epoch": 9}])
def test_4_zero_never_freezes(until):
    _, trace = train(Freezer(name_starts_with="encoder", **until), max_epochs=1)
    assert len(trace.begin_) == 12
    assert [len(names) for names in trace.batches_] == [12] * 3


def test_3_single_exceptions_are_left_alone():
    _, trace = train(Freezer(name_starts_with="", except_names=["classifier.bias", "backbone.bias"]), max_epochs=1)
    assert trace.batches_ == [["backbone.bias", "classifier.bias"]] * 3


def test_5_groups_are_released_one_after_the_other():
    freezer = Freezer(
        names="classifier.bias",
        name_starts_with=["backbone", ["encoder.layer1", "encoder.layer2"], "embedding"],
        start_epoch=1,
        unfreeze_every_n_epochs=2,
        until_epoch=4,
    )
    _, trace = train(freezer, batch_size=150, max_epochs=6)
    frozen = [sorted(set(trace.weights_[0]) - set(names)) for names in trace.batches_]
    assert [[name for name in names if name.endswith("bias")] for names in frozen] == [
        ["backbone.bias", "classifier.bias", "embedding.bias", "encoder.layer1.bias", "encoder.layer2.bias"],
        *[["classifier.bias", "embedding.bias", "encoder.layer1.bias", "encoder.layer2.bias"]] * 2,
        ["classifier.bias", "embedding.bias"],
        [],
        [],
    ]


def test_steps_release_groups_too():
    freezer = Freezer(name_starts_with=["backbone", "encoder"], start_epoch=2, unfreeze_every_n_epochs=9, until_step=4)
    _, trace = train(freezer, max_epochs=2)
    assert [len(names) for names in trace.batches_] == [4] * 4 + [12] * 2


def test_a_tied_weight_that_is_held_under_one_name_only_warns():
    class Tied(Model):
        def __init__(self):
            super().__init__()
            self.embedding.weight = self.backbone.weight

    with pytest.warns(UserWarning, match="'embedding.weight' and 'backbone.weight' share weights"):
        iris_net(Freezer(names="embedding.weight"), module=Tied, max_epochs=1).fit(X, y)


def test_the_log_of_a_later_call_names_what_is_still_held(caplog):
    freezers = Freezer(names="backbone.bias", until_epoch=1), Freezer(names="classifier.bias")
    net, _ = train(*freezers, max_epochs=2, audited=False)
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    net.partial_fit(X, y)
    assert caplog.messages == ["freezing nothing", "freezing classifier.bias for good"]


def test_numbers_of_numpy_are_numbers():
    _, trace = train(Freezer(names="backbone.bias", until_epoch=np.int64(1)), max_epochs=2)
    assert [len(names) for names in trace.batches_] == [11] * 3 + [12] * 3


def test_a_weight_in_several_groups_is_held_while_any_of_them_holds_it():
    freezer = Freezer(name_starts_with=["encoder.layer1", "encoder"], start_epoch=1, unfreeze_every_n_epochs=2)
    first = frozen_epochs(freezer)
    assert (first["encoder.layer1"], first["encoder.layer2"]) == (3, 3)


class ByHand(Callback):
    """A user who sets a flag by hand when an epoch begins."""

    def __init__(self, epoch, name, flag):
        self.epoch = epoch
        self.name = name
        self.flag = flag

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            net.module_.get_parameter(self.name).requires_grad = self.flag


@pytest.mark.usefixtures("no_schedule_warnings")
def test_what_the_user_froze_by_hand_stays_frozen():
    module = Model()
    module.backbone.weight.requires_grad = False
    module.embedding.weight.requires_grad = False
    trace = Trace()
    freezer = Freezer(name_starts_with="embedding", until_epoch=1)
    iris_net(freezer, trace, module=module, max_epochs=2, batch_size=150).fit(X, y)
    assert "backbone.weight" not in trace.batches_[1]
    assert "embedding.weight" in trace.batches_[1]


def test_4_weights_stay_frozen_until_manually_unfrozen():
    _, trace = train(
        Freezer(name_starts_with="encoder"), ByHand(2, "encoder.layer1.bias", True), batch_size=150, audited=False
    )
    assert ["encoder.layer1.bias" in names for names in trace.batches_] == [False] + [True] * 7


def test_a_module_instance_that_was_frozen_by_an_earlier_fit_is_freed_first():
    module = Model()
    iris_net(Freezer(name_starts_with="encoder"), module=module, max_epochs=1).fit(X, y)
    trace = Trace()
    iris_net(Freezer(names="classifier.bias"), trace, module=module, max_epochs=1).fit(X, y)
    assert len(trace.begin_) == 11


def test_a_freezer_beside_an_unfreezing_table_trains_what_neither_holds():
    table = {"epoch": [3], "weights": [select_prefix("encoder")]}
    unfreeze = CallbackSetUnfreeze(select_prefix("classifier"), table)
    first = frozen_epochs(unfreeze, Freezer(name_starts_with=["encoder.layer1", "classifier.w"], until_epoch=4))
    assert first == {
        "backbone": None,
        "embedding": None,
        "encoder.layer1": 4,
        "encoder.layer2": 2,
        "encoder.layer5": 2,
        "classifier": 0,
    }


def test_6_it_logs_what_it_freezes_and_releases_and_until_when(caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    train(
        Freezer(names=["backbone.bias", "embedding.bias"], until_epoch=1, until_step=50),
        Freezer(names=["classifier.bias"]),
        max_epochs=2,
        audited=False,
    )
    assert caplog.messages == [
        "freezing backbone.bias, embedding.bias until after epoch 1 or batch 50",
        "freezing classifier.bias for good",
        "unfreezing at epoch 2: backbone.bias, embedding.bias",
    ]


@pytest.mark.parametrize("stops", [[1] * 6, [2, 4], [5, 1]])
def test_it_goes_on_where_it_was(stops):
    def freezers():
        yield "a", Freezer(name_starts_with=["backbone", "encoder"], start_epoch=1, unfreeze_every_n_epochs=2)
        yield "b", Freezer(names="classifier.bias", until_step=7)

    _, whole = train(*freezers(), max_epochs=6)
    trace = Trace()
    net = iris_net(*freezers(), trace, module=Model)
    for epochs in stops:
        net.set_params(max_epochs=epochs)
        net.partial_fit(X, y)
    assert trace.batches_ == whole.batches_


def test_nothing_trainable_is_explained():
    with pytest.raises(
        ValueError,
        match=r"nothing trains at batch 1 .*Freezer: by `name_starts_with` freezing backbone.weight.* for good",
    ):
        train(Freezer(name_starts_with=""))


def test_it_comes_by_its_key_and_clones():
    net = iris_net(t_clbk("freezer", name_starts_with="encoder"), module=Model, callbacks__freezer__until_epoch=1)
    net = clone(net).set_params(max_epochs=2).fit(X, y)
    assert net.history[:, "n_trainable"] == [55, 115]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither `names` nor `name_starts_with` is given"),
        ({"except_names": "backbone.bias"}, "neither `names` nor `name_starts_with` is given"),
        ({"names": []}, "neither `names` nor `name_starts_with` is given"),
        ({"names": 3}, "`names` is 3"),
        ({"name_starts_with": 3}, "`name_starts_with` is 3"),
        ({"name_starts_with": [["a", 3]]}, "`name_starts_with`"),
        ({"names": "a", "until_epoch": -1}, "`until_epoch` is -1; give a whole number of epochs, at least 0"),
        ({"names": "a", "until_step": 1.5}, "`until_step` is 1.5; give a whole number"),
        ({"names": "a", "until_step": True}, "`until_step` is True; give a whole number"),
        ({"name_starts_with": "a", "start_epoch": 1}, "`start_epoch` is given without `unfreeze_every_n_epochs`"),
        (
            {"name_starts_with": "a", "unfreeze_every_n_epochs": 1},
            "`unfreeze_every_n_epochs` is given without `start_epoch`",
        ),
        (
            {"name_starts_with": "a", "start_epoch": 1, "unfreeze_every_n_epochs": 0},
            "`unfreeze_every_n_epochs` is 0; give a whole number of epochs, at least 1",
        ),
        (
            {"names": "a", "start_epoch": 1, "unfreeze_every_n_epochs": 1},
            "`start_epoch` is given without `name_starts_with`",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_once_by_the_key_and_else_when_training_begins(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        t_clbk("freezer", **arguments)
    with pytest.raises((TypeError, ValueError), match=message):
        train(Freezer(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name_starts_with": "model.encoder"},
            "`name_starts_with` has 'model.encoder'.*without Lighter's leading 'model.'",
        ),
        ({"names": "encoder"}, "`names` has 'encoder', which matches no weight"),
        ({"names": "backbone.wieght"}, "did you mean 'backbone.weight'"),
        ({"name_starts_with": "encoder", "except_names": "x"}, "`except_names` has 'x'"),
        ({"name_starts_with": "encoder", "except_name_starts_with": ["x"]}, "`except_name_starts_with` has 'x'"),
        ({"name_starts_with": "encoder", "except_name_starts_with": "enc"}, "`except_names` and .* leave nothing"),
    ],
)
def test_what_matches_nothing_is_refused_before_anything_is_frozen(arguments, message):
    module = Model()
    with pytest.raises(ValueError, match=message):
        iris_net(("good", Freezer(name_starts_with="backbone")), ("bad", Freezer(**arguments)), module=module).fit(X, y)
    assert all(tensor.requires_grad for tensor in module.parameters())


NAMES = [f"{part}.{what}" for part in PARTS for what in ("weight", "bias")]
freezers = st.builds(
    Freezer,
    names=st.lists(st.sampled_from(NAMES), min_size=1),
    until_epoch=st.one_of(st.none(), st.integers(0, 4)),
    until_step=st.one_of(st.none(), st.integers(0, 9)),
)
tables = st.builds(
    lambda start, rows: CallbackSetUnfreeze(
        select_grep(start), {"epoch": list(rows), "weights": [select_grep(pattern) for pattern in rows.values()]}
    ),
    st.sampled_from(["bias", "weight", "encoder", "."]),
    st.dictionaries(st.integers(1, 4), st.sampled_from(["back", "class", "."]), max_size=2),
)


def held_alone(callback, epoch, batch):
    """What one callback holds by its definition, at an epoch and a batch from 1."""
    if isinstance(callback, Freezer):
        ends = [(epoch, callback.until_epoch), (batch, callback.until_step)]
        return set() if any(end is not None and now > end for now, end in ends) else set(callback.names)
    rows = zip(callback.unfreeze["epoch"], callback.unfreeze["weights"], strict=True)
    trains = set(callback.starting_weights(NAMES)).union(*(weights(NAMES) for at, weights in rows if at <= epoch))
    return set(NAMES) - trains


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.one_of(freezers, tables), min_size=1, max_size=4), st.randoms())
@pytest.mark.usefixtures("no_schedule_warnings")
def test_any_callbacks_in_any_order_train_what_nobody_holds(callbacks, random):
    random.shuffle(callbacks)
    keeps = ("keeps_training", CallbackSetUnfreeze(select_all()))
    trace = Trace()
    named = [(f"callback{i}", callback) for i, callback in enumerate(callbacks)]
    net = iris_net(*named, keeps, trace, module=Model, criterion=Criterion, max_epochs=4).initialize()
    net.partial_fit(X, torch.as_tensor(y))
    for i, names in enumerate(trace.batches_):
        held = set().union(*(held_alone(callback, i // 3 + 1, i + 1) for callback in callbacks))
        assert names == [name for name in NAMES if name not in held]


class Criterion(nn.Module):
    """Has a weight, so that a step can be taken when all of the module is frozen."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, predicted, target):
        return nn.functional.nll_loss(torch.log(predicted.softmax(-1)) * self.scale, target)
