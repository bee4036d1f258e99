import logging
import pickle
import warnings
from itertools import pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSet,
    CallbackSetUnfreeze,
    select_all,
    select_glob,
    select_last,
    select_name,
    select_none,
    select_prefix,
    select_type,
    t_clbk,
    trainable_names,
)
from tests.helpers import Trace, X, iris_net, moved, weights, y

ALL = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
HEAD = ["6.weight", "6.bias"]
LATER = {"epoch": [2, 3], "weights": [select_prefix("3"), select_all()]}


class KeepsGradients(NeuralNetClassifier):
    """Sets gradients to zero instead of None, as `zero_grad(set_to_none=False)` does."""

    def _zero_grad_optimizer(self, set_to_none=None):
        super()._zero_grad_optimizer(set_to_none=False)


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "sgd_momentum_decay": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("cls", [NeuralNetClassifier, KeepsGradients])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exactly_the_trainable_weights_move_whatever_the_optimizer(optimizer, cls):
    kind, arguments = OPTIMIZERS[optimizer]
    trace = Trace()
    iris_net(
        CallbackSetUnfreeze(select_last(1), LATER),
        trace,
        cls=cls,
        optimizer=kind,
        lr=0.01,
        module__activation=nn.Tanh,
        **{f"optimizer__{name}": value for name, value in arguments.items()},
    ).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [[*ALL[2:]]] * 3 + [ALL] * 6
    for (before, after), trainable in zip(pairwise(trace.weights_), trace.batches_, strict=True):
        assert moved(before, after) == set(trainable)


@settings(max_examples=25)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    cls=st.sampled_from([NeuralNetClassifier, KeepsGradients]),
    widths=st.lists(st.integers(2, 4), max_size=3),
    unit=st.sampled_from(["epoch", "batch"]),
    at=st.lists(st.integers(1, 9), unique=True, max_size=3),
    picks=st.lists(st.sets(st.integers(0, 7)), min_size=3, max_size=3),
)
@pytest.mark.usefixtures("no_schedule_warnings")
def test_a_frozen_weight_is_bit_identical_across_any_step(optimizer, cls, widths, unit, at, picks):
    kind, arguments = OPTIMIZERS[optimizer]
    names = [f"{3 * i}.{what}" for i in range(len(widths) + 1) for what in ("weight", "bias")]
    rows = [select_name([names[i] for i in pick if i < len(names)]) for pick in picks[: len(at)]]
    trace = Trace()
    iris_net(
        CallbackSetUnfreeze(select_last(1), {unit: at, "weights": rows}),
        trace,
        cls=cls,
        module__neurons=widths,
        module__activation=nn.Tanh,
        optimizer=kind,
        lr=0.01,
        max_epochs=3,
        **{f"optimizer__{name}": value for name, value in arguments.items()},
    ).fit(X, y)
    for (before, after), trainable in zip(pairwise(trace.weights_), trace.batches_, strict=True):
        assert moved(before, after) <= set(trainable)


@pytest.mark.parametrize("cls", [NeuralNetClassifier, KeepsGradients])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_weight_that_is_frozen_again_stays_as_it_is_whatever_the_optimizer(optimizer, cls):
    kind, arguments = OPTIMIZERS[optimizer]
    trace = Trace()
    tables = [
        {"epoch": [2, 4], "weights": [select_prefix("3"), select_all()], "action": ["freeze", "unfreeze"]},
        {"batch": [5, 8], "weights": [select_prefix("0")] * 2, "action": ["freeze", "unfreeze"]},
    ]
    iris_net(
        CallbackSetUnfreeze(select_all(), tables),
        trace,
        cls=cls,
        optimizer=kind,
        lr=0.01,
        module__activation=nn.Tanh,
        **{f"optimizer__{name}": value for name, value in arguments.items()},
    ).fit(X, y)
    without_3 = [*ALL[:2], *HEAD]
    assert trace.batches_ == [ALL] * 3 + [without_3] + [HEAD] * 3 + [without_3] * 2 + [ALL] * 3
    for (before, after), trainable in zip(pairwise(trace.weights_), trace.batches_, strict=True):
        assert moved(before, after) == set(trainable)


