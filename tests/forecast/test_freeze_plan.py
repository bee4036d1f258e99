"""freeze_plan: what it says before training is what happens in training, and asking changes nothing."""

import copy
import logging
import random
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    freeze_plan,
    gradual_unfreezing,
    head_first,
    network_summary,
    select_all,
    select_last,
    select_name,
    select_none,
    select_prefix,
    t_clbk,
    trainable_names,
    trained_when,
)
from tests.helpers import Nested, Trace, X, iris_net, y

mpl.use("agg")

ALL = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
HEAD = ["6.weight", "6.bias"]
TABLE = {"epoch": [2, 4], "weights": [select_prefix("3"), select_all()]}
NETWORK = MLP(4, 3, neurons=(3, 3))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def unfreeze(table=TABLE):
    return t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table)


def test_phases_are_listed_with_what_trains():
    plan = freeze_plan(iris_net(unfreeze()))
    summary = plan.summary()
    assert summary.to_dict("list") == {
        "epoch": [1, 2, 4],
        "trainable_tensors": [2, 4, 6],
        "trainable": [12, 24, 39],
        "total": [39] * 3,
        "share": [12 / 39, 24 / 39, 1.0],
        "frozen_prefix": [4, 2, 0],
    }
    frame = plan.to_frame()
    assert len(frame) == 18
    assert frame[frame.phase == 2].set_index("name")["trainable"].to_dict() == {n: n[0] in "36" for n in ALL}
    assert frame.groupby("phase")["n_weights"].sum().tolist() == [39] * 3


times = st.lists(st.integers(1, 9), unique=True, max_size=3)
picks = st.lists(st.sampled_from(["0", "3", "6"]), min_size=3, max_size=3)


@pytest.mark.slow
@settings(max_examples=30)
@given(epochs=times, batches=times, rows=picks, freeze=st.lists(st.booleans(), min_size=3, max_size=3), until=times)
@pytest.mark.usefixtures("no_schedule_warnings")
def test_what_is_said_before_training_happens_in_training(epochs, batches, rows, freeze, until):
    actions = ["freeze" if flag else "unfreeze" for flag in freeze]
    tables = [
        {unit: at, "weights": [select_prefix(row) for row in rows[: len(at)]], "action": actions[: len(at)]}
        for unit, at in (("epoch", epochs), ("batch", batches))
    ]
    freezers = [(f"freezer{i}", Freezer(names="6.bias", until_step=n)) for i, n in enumerate(until)]
    keeps = CallbackSetUnfreeze(select_last(1), tables)
    trace = Trace()
    net = iris_net(("unfreeze", keeps), *freezers, trace, module__neurons=(3, 3), train_split=ValidSplit(3))
    plan = freeze_plan(net, X, y)
    assert plan.batches_per_epoch == 2
    expected = []
    for batch in range(1, 9):
        phase = [phase for phase in plan.phases if phase.batch <= batch][-1]
        expected.append([name for name in ALL if name in phase.trainable])
    if [] in expected:
        with pytest.raises(ValueError, match="nothing trains"):
            net.fit(X, y)
    else:
        net.fit(X, y)
    n_seen = len(trace.batches_)
    assert trace.batches_ == expected[:n_seen]
    assert n_seen == (expected.index([]) if [] in expected else 8)


@pytest.mark.parametrize("initialized", [False, True])
def test_asking_changes_nothing(initialized):
    module = MLP(4, 3, neurons=(3, 3))
    net = iris_net(unfreeze(), EpochScoring("accuracy"), module=module, train_split=ValidSplit(2, random_state=None))
    if initialized:
        net.initialize()
    keys, flags = set(net.__dict__), trainable_names(module)
    states = torch.get_rng_state(), copy.deepcopy(np.random.get_state()), random.getstate()
    freeze_plan(net, X, y)
    freeze_plan(iris_net(unfreeze()), X, y)
    assert set(net.__dict__) == keys
    assert trainable_names(module) == flags
    assert net.initialized_ is initialized
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert random.getstate() == states[2]
    assert net.callbacks[0].callback.plans_ == ()


