"""What trained when, from the history alone."""

import pickle

import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from skorch.history import History
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    select_all,
    select_last,
    select_name,
    select_prefix,
    t_clbk,
    trained_when,
)
from tests.helpers import Nested, Stops, Trace, X, iris_net, y

HEAD, ALL = ["6.weight", "6.bias"], ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]


def rows(by, at, *selectors, **more):
    return CallbackSetUnfreeze(select_last(1), {by: at, "weights": list(selectors), **more})


def as_watched(trace, names=ALL):
    """What a callback has seen at each batch, as a table."""
    table = {batch: [name in trainable for name in names] for batch, trainable in enumerate(trace.batches_, start=1)}
    return pd.DataFrame(table, index=names)


def by_batch(net):
    return trained_when(net, by="batch").droplevel("epoch", axis=1)


def same(one, other):
    return one.to_numpy().tolist() == other.to_numpy().tolist() and [*one.columns] == [*other.columns]


def test_a_parameter_has_trained_in_the_epochs_in_which_one_of_its_batches_moved_it():
    table = trained_when(iris_net(rows("epoch", [2, 4], select_prefix("3"), select_all())).fit(X, y))
    assert [*table.index] == ALL
    assert [*table.columns] == [1, 2, 3, 4]
    assert table.loc["0.weight"].tolist() == [False, False, False, True]
    assert table.loc["3.bias"].tolist() == [False, True, True, True]
    assert table.loc["6.weight"].all()
    assert set(table.dtypes) == {pd.Series([True]).dtype}


@pytest.mark.parametrize(
    "unfreeze",
    [
        rows("batch", [5], select_all()),
        rows("epoch", [2, 3], select_all(), select_prefix("0"), action=["unfreeze", "freeze"]),
        rows("batch", [1, 2, 4, 9], *[select_name(name) for name in ALL[:4]]),
        t_clbk("freezer", name_starts_with=["0.", "3."], until_step=4),
        CallbackSetUnfreeze(select_all()),
    ],
)
def test_by_batch_it_says_what_a_callback_sees_in_training(unfreeze):
    trace = Trace()
    net = iris_net(unfreeze, trace).fit(X, y)
    assert same(by_batch(net), as_watched(trace))
    assert same(trained_when(net), trained_when(net, "batch").T.groupby("epoch").any().T)


def test_a_history_that_was_loaded_is_enough(tmp_path):
    net = iris_net(rows("batch", [5], select_all())).fit(X, y)
    wanted = trained_when(net)
    net.history.to_file(tmp_path / "history.json")
    assert trained_when(History.from_file(tmp_path / "history.json")).equals(wanted)
    again = iris_net().initialize()
    again.load_params(f_history=tmp_path / "history.json")
    assert trained_when(again).equals(wanted)
    assert trained_when(pickle.loads(pickle.dumps(net))).equals(wanted)
    assert trained_when(net.history.to_list()).equals(wanted)
    assert trained_when(make_pipeline(StandardScaler(), net)).equals(wanted)


def test_stopping_and_going_on_changes_nothing(tmp_path):
    def net_of(epochs):
        keep = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
        return iris_net(rows("batch", [2, 8], select_prefix("3"), select_all()), keep, max_epochs=epochs)

    whole = iris_net(rows("batch", [2, 8], select_prefix("3"), select_all())).fit(X, y)
    net_of(2).fit(X, y)
    resumed = net_of(4).fit(X, y)
    assert trained_when(resumed, "batch").equals(trained_when(whole, "batch"))
    for key in ("trainable_from_batch_count", "event_unfrozen"):
        assert [row.get(key) for row in resumed.history] == [row.get(key) for row in whole.history]


def test_partial_fit_continues():
    trace = Trace()
    net = iris_net(rows("epoch", [3], select_all()), trace, max_epochs=2).fit(X, y)
    net.partial_fit(X, y)
    assert same(by_batch(net), as_watched(trace))


def test_an_epoch_that_was_broken_off_counts_as_far_as_it_went():
    net = iris_net(rows("batch", [5], select_all()), Stops(KeyboardInterrupt, 5)).fit(X, y)
    assert trained_when(net, "batch").loc["0.weight"].tolist() == [False] * 4 + [True]