class FreezesAgain(Callback):
    """A user who freezes a weight by hand after it has trained."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            net.module_.get_parameter("3.weight").requires_grad = False


def test_what_a_user_changes_by_hand_stays_between_the_events():
    trace = Trace()
    table = {"epoch": [2, 5], "weights": [select_prefix("3"), select_prefix("0")]}
    iris_net(CallbackSetUnfreeze(select_last(1), table), FreezesAgain(), trace, max_epochs=5).fit(X, y)
    assert trace.batches_[6] == ["3.bias", *HEAD]
    assert trace.batches_[-1] == ["0.weight", "0.bias", "3.bias", *HEAD]


def test_batches_of_validation_do_not_count():
    trace = Trace()
    table = {"batch": [4], "weights": [select_all()]}
    net = iris_net(CallbackSetUnfreeze(select_last(1), table), trace, train_split=ValidSplit(3, stratified=True))
    net.fit(X, y)
    assert net.history[0]["train_batch_count"] == 2
    assert net.history[0]["valid_batch_count"] == 1
    assert trace.batches_ == [HEAD] * 3 + [ALL] * 5


def test_the_history_has_the_number_of_trainable_weights_in_every_row():
    net = iris_net(CallbackSetUnfreeze(select_last(1), LATER)).fit(X, y)
    assert net.history[:, "n_trainable"] == [12, 24, 39, 39]
    assert net.history[:, "event_unfreeze"] == [False, True, True, False]


def test_the_number_is_that_of_the_end_of_the_epoch():
    class ByHand(Callback):
        def on_batch_end(self, net, **kwargs):
            net.module_.get_parameter("0.bias").requires_grad = True

    net = iris_net(ByHand(), CallbackSetUnfreeze(select_last(1)), max_epochs=1, audited=False).fit(X, y)
    assert net.history[-1, "n_trainable"] == 15


def test_a_layer_that_is_added_in_an_epoch_counts():
    class Grows(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history) == 2 and not hasattr(net.module_, "extra"):
                net.module_.add_module("extra", nn.Identity())
                net.module_.extra.register_parameter("weight", nn.Parameter(torch.ones(5)))

    net = iris_net(CallbackSetUnfreeze(select_last(1)), Grows(), audited=False, max_epochs=3).fit(X, y)
    assert net.history[:, "n_trainable"] == [12, 17, 17]


def test_a_row_at_the_first_epoch_or_batch_is_an_event_of_it():
    for unit in ("epoch", "batch"):
        table = {unit: [1], "weights": [select_all()]}
        net = iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=2).fit(X, y)
        assert net.history[:, "event_unfreeze"] == [True, False]


class StopsFirst(Callback):
    """Ends training in `on_epoch_end`, before the freezing callback has its turn there."""

    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_a_row_that_is_cut_short_has_the_number_too():
    net = iris_net(StopsFirst(), CallbackSetUnfreeze(select_last(1), LATER)).fit(X, y)
    assert net.history[:, "n_trainable"] == [12]


def test_the_log_says_what_trains_at_the_start_and_what_each_row_unfreezes(caplog):
    caplog.set_level(logging.INFO, logger="mlr3torch_py")
    table = {"epoch": [2, 9], "weights": [select_name("0.weight"), select_all()]}
    iris_net(CallbackSetUnfreeze(select_last(1), table), audited=False).fit(X, y)
    assert caplog.messages == [
        "`unfreeze`: row 1 (epoch 9: select_all()) is beyond epoch 4, the last one by `max_epochs`",
        "training the following weights at the start: 6.weight, 6.bias",
        "unfreezing at epoch 2: 0.weight",
    ]
    caplog.clear()
    table = {"batch": [1, 4], "weights": [select_name("3.bias"), select_all()]}
    net = iris_net(CallbackSetUnfreeze(select_last(1), table), max_epochs=1, audited=False).fit(X, y)
    net.partial_fit(X, y)
    assert caplog.messages == [
        "training the following weights at the start: 6.weight, 6.bias",
        "unfreezing at batch 1: 3.bias",
        "`unfreeze`: row 1 (batch 4: select_all()) is still pending; call partial_fit to reach it",
        "training the following weights at the start: 3.bias, 6.weight, 6.bias",
        "unfreezing at batch 4: 0.weight, 0.bias, 3.weight",
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": [0], "weights": [select_all()]}, r"row 0 \(epoch 0: select_all\(\)\) never takes effect, since"),
        (
            {"epoch": [2], "weights": [select_glob("nope.*")]},
            r"row 0 \(epoch 2: select_glob\('nope.\*'\)\) matches no weight",
        ),
        ({"epoch": [2], "weights": [select_name("6.bias")]}, r"row 0 .* changes nothing: its weights are already"),
        (
            {"epoch": [2], "weights": [select_prefix("3")], "action": ["freeze"]},
            r"row 0 .* changes nothing: its weights are already",
        ),
    ],
)
def test_a_row_that_does_nothing_warns_before_anything_is_frozen(table, message):
    module = MLP(4, 3, neurons=(3, 3))
    with pytest.raises(UserWarning, match=f"`unfreeze`: .*{message}"):
        iris_net(CallbackSetUnfreeze(select_last(1), table), module=module).fit(X, y)
    assert trainable_names(module) == ALL


def test_a_part_of_the_starting_weights_that_matches_nothing_warns():
    starting_weights = ~select_prefix("3", "encodr") | select_last(1)
    with pytest.warns(UserWarning, match=r"`starting_weights`: select_prefix\('encodr'\) matches no weight"):
        iris_net(CallbackSetUnfreeze(starting_weights)).fit(X, y)


@pytest.mark.parametrize(
    ("starting_weights", "unfreeze", "message"),
    [
        (
            select_name("0.wieght"),
            None,
            "`starting_weights`: .*'0.wieght', which the network lacks; did you mean '0.weight'",
        ),
        ("0.weight", None, r"`starting_weights` is '0.weight' \(str\).*select_name\('0.weight'\)"),
        (["0.weight"], None, r"`starting_weights` is \['0.weight'\] \(list\).*select_name\(\['0.weight'\]\)"),
        (select_all, None, r"`starting_weights`.*call it: select_all\(...\)"),
        (None, None, r"`starting_weights` is None \(NoneType\)"),
        (select_all(), 1, "`unfreeze` is 1"),
        (select_all(), {"epoch": [1.5], "weights": [select_all()]}, "row 0 has epoch 1.5"),
        (select_last(1), {"epoch": [2], "weights": [select_name("7.bias")]}, "`unfreeze`: row 0: .*'7.bias'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_frozen(starting_weights, unfreeze, message):
    module = MLP(4, 3, neurons=(3, 3))
    module[0].weight.requires_grad = False
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    net = iris_net(
        ("good", CallbackSetUnfreeze(select_none())),
        ("bad", CallbackSetUnfreeze(starting_weights, unfreeze)),
        module=module,
    )
    with pytest.raises((TypeError, ValueError), match=message):
        net.fit(X, y)
    assert trainable_names(module) == ALL[1:]
    assert not moved(before, dict(module.named_parameters()))
    assert len(net.history) == 0


@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.usefixtures("no_schedule_warnings")
def test_nothing_trainable_is_an_error_that_says_why_and_frees_the_network():
    module = MLP(4, 3, neurons=(3, 3))
    module[0].bias.requires_grad = False
    trace = Trace()
    table = {"epoch": [3, 2], "weights": [select_all(), select_name("0.bias")]}
    unfreeze = ("unfreeze", CallbackSetUnfreeze(select_glob("nope"), table))
    net = iris_net(unfreeze, ("trace", trace), module=module)
    with pytest.raises(ValueError, match="nothing trains at batch 1 ") as error:
        net.fit(X, y)
    assert "`starting_weights` is select_glob('nope') and selects nothing" in str(error.value)
    assert "row 1 (epoch 2: select_name(['0.bias']))" in str(error.value)
    assert "0.weight, 0.bias, 3.weight" in str(error.value)
    assert trainable_names(module) == ["0.weight", *ALL[2:]]
    assert len(net.history) == 0
    net.set_params(callbacks__unfreeze__starting_weights=select_last(1))
    net.partial_fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [["0.bias", *HEAD]] * 3 + [ALL] * 6


class HeadIsOptimized(NeuralNetClassifier):
    """Gives the optimizer the last layer alone."""

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.SGD(self.module_[-1].parameters(), lr=0.1)
        return self


@pytest.mark.usefixtures("no_schedule_warnings")
def test_something_that_the_optimizer_holds_must_train():
    trace = Trace()
    net = iris_net(CallbackSetUnfreeze(select_prefix("0"), LATER), trace, cls=HeadIsOptimized)
    with pytest.raises(ValueError, match="nothing trains at batch 1 ") as error:
        net.fit(X, y)
    assert "at least one weight that the optimizer holds must be trainable" in str(error.value)
    assert trainable_names(net.module_) == ALL
    table = {"epoch": [3], "weights": [select_prefix("6")], "action": ["freeze"]}
    net = iris_net(CallbackSetUnfreeze(select_all(), table), trace, cls=HeadIsOptimized)
    with pytest.raises(ValueError, match=r"nothing trains at batch 7 \(epoch 3\)"):
        net.fit(X, y)
    assert trace.batches_ == [ALL] * 6


class Halved:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def zero_grad(self):
        for tensor in self.parameters:
            tensor.grad = None

    def step(self):
        with torch.no_grad():
            for tensor in self.parameters:
                if tensor.grad is not None:
                    tensor -= 0.5 * tensor.grad


class HalvedNet(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = Halved(self.module_.parameters())
        return self

    def train_step(self, batch, **fit_params):
        self.optimizer_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_.step()
        return step


@pytest.mark.usefixtures("no_schedule_warnings")
def test_an_optimizer_that_is_none_of_torch_is_taken_to_hold_all_weights():
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace, cls=HalvedNet, max_epochs=3).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 3
    with pytest.raises(ValueError, match="nothing trains at batch 1 "):
        iris_net(CallbackSetUnfreeze(select_none()), cls=HalvedNet).fit(X, y)


def test_a_row_that_has_come_stays_when_another_callback_begins_late():
    class Restarts(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history[-1]["batches"]) == 2:
                dict(net.callbacks_)["freezer"].initialize()

    freezer, trace = t_clbk("freezer", names="3.bias"), Trace()
    table = {"batch": [3], "weights": [select_prefix("0")]}
    iris_net(CallbackSetUnfreeze(select_last(1), table), freezer, Restarts(), trace, max_epochs=2).fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [[*ALL[:2], *HEAD]] * 4


def test_a_table_that_another_callback_gives_when_training_begins_is_read():
    class Gives(CallbackSet):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            dict(net.callbacks_)["unfreeze"].unfreeze = {"epoch": [2], "weights": [select_all()]}

    trace = Trace()
    iris_net(Gives(), t_clbk("unfreeze", starting_weights=select_last(1)), trace, max_epochs=2).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL] * 3


@pytest.mark.parametrize("turn", [1, -1])
def test_the_number_counts_what_another_callback_does_at_the_begin_of_an_epoch(turn):
    numbers = []

    class Looks(Callback):
        def on_batch_begin(self, net, **kwargs):
            numbers.append(net.history[-1, "n_trainable"])

    both = [t_clbk("freezer", name_starts_with="0.", until_epoch=1), t_clbk("unfreeze", starting_weights=select_all())]
    iris_net(*both[::turn], Looks(), max_epochs=2).fit(X, y)
    assert numbers == [24] * 3 + [39] * 3


@pytest.mark.parametrize("turn", [1, -1])
def test_the_network_is_as_it_was_after_an_error_of_several_callbacks(turn):
    module = MLP(4, 3, neurons=(3, 3))
    table = {"batch": [1], "weights": [select_all()], "action": ["freeze"]}
    both = [CallbackSetUnfreeze(select_all()), CallbackSetUnfreeze(select_last(1), table)]
    with pytest.raises(ValueError, match="nothing trains"):
        iris_net(*both[::turn], module=module).fit(X, y)
    assert trainable_names(module) == ALL


def test_a_first_batch_that_a_row_unfreezes_is_enough():
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_none(), {"batch": [1], "weights": [select_all()]}), trace).fit(X, y)
    assert trace.begin_ == []
    assert trace.batches_ == [ALL] * 12


class Scaled(nn.Module):
    """A criterion with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, predicted, target):
        return nn.functional.cross_entropy(predicted * self.scale, target)