def test_a_fitted_net_and_parameters_that_were_set_are_asked_as_they_are():
    net = iris_net(unfreeze(), max_epochs=2).fit(X, y)
    assert [phase.epoch for phase in freeze_plan(net, max_epochs=5).phases] == [1, 2, 4]
    net.set_params(callbacks__unfreeze__unfreeze=None)
    assert len(freeze_plan(net).phases) == 1
    later = iris_net(t_clbk("unfreeze"), callbacks__unfreeze__starting_weights=select_all())
    assert freeze_plan(later).summary()["share"].tolist() == [1.0]
    assert freeze_plan(iris_net(unfreeze()).set_params(callbacks__unfreeze=None)).summary()["share"].tolist() == [1.0]
    assert freeze_plan(iris_net(unfreeze()).set_params(callbacks="disable")).summary()["share"].tolist() == [1.0]


def test_what_an_earlier_fit_froze_counts_as_free():
    module = MLP(4, 3, neurons=(3, 3))
    iris_net(Freezer(name_starts_with="0"), module=module, max_epochs=1).fit(X, y)
    assert len(freeze_plan(module, callbacks=[Freezer(names="6.bias")]).phases[0].trainable) == 5


def test_a_callback_that_was_put_in_the_place_of_another_is_asked():
    net = iris_net(("one", Trace())).set_params(callbacks__one=Freezer(names="0.bias"))
    assert len(freeze_plan(net).phases[0].trainable) == 5


def test_a_loaded_state_is_planned_until_a_fit_has_used_it_up():
    callback = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_prefix("3")]}, frozen_mode="eval")
    callback.load_state_dict({"trainable": ["0.weight", "0.bias"]})
    net = iris_net(callback, max_epochs=2)
    said = [["0.weight", "0.bias", *HEAD], ALL]
    for plan in (freeze_plan(net), freeze_plan(net.initialize()), freeze_plan(net.module_, callbacks=[callback])):
        assert [sorted(phase.trainable) for phase in plan.phases] == list(map(sorted, said))
    assert not network_summary(net).to_frame().set_index("path").pinned["0"]
    assert trained_when(net.fit(X, y))[1].tolist() == [name in said[0] for name in ALL]
    assert freeze_plan(net).phases[0].trainable == set(HEAD)


def test_a_random_state_of_the_split_is_left_as_it_is():
    state = np.random.RandomState(0)
    net = iris_net(unfreeze(), train_split=ValidSplit(0.3, random_state=state))
    freeze_plan(net, X, y)
    assert state.randint(10**6) == np.random.RandomState(0).randint(10**6)


def test_a_compiled_net_is_asked_under_its_plain_names():
    net = iris_net(unfreeze(), compile=True, compile__backend="eager").initialize()
    assert list(freeze_plan(net).sizes) == ALL


def test_a_network_is_asked_with_its_callbacks():
    plan = freeze_plan(NETWORK, callbacks=[unfreeze(), Freezer(names="6.bias", until_epoch=5)])
    assert [(phase.epoch, len(phase.trainable)) for phase in plan.phases] == [(1, 1), (2, 3), (4, 5), (6, 6)]
    assert plan.max_epochs == 6
    assert freeze_plan(NETWORK).summary()["share"].tolist() == [1.0]


def test_batches_need_the_length_of_an_epoch():
    table = {"batch": [5], "weights": [select_all()]}
    with pytest.raises(ValueError, match="pass `X` and `y`, or `batches_per_epoch`"):
        freeze_plan(iris_net(unfreeze(table)))
    assert [(phase.epoch, phase.batch) for phase in freeze_plan(iris_net(unfreeze(table)), X, y).phases] == [
        (1, 1),
        (2, 5),
    ]
    plan = freeze_plan(iris_net(unfreeze(table)), batches_per_epoch=4)
    assert plan.summary()["batch"].tolist() == [1, 5]


