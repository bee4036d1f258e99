"""The table of scores: what R recorded, and what happens across calls."""

import numpy as np
import pandas as pd
import pytest
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from mlr3torch_py import CallbackSetHistory, CallbackSetUnfreeze, t_clbk, torch_callback
from tests.helpers import IRIS, X, iris_net, selector, table, y
from tests.test_golden import OPTIMIZERS, network_of_run


def error_rate(net, X, y):
    return float(np.mean(net.predict(X) != y))


@pytest.mark.parametrize("run", IRIS["runs"], ids=[run["id"] for run in IRIS["runs"]])
def test_the_history_is_that_of_r(run):
    valid = run["valid_rows_0based"] or []
    train = [row for row in range(150) if row not in valid]
    history = t_clbk("history")
    scorings = [
        EpochScoring(score, name=f"{part}_classif.{name}", on_train=part == "train", lower_is_better=name == "ce")
        for part in (("train", "valid") if valid else ("train",))
        for name, score in (("acc", "accuracy"), ("ce", error_rate))
    ]
    iris_net(
        CallbackSetUnfreeze(selector(run["starting_weights"]), table(run["unfreeze"])),
        *[(f"scoring{i}", scoring) for i, scoring in enumerate(scorings)],
        history,
        module=network_of_run(run),
        criterion=nn.CrossEntropyLoss,
        optimizer=OPTIMIZERS[run["optimizer"]["name"]],
        **{"lr": run["optimizer"]["args"]["lr"]},
        **{f"optimizer__{key}": value for key, value in run["optimizer"]["args"].items() if key != "lr"},
        max_epochs=run["epochs"],
        batch_size=run["batch_size"],
        train_split=predefined_split(Dataset(X[valid], y[valid])) if valid else None,
    ).fit(X[train], y[train])
    ours = history.callback.history[list(run["history"])]
    pd.testing.assert_frame_equal(ours, pd.DataFrame(run["history"]), atol=1e-6, check_dtype=False)


def test_the_table_continues_and_has_gaps_where_an_epoch_has_no_score():
    history = CallbackSetHistory()
    net = iris_net(("history", history), max_epochs=2).fit(X, y)
    net.set_params(train_split=ValidSplit(3, stratified=True))
    net.partial_fit(X, y)
    frame = history.history
    assert frame.columns.tolist() == ["epoch", "train.loss", "valid.acc", "valid.loss"]
    assert frame["epoch"].tolist() == [1, 2, 3, 4]
    assert frame["valid.loss"].isna().tolist() == [True, True, False, False]
    assert frame["train.loss"].tolist() == net.history[:, "train_loss"]
    again = CallbackSetHistory()
    again.load_state_dict(history.state_dict())
    pd.testing.assert_frame_equal(again.history, frame)
    assert CallbackSetHistory().history.columns.tolist() == ["epoch"]


def test_scores_without_a_prefix_belong_to_the_part_that_their_callback_says():
    seen = []
    net = iris_net(
        EpochScoring("f1_macro", lower_is_better=False),
        EpochScoring("recall_macro", lower_is_better=False, on_train=True),
        t_clbk("history"),
        torch_callback("see", on_epoch_end=lambda self: seen.append(self.ctx.last_scores_valid["f1_macro"])),
        max_epochs=2,
        train_split=ValidSplit(3),
    ).fit(X, y)
    history = dict(net.callbacks_)["history"].history
    assert history["valid.f1_macro"].tolist() == net.history[:, "f1_macro"] == seen
    assert history["train.recall_macro"].tolist() == net.history[:, "recall_macro"]


@pytest.mark.parametrize("state", [None, {}, {"rows": None}, {"rows": [1]}])
def test_a_state_of_another_form_is_refused(state):
    with pytest.raises(TypeError, match=r"state` is .*; give what state_dict\(\) has returned"):
        CallbackSetHistory().load_state_dict(state)


def test_a_score_that_is_called_as_another_without_its_prefix_hides_none():
    seen = []
    watcher = torch_callback("spy", on_epoch_end=lambda self: seen.append(self.ctx.last_scores_valid))
    own = EpochScoring(lambda *_: 42.0, name="loss")
    net = iris_net(own, t_clbk("history"), watcher, max_epochs=1, train_split=ValidSplit(3)).fit(X, y)
    (row,) = dict(net.callbacks_)["history"].history.to_dict("records")
    assert row["valid.loss"] == seen[0]["loss"] == 42.0
    assert row["valid.valid_loss"] == seen[0]["valid_loss"] == net.history[-1, "valid_loss"]


def test_its_state_holds_plain_numbers():
    net = iris_net(t_clbk("history"), max_epochs=1, train_split=ValidSplit(3)).fit(X, y)
    (row,) = dict(net.callbacks_)["history"].state_dict()["rows"]
    assert {type(value) for value in row.values()} == {int, float}


@pytest.mark.parametrize("scoring", [[], [EpochScoring("f1_macro", name="valid_f1", lower_is_better=False)]])
def test_an_epoch_that_is_interrupted_in_validation_is_not_in_the_history_table(scoring):
    class Stops(Callback):
        def on_batch_begin(self, net, training=None, **kwargs):
            if not training and len(net.history) == 2:
                raise KeyboardInterrupt

    history = t_clbk("history")
    iris_net(history, *scoring, Stops(), train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert history.callback.history["epoch"].tolist() == [1]


def test_the_history_table_has_epochs_whose_only_score_is_the_users():
    history, score = t_clbk("history"), EpochScoring("accuracy", name="acc", on_train=True)
    params = {"callbacks__epoch_timer": None, "callbacks__train_loss": None}
    net = iris_net(history, score, max_epochs=2, **params).fit(X, y)
    assert history.callback.history["train.acc"].tolist() == net.history[:, "acc"]