class TwoModules(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.second_ = nn.Linear(3, 3)
        return self

    def infer(self, x, **fit_params):
        return self.second_(super().infer(x, **fit_params))


def test_a_criterion_with_weights_is_not_governed_and_counts_as_trainable():
    net = iris_net(CallbackSetUnfreeze(select_none()), criterion=Scaled, cls=NeuralNet, max_epochs=1).initialize()
    before = weights(net)
    net.partial_fit(X, torch.as_tensor(y))
    assert not moved(before, weights(net))
    assert net.criterion_.scale.item() != 1


def test_a_second_module_is_not_governed():
    net = iris_net(CallbackSetUnfreeze(select_none()), cls=TwoModules, max_epochs=1).initialize()
    before, second = weights(net), net.second_.weight.detach().clone()
    net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert not torch.equal(net.second_.weight, second)


@pytest.mark.parametrize(
    ("cls", "criterion", "target", "d_out"),
    [
        (NeuralNetClassifier, nn.CrossEntropyLoss, torch.as_tensor(y), 3),
        (NeuralNet, nn.CrossEntropyLoss, torch.as_tensor(y), 3),
        (NeuralNetRegressor, nn.MSELoss, torch.as_tensor(X[:, :1]), 1),
        (NeuralNetBinaryClassifier, nn.BCEWithLogitsLoss, torch.as_tensor((y == 1).astype("float32")), 1),
    ],
)
def test_every_net_of_skorch_follows_the_schedule(cls, criterion, target, d_out):
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace, cls=cls, criterion=criterion, module__d_out=d_out).fit(
        X, target
    )
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_a_module_instance_is_set_anew_by_a_second_fit():
    module = MLP(4, 3, neurons=(3, 3))
    traces = [Trace(), Trace()]
    for trace in traces:
        iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace, module=module).fit(X, y)
    assert traces[0].begin_ == traces[1].begin_ == HEAD
    assert traces[0].batches_ == traces[1].batches_


