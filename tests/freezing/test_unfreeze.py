import logging
import pickle
import warnings
from itertools import pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    gradual_unfreezing,
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
from tests.helpers import Trace, X, iris_net, moved, y

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


@pytest.mark.sample(5)
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


@pytest.mark.slow
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


@pytest.mark.sample(5)
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


def test_the_number_of_an_interrupted_epoch_counts_what_was_unfrozen_in_it():
    class Interrupts(Callback):
        def on_batch_end(self, net, training=None, **kwargs):
            if len(net.history) == 2 and len(net.history[-1, "batches"]) == 3:
                raise KeyboardInterrupt

    table = {"batch": [6], "weights": [select_all()]}
    net = iris_net(Interrupts(), CallbackSetUnfreeze(select_last(1), table), batch_size=30, train_split=None).fit(X, y)
    assert net.history[:, "n_trainable"] == [12, 39]


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

    net = iris_net(CallbackSetUnfreeze(select_last(1)), Grows(), audited=False, max_epochs=3)
    with pytest.warns(UserWarning, match="no optimizer holds them: extra;"):
        net.fit(X, y)
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
        (
            {"epoch": [2], "weights": [select_glob("{0,3}.*")]},
            "row 0 .* matches no weight of the network; of braces only select_prefix makes alternatives",
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


def test_the_state_after_a_fit_names_what_a_loaded_state_trains():
    unfreeze = CallbackSetUnfreeze(select_last(1))
    unfreeze.load_state_dict({"trainable": ["0.bias"]})
    net = iris_net(unfreeze, max_epochs=1).fit(X, y)
    for one in (unfreeze, pickle.loads(pickle.dumps(unfreeze))):
        assert one.state_dict() == {"trainable": trainable_names(net.module_)} == {"trainable": ["0.bias", *HEAD]}


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
            "schedule": 4,
            "frozen_mode": 0,
            "frozen_norm": 5,
            "frozen_dropout": 1,
            "module": 2,
            "restore_best_between": 6,
            "monitor": 7,
            "lower_is_better": 8,
        }
        assert CallbackSetUnfreeze(**params).get_params() == params


def test_the_registry_makes_the_same_callback():
    assert repr(t_clbk("unfreeze", starting_weights=select_all()).callback) == repr(CallbackSetUnfreeze(select_all()))


def test_a_schedule_in_the_place_of_a_table_is_refused_with_the_remedy():
    with pytest.raises(
        TypeError, match=r"`unfreeze` is gradual_unfreezing\(\); give a schedule as `schedule`, without"
    ):
        t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=gradual_unfreezing())