def test_conditions_come_at_their_latest_and_are_noted():
    table = {"when": [Plateau(no_later_than=3), Plateau()], "weights": [select_prefix("3"), select_all()]}
    plan = freeze_plan(iris_net(unfreeze(table)))
    assert [(phase.epoch, len(phase.trainable)) for phase in plan.phases] == [(1, 2), (3, 4)]
    assert [note[:17] for note in plan.notes] == ["`unfreeze`: row 0", "`unfreeze`: row 1"]
    assert "row 1" in str(plan)


def test_one_trainable_weight_that_undoes_the_saving_is_named():
    plan = freeze_plan(NETWORK, callbacks=[CallbackSetUnfreeze(select_name("0.bias") | select_last(1))])
    assert plan.warnings() == []
    plan = freeze_plan(Nested(4), callbacks=[CallbackSetUnfreeze(select_name("embed.bias") | select_last(1))])
    (warning,) = plan.warnings()
    assert warning.startswith("phase 1: embed.bias trains nearer to the input than 24 frozen tensors (192 weights)")
    assert warning in " ".join(str(plan).split())
    assert warning in plan._repr_html_()
    assert freeze_plan(Nested(4), callbacks=[CallbackSetUnfreeze(select_last(1))]).warnings() == []
    layer = freeze_plan(Nested(4), callbacks=[CallbackSetUnfreeze(select_prefix("embed") | select_last(1))])
    (warning,) = layer.warnings()
    assert warning.startswith("phase 1: embed.weight, embed.bias train nearer to the input than 24 frozen tensors")
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(3, 3, bias=False), nn.Linear(3, 1))
    (warning,) = freeze_plan(network, callbacks=[CallbackSetUnfreeze(~select_name("1.weight"))]).warnings()
    assert "1 frozen tensor (9 weights), so the backward pass has to go through it" in warning


def test_tied_weights_count_once_and_hand_frozen_ones_stay():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
    network[2].weight = network[0].weight
    network[3].bias.requires_grad = False
    plan = freeze_plan(network, callbacks=[Freezer(names="0.weight")])
    assert plan.summary()[["trainable_tensors", "trainable", "total"]].to_numpy().tolist() == [[4, 18, 19]]


def test_lazy_parameters_have_no_size_yet():
    plan = freeze_plan(
        nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)), callbacks=[CallbackSetUnfreeze(select_last(1))]
    )
    assert plan.summary()["total"].tolist() == [4]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (3, "`net` is 3"),
        (MLP, "`net` is .*MLP.*; give a net of skorch, or a torch.nn.Module"),
        (iris_net(unfreeze()), "`callbacks` are given beside a net"),
    ],
)
def test_a_wrong_net_is_named(net, message):
    with pytest.raises(TypeError, match=message):
        freeze_plan(net, callbacks=[unfreeze()] if net != 3 else ())