def test_selectors_of_types_reach_inside_the_net():
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_type(nn.Linear) - select_last(1)), trace).fit(X, y)
    assert trace.begin_ == ALL[:4]


def test_two_callbacks_train_what_neither_holds():
    trace = Trace()
    a = CallbackSetUnfreeze(select_prefix("3", "6"))
    b = CallbackSetUnfreeze(select_prefix("0", "6"), {"epoch": [3], "weights": [select_prefix("3")]})
    iris_net(("b", b), ("a", a), trace).fit(X, y)
    assert trace.batches_ == [HEAD] * 6 + [ALL[2:]] * 6


def test_the_state_names_what_trains():
    unfreeze = CallbackSetUnfreeze(select_last(1), LATER)
    assert unfreeze.state_dict() == {"trainable": []}
    iris_net(unfreeze, max_epochs=2).fit(X, y)
    assert unfreeze.state_dict() == {"trainable": ALL[2:]}


def test_a_loaded_state_trains_from_the_first_batch_and_is_used_up_by_one_fit():
    trace = Trace()
    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_name("0.weight")]})
    unfreeze.load_state_dict({"trainable": ["3.bias"]})
    assert unfreeze.state_dict() == {"trainable": ["3.bias"]}
    net = iris_net(unfreeze, trace, max_epochs=2).fit(X, y)
    assert trace.batches_ == [["3.bias", *HEAD]] * 3 + [["0.weight", "3.bias", *HEAD]] * 3
    net.partial_fit(X, y)
    assert trace.batches_[-1] == ["0.weight", "3.bias", *HEAD]
    net.fit(X, y)
    assert trace.batches_[-6:] == [HEAD] * 3 + [["0.weight", *HEAD]] * 3