def test_flags_set_by_hand_count_from_the_next_epoch_on():
    class ByHand(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.module_[0].bias.requires_grad = False

    net = iris_net(Freezer("3.weight"), ByHand(), audited=False, max_epochs=2).fit(X, y)
    table = trained_when(net)
    assert table.loc["0.bias"].tolist() == [True, False]
    assert table.loc["3.weight"].tolist() == [False, False]


def test_epochs_without_a_freezing_callback_are_left_out():
    net = iris_net(Freezer("0.weight"), max_epochs=1).fit(X, y)
    net.set_params(callbacks=[]).initialize_callbacks().partial_fit(X, y)
    net.set_params(callbacks=[Freezer("3.weight")]).initialize_callbacks().partial_fit(X, y)
    table = trained_when(net, "batch")
    assert [*table.columns] == [(1, 1), (1, 2), (1, 3), (3, 7), (3, 8), (3, 9)]
    assert [*table.loc["3.weight"]] == [True] * 3 + [False] * 3


def test_a_network_that_is_replaced_has_rows_of_its_own():
    class Grows(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 1:
                net.module_.append(nn.Linear(3, 3))
                net.initialize_optimizer()

    net = iris_net(Freezer("0.weight"), Grows(), audited=False, max_epochs=2).fit(X, y)
    table = trained_when(net)
    assert [*table.index] == [*ALL, "7.weight", "7.bias"]
    assert table.loc["7.bias"].tolist() == [False, True]


def test_names_that_look_like_patterns_stay_as_they_are():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"{0,1}": nn.Linear(4, 4), "{2,3}": nn.Linear(4, 3)})

        def forward(self, x):
            return self.parts["{2,3}"](self.parts["{0,1}"](x))

    names = [f"parts.{{{i}}}.{name}" for i in ("0,1", "2,3") for name in ("weight", "bias")]
    unfreeze = CallbackSetUnfreeze(select_name(names[2:]), {"epoch": [2], "weights": [select_all()]})
    table = trained_when(iris_net(unfreeze, module=Odd, max_epochs=2).fit(X, y))
    assert [*table.index] == names
    assert table.to_numpy().tolist() == [[False, True]] * 2 + [[True, True]] * 2


def test_rows_stay_small():
    table = {"epoch": [2], "weights": [select_prefix("encoder")]}
    net = iris_net(
        CallbackSetUnfreeze(select_prefix("head"), table), module=Nested, module__blocks=40, max_epochs=3, audited=False
    ).fit(X, y)
    kept = [row.get("trainable_from_batch_count") for row in net.history]
    assert len(str(kept[0])) < 200
    assert kept[1:] == [[{"after": 0, "trainable": [2, 244]}], None]
    assert net.history[:, "event_unfrozen"] == [None, "+ encoder (240 tensors)", None]


def test_many_changes_in_an_epoch_are_counted_for_people_and_kept_for_programs():
    one_by_one = rows("batch", range(2, 7), *[select_name(name) for name in ALL[:5]])
    one_by_one.starting_weights = select_name("6.bias")
    net = iris_net(one_by_one, batch_size=15, max_epochs=1).fit(X, y)
    (text,) = net.history[:, "event_unfrozen"]
    assert text.count(" at batch ") == 3
    assert text.endswith(" and 2 more")
    assert by_batch(net).sum().tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]


def test_the_printed_table_names_what_was_unfrozen_and_has_no_other_new_column(capsys):
    iris_net(rows("epoch", [2], select_prefix("3")), max_epochs=2, verbose=1, audited=False).fit(X, y)
    header, _, first, second = [line for line in capsys.readouterr().out.splitlines() if line.strip()][-4:]
    assert header.split() == ["epoch", "n_trainable", "train_loss", "unfrozen", "dur"]
    assert "+" not in first
    assert "+ 3.weight, 3.bias" in second


def test_loggers_of_skorch_take_the_history(tmp_path):
    from skorch.callbacks import TensorBoard
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        iris_net(rows("epoch", [2], select_prefix("3")), TensorBoard(writer), max_epochs=2).fit(X, y)
    (log,) = tmp_path.iterdir()
    assert b"n_trainable" in log.read_bytes()


def test_batches_of_several_processes_are_those_of_one():
    entries = [{"train_loss": 1.0}] * 8
    what = {"names": ["a", "b"], "trainable": [0, 1], "after": 0}
    history = [
        {"n_trainable": 1, "train_batch_count": 4, "batches": entries, "trainable_from_batch_count": [what]},
        {
            "n_trainable": 1,
            "train_batch_count": 4,
            "batches": entries,
            "trainable_from_batch_count": [{"trainable": [0, 2], "after": 3}],
        },
    ]
    table = trained_when(history, "batch")
    assert [*table.columns] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6), (2, 7), (2, 8)]
    assert table.loc["b"].tolist() == [False] * 7 + [True]


@pytest.mark.parametrize("net", [iris_net(), iris_net().initialize(), [], [{"epoch": 1, "n_trainable": 3}]])
def test_a_history_that_does_not_say_it_is_refused(net):
    with pytest.raises(ValueError, match="`net` has no history that says what trained; train it with a freezing"):
        trained_when(net)


@pytest.mark.parametrize("net", [3, None, [3], nn.Linear(2, 1), type(iris_net()), torch.ones(2)])
def test_what_is_no_net_and_no_history_is_refused(net):
    with pytest.raises(TypeError, match="`net` is .*; give a net of skorch that was trained"):
        trained_when(net)


def test_by_is_one_of_two():
    with pytest.raises(ValueError, match="`by` is 'row'"):
        trained_when([], by="row")