@pytest.mark.parametrize("data", [{"X": unfreeze()}, {"X": head_first()}, {"X": X}, {"y": y}])
def test_data_beside_a_network_are_refused(data):
    (name,) = data
    with pytest.raises(TypeError, match=f"which takes no data, but `{name}` is .*; give the callbacks as"):
        freeze_plan(NETWORK, **data, callbacks=[unfreeze()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` is 0"),
        ({"batches_per_epoch": 1.5}, "`batches_per_epoch` is 1.5"),
        ({"callbacks": [EpochScoring("accuracy")]}, "`callbacks` holds"),
        ({"callbacks": [CallbackSetUnfreeze(select_name("x"))]}, "`starting_weights`: .*'x'"),
        ({"callbacks": [t_clbk("unfreeze")]}, "never set"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        freeze_plan(NETWORK, **arguments)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def test_an_iterator_without_a_length_is_explained():
    plan = freeze_plan(iris_net(unfreeze()), Endless(), measure=True)
    assert [phase.epoch for phase in plan.phases] == [1, 2, 4]
    explained, unmeasured = plan.notes
    assert explained.startswith("the training iterator does not know its length, so")
    assert unmeasured.startswith("not measured: the number of batches in an epoch is not known")
    with pytest.raises(ValueError, match="counts batches, .*: pass `batches_per_epoch`; the training iterator"):
        freeze_plan(iris_net(unfreeze({"batch": [5], "weights": [select_all()]})), Endless())


def drawn(ax):
    return np.asarray(ax.collections[0].get_array())


def test_the_picture_holds_what_the_plan_says():
    plan = freeze_plan(iris_net(unfreeze()))
    ax = plan.plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ALL
    assert drawn(ax).tolist() == [[float(name in phase.trainable) for phase in plan.phases] for name in ALL]
    assert ax.collections[0].get_coordinates()[0, :, 0].tolist() == [1, 2, 4, 5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["frozen", "trainable"]
    assert plan.plot(ax) is ax


def hatched(ax):
    """Return the name of each hatched row, the epochs from and to, and the hatch."""
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    return [(names[int(r.get_y())], r.get_x(), r.get_x() + r.get_width(), r.get_hatch()) for r in ax.patches]


def test_what_waits_for_a_condition_is_hatched_until_it_comes_at_the_latest():
    table = {"when": [Plateau(no_later_than=3), Plateau("train_loss")], "weights": [select_prefix("3"), select_all()]}
    ax = freeze_plan(iris_net(unfreeze(table))).plot()
    three = [(name, 1, 3, "///") for name in ("3.weight", "3.bias")]
    zero = [(name, *when, "///") for name in ("0.weight", "0.bias") for when in ((1, 3), (3, 5))]
    assert sorted(hatched(ax)) == sorted(three + zero)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == ["frozen", "trainable", "waits for a plateau of valid_loss, a plateau of train_loss"]


def test_what_a_row_after_the_last_epoch_selects_is_marked_as_never():
    tables = {"epoch": [2, 9], "weights": [select_prefix("3"), select_name("0.bias")]}
    ax = freeze_plan(iris_net(unfreeze(tables))).plot()
    assert hatched(ax) == [("0.bias", 1, 2, "xxx"), ("0.bias", 2, 5, "xxx")]
    assert ax.get_legend().get_texts()[-1].get_text() == "never comes: epoch 9"


def test_the_picture_gives_sizes_and_the_last_epoch_and_rates_that_can_be_read():
    table = {"epoch": [2], "weights": [select_prefix("3")], "lr_mult": [0.3]}
    ax = freeze_plan(iris_net(unfreeze(table))).plot()
    texts = {text.get_text().strip(): text.get_color() for text in ax.texts}
    assert {f"{tensor.numel()}" for tensor in iris_net().initialize().module_.parameters()} < texts.keys()
    assert {"weights", "max_epochs: 4", "x0.3"} < texts.keys()
    assert texts["x0.3"] == "white"  # on blue, where the grey of the other texts cannot be read
    assert texts["weights"] != "white"


def test_the_picture_says_where_a_factor_ends():
    table = {"epoch": [2, 4], "weights": [select_prefix("3")] * 2, "lr_mult": [0.1, 1.0], "lr_mult_from": ["row"] * 2}
    ax = freeze_plan(iris_net(unfreeze(table))).plot()
    texts = [(text.get_text().strip(), text.get_position()) for text in ax.texts if text.get_text().startswith(" x")]
    assert texts == [("x0.1", (2, 2.5)), ("x1", (4, 2.5)), ("x0.1", (2, 3.5)), ("x1", (4, 3.5))]


def test_the_picture_draws_a_warm_up_until_its_weights_are_frozen_again():
    rows = [{"epoch": [2], "weights": [select_prefix("0", "3")], "warmup": [8]}]
    rows += [{"epoch": [3], "weights": [select_prefix("0")], "action": ["freeze"]}]
    plan = freeze_plan(iris_net(unfreeze(rows), max_epochs=6), batches_per_epoch=4)
    lines = plan.plot().lines[:4]
    assert [tuple(line.get_xdata()) for line in lines] == [(2, 3), (2, 3), (2, 4), (2, 4)]
    assert [tuple(line.get_ydata()) for line in lines] == [(1, 0.5), (2, 1.5), (3, 2), (4, 3)]


def test_phases_of_batches_begin_inside_epochs():
    plan = freeze_plan(iris_net(unfreeze({"batch": [5], "weights": [select_all()]})), batches_per_epoch=4, max_epochs=3)
    assert plan.plot().collections[0].get_coordinates()[0, :, 0].tolist() == [1, 2, 4]
    plan = freeze_plan(iris_net(unfreeze({"batch": [3], "weights": [select_all()]})), batches_per_epoch=4, max_epochs=1)
    assert plan.plot().collections[0].get_coordinates()[0, :, 0].tolist() == [1, 1.5, 2]


@pytest.mark.parametrize("blocks", [6, 130])
def test_many_parameters_are_drawn_as_few_rows(blocks):
    network = Nested(blocks)
    schedule = gradual_unfreezing(network, unit="batch")
    plan = freeze_plan(network, callbacks=[t_clbk("unfreeze", **schedule)], batches_per_epoch=7)
    ax = plan.plot()
    assert 10 <= len(ax.get_yticklabels()) <= 40
    shares = drawn(ax)
    assert shares[:, -1].min() == 1
    assert shares[-1].min() == 1
    assert (np.diff(shares, axis=1) >= 0).all()


def test_many_parameters_without_modules_are_drawn_as_few_rows():
    network = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(100)])
    ax = freeze_plan(network, callbacks=[Freezer(names="0")]).plot()
    assert ax.get_yticklabels()[0].get_text() == "0 … 2"
    assert drawn(ax)[0].tolist() == [2 / 3]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["frozen", "in part", "trainable"]


def test_drawing_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'mlr3torch_py\[plot\]'"):
        freeze_plan(NETWORK, callbacks=[CallbackSetUnfreeze(select_none())]).plot()


class HeadIsOptimized(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.SGD(self.module_[-1].parameters(), lr=0.1)
        return self


@pytest.mark.parametrize("initialized", [False, True])
def test_what_no_optimizer_holds_is_said(initialized):
    net = iris_net(unfreeze(), cls=HeadIsOptimized)
    plan = freeze_plan(net.initialize() if initialized else net, X, y)
    assert len(plan.notes) == 1
    assert "no optimizer holds them: 0, 3; give the optimizer all parameters" in plan.notes[0]
    assert freeze_plan(iris_net(unfreeze()), X, y).notes == ()


def test_a_net_whose_optimizer_cannot_be_made_has_a_plan():
    plan = freeze_plan(iris_net(unfreeze(), optimizer__nonsense=1))
    assert len(plan.phases) == 3


def test_integer_tensors_are_never_trainable_in_a_plan():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    network.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    plan = freeze_plan(network, callbacks=[t_clbk("unfreeze", starting_weights=select_all())])
    assert plan.phases[0].trainable == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("initialized", [False, True])
def test_a_net_with_a_module_that_cannot_be_pickled_has_a_plan(initialized):
    class Local(MLP):
        pass

    net = iris_net(unfreeze(), t_clbk("frozen_cache"), module=Local, module__d_in=4, module__d_out=3, module__p=0.0)
    assert freeze_plan(net.initialize() if initialized else net, X, y).cache is not None


def test_a_plan_says_what_training_would_warn_of():
    table = {"epoch": [0, 2, 3], "weights": [select_prefix("0"), select_prefix("layer4"), select_last(1)]}
    net = iris_net(CallbackSetUnfreeze(select_prefix("head", "6"), table), max_epochs=3)
    plan = freeze_plan(net, X, y)
    with pytest.warns(UserWarning, match="`unfreeze`|`starting_weights`") as caught:
        net.fit(X, y)
    assert list(plan.notes) == [str(warning.message) for warning in caught]
    assert [re.sub(r"`unfreeze`: row (\d).*\) ", r"row \1 ", note) for note in plan.notes] == [
        "row 0 never takes effect, since epochs and batches count from 1",
        "row 1 matches no weight of the network",
        "row 2 changes nothing: its weights are already trainable (or already frozen)",
        "`starting_weights`: select_prefix('head') matches no weight of the network",
    ]


def test_a_plan_names_the_row_after_which_nothing_trains(caplog):
    caplog.set_level(logging.INFO, "mlr3torch_py")
    turns = {
        "batch": [3, 3, 5, 5, 9],
        "weights": [select_prefix("3"), select_last(1), select_prefix("0"), select_prefix("3"), select_all()],
        "action": ["unfreeze", "freeze", "unfreeze", "freeze", "freeze"],
    }
    net = iris_net(CallbackSetUnfreeze(select_last(1), turns))
    (note,) = freeze_plan(net, X, y).notes
    said = "`unfreeze`: row 4 (batch 9: freeze select_all()) leaves nothing trainable, so that `fit` fails there"
    assert note.startswith(said)
    with pytest.raises(ValueError, match="nothing trains at batch 9"):
        net.fit(X, y)
    assert sum(said in message for message in caplog.messages) == 1
    del turns["batch"][4:], turns["weights"][4:], turns["action"][4:]
    assert not freeze_plan(net.set_params(callbacks__CallbackSetUnfreeze__unfreeze=turns), X, y).notes


def test_a_plan_says_when_nothing_trains_whatever_rows_and_callbacks_bring_it_about():
    rows = [{"epoch": [3], "weights": [select_prefix("3")]}, {"batch": [4], "weights": [select_last(1)]}]
    rows[1]["action"] = ["freeze"]
    net = iris_net(CallbackSetUnfreeze(select_last(1), rows))
    row = "row 1 (batch 4: freeze select_last(1))"
    (note,) = freeze_plan(net, X, y).notes
    assert note.startswith(f"`unfreeze`: {row} leaves nothing trainable, so that `fit` fails there")
    with pytest.raises(ValueError, match=re.escape(f"rows of `unfreeze` that froze something: {row};")):
        net.fit(X, y)
    net = iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freezer", name_starts_with="6", until_epoch=1))
    (note,) = freeze_plan(net, X, y).notes
    assert note.startswith("the schedule from epoch 1, batch 1 on leaves nothing trainable, so that `fit` fails there")


class FreezesByDefault(NeuralNetClassifier):
    def get_default_callbacks(self):
        return [*super().get_default_callbacks(), ("unfreeze", CallbackSetUnfreeze(select_last(1), REST_AT_3))]


REST_AT_3 = {"epoch": [3], "weights": [select_all()]}


@pytest.mark.parametrize("beside", [[], [t_clbk("freezer", name_starts_with="6", until_epoch=1)]])
def test_freezing_callbacks_that_a_net_has_by_default_are_planned(beside):
    net = iris_net(*beside, cls=FreezesByDefault, max_epochs=4)
    plan = freeze_plan(net, X, y)
    assert [(phase.epoch, phase.trainable) for phase in plan.phases] == [
        (phase.epoch, phase.trainable) for phase in freeze_plan(net.initialize(), X, y).phases
    ]
    assert plan.phases[-1].epoch == 3


def test_a_plan_says_by_what_factor_a_block_is_slower():
    network = MLP(4, 3, neurons=(8, 8))
    plan = freeze_plan(network, callbacks=[t_clbk("unfreeze", **gradual_unfreezing(network, lr_decay=2.0))])
    assert "2 lr_mult 0.5: 3.weight, 3.bias" in str(plan)
    assert "lr_mult 0.25: 0.weight, 0.bias" in plan._repr_html_()
    frame = plan.to_frame().drop_duplicates("name", keep="last").set_index("name")
    assert frame.lr_mult["6.weight"] == 1
    assert frame.lr_mult["0.bias"] == 0.25