def test_a_loaded_state_survives_set_params():
    net = iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1))), ("trace", Trace())).initialize()
    dict(net.callbacks_)["unfreeze"].load_state_dict({"trainable": ["0.bias"]})
    net.set_params(callbacks__unfreeze__starting_weights=select_name("6.bias"))
    net.partial_fit(X, y)
    assert dict(net.callbacks_)["trace"].batches_ == [["0.bias", "6.bias"]] * 12


class LoadsInBegin(Callback):
    """Loads a state behind the back of a callback that has begun already, as a checkpoint may."""

    def __init__(self, state):
        self.state = state

    def on_train_begin(self, net, **kwargs):
        dict(net.callbacks_)["unfreeze"].load_state_dict(self.state)


def test_a_state_that_is_loaded_while_training_begins_counts():
    trace = Trace()
    unfreeze = ("unfreeze", CallbackSetUnfreeze(select_last(1)))
    iris_net(unfreeze, LoadsInBegin({"trainable": ["0.bias"]}), trace).fit(X, y)
    assert trace.batches_ == [["0.bias", *HEAD]] * 12
    with pytest.raises(ValueError, match="state that was loaded names 'x', which the network lacks"):
        iris_net(unfreeze, LoadsInBegin({"trainable": ["x"]})).fit(X, y)


@pytest.mark.parametrize("state", [None, {}, {"trainable": "a", "more": 1}, {"trainable": [1]}, {"trainable": 1}, []])
def test_a_state_of_another_form_is_refused_and_the_old_one_stays(state):
    unfreeze = CallbackSetUnfreeze(select_last(1))
    unfreeze.load_state_dict({"trainable": ["0.bias"]})
    with pytest.raises((TypeError, ValueError), match="`state`|`trainable`"):
        unfreeze.load_state_dict(state)
    assert unfreeze.state_dict() == {"trainable": ["0.bias"]}


class TrainsAnother(Callback):
    """Trains a second net in the middle of the first one."""

    def __init__(self, other, hook):
        self.other = other
        self.hook = hook

    def on_batch_end(self, net, training=None, **kwargs):
        if training and self.hook == "on_batch_end" and len(net.history) == 2:
            self.other.fit(X, y)

    def on_epoch_end(self, net, **kwargs):
        if self.hook == "on_epoch_end" and len(net.history) == 1:
            self.other.fit(X, y)


@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("loaded", [[], ["0.bias"]])
def test_one_callback_serves_a_second_net_in_the_middle_of_a_first(hook, loaded):
    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [3], "weights": [select_all()]})
    unfreeze.load_state_dict({"trainable": loaded})
    first, second = Trace(), Trace()
    net = iris_net(unfreeze, TrainsAnother(iris_net(unfreeze, second), hook), first).fit(X, y)
    assert first.batches_ == [[*loaded, *HEAD]] * 6 + [ALL] * 6
    assert second.batches_[-12:] == [HEAD] * 6 + [ALL] * 6
    net.partial_fit(X, y)
    assert first.batches_[-1] == ALL


def test_one_callback_serves_two_nets_after_each_other():
    unfreeze = CallbackSetUnfreeze(select_last(1), LATER)
    first, second = Trace(), Trace()
    one = iris_net(unfreeze, first, max_epochs=2).fit(X, y)
    iris_net(unfreeze, second).fit(X, y)
    one.partial_fit(X, y)
    assert first.batches_ == second.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


class Breaks(Callback):
    """Ends training by an error."""

    def on_batch_end(self, net, training=None, **kwargs):
        raise ZeroDivisionError


class TrainsAnotherInVain(TrainsAnother):
    def on_batch_end(self, net, training=None, **kwargs):
        with pytest.raises(ZeroDivisionError):
            self.other.fit(X, y)


def test_one_callback_serves_a_second_net_that_breaks_at_every_batch_of_the_first():
    unfreeze, trace = CallbackSetUnfreeze(select_last(1), LATER), Trace()
    iris_net(unfreeze, TrainsAnotherInVain(iris_net(unfreeze, Breaks()), None), trace).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_a_net_that_broke_can_train_again():
    trace = Trace()
    net = iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), LATER)), ("breaks", Breaks()), ("trace", trace))
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    net.set_params(callbacks__breaks=None).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_training_without_a_begin_works_too():
    trace = Trace()
    net = iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace).initialize()
    net.fit_loop(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6
    net.history.new_epoch()
    net.run_single_epoch(net.get_iterator(net.get_dataset(X, y), training=True), True, "train", net.train_step)
    assert trace.batches_[12:] == [ALL] * 3


class KeepsCopies(Callback):
    """Pickles the net after each batch of the second epoch."""

    def __init__(self):
        self.copies_ = []

    def on_batch_end(self, net, training=None, **kwargs):
        if training and len(net.history) == 2:
            self.copies_.append(pickle.dumps(net))


def test_a_copy_that_is_made_while_training_trains_on_its_own():
    keeps = KeepsCopies()
    iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), LATER)), ("trace", Trace()), keeps, max_epochs=2).fit(
        X, y
    )
    again = pickle.loads(keeps.copies_[1])
    again.partial_fit(X, y)
    assert dict(again.callbacks_)["trace"].batches_[5:] == [ALL] * 6


def test_a_net_without_a_module_is_refused():
    class Other(NeuralNetClassifier):
        def initialize_module(self):
            self.net_ = MLP(4, 3)
            return self

    with pytest.raises(TypeError, match="governs the parameters of `module_`, which Other lacks"):
        iris_net(CallbackSetUnfreeze(select_all()), cls=Other, module=nn.Module).fit(X, y)


def test_it_prints_as_in_r_and_as_code():
    table = {"epoch": [2], "weights": [select_all()]}
    unfreeze = CallbackSetUnfreeze(select_last(1), pd.DataFrame(table))
    assert str(unfreeze).startswith("<CallbackSetUnfreeze>\n* Stages: begin, epoch_begin, batch_begin")
    code = "CallbackSetUnfreeze(starting_weights=select_last(1), unfreeze={'epoch': [2], 'weights': [select_all()]})"
    assert repr(unfreeze) == code
    assert repr(eval(code, {"select_all": select_all, "select_last": select_last} | globals())) == code
    assert unfreeze.stages == ["begin", "epoch_begin", "batch_begin", "epoch_end", "end", "exit"]


def test_lazy_modules_and_integer_parameters_train_by_schedule():
    class Lazy(nn.Sequential):
        def __init__(self):
            super().__init__(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(3))
            self.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

    class Adaptive(NeuralNetClassifier):
        def initialize_optimizer(self):
            params = [tensor for tensor in self.module_.parameters() if tensor.is_floating_point()]
            self.optimizer_ = torch.optim.SGD(params, lr=self.lr)
            return self

    trace = Trace()
    net = iris_net(
        CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_all()]}), module=Lazy, cls=Adaptive
    )
    net.initialize()
    net.callbacks_.append(("trace", trace))
    net.module_(torch.as_tensor(X))
    net.partial_fit(X, y)
    assert trace.batches_ == [["2.weight", "2.bias"]] * 3 + [["0.weight", "0.bias", "2.weight", "2.bias"]] * 9


def test_constructing_checks_nothing_so_that_clone_works():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = {
            "starting_weights": "anything",
            "unfreeze": 3,
            "frozen_mode": 0,
            "frozen_norm": 5,
            "frozen_dropout": 1,
        }
        assert CallbackSetUnfreeze(**params).get_params() == params


def test_the_registry_makes_the_same_callback():
    assert repr(t_clbk("unfreeze", starting_weights=select_all()).callback) == repr(CallbackSetUnfreeze(select_all()))
