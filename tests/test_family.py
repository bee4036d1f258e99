"""History and early stopping: what R recorded, and what a user of skorch expects."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from mlr3torch_py import (
    CallbackSet,
    CallbackSetEarlyStopping,
    CallbackSetHistory,
    CallbackSetUnfreeze,
    TorchCallback,
    as_torch_callback,
    as_torch_callbacks,
    mlr3torch_callbacks,
    t_clbk,
)
from tests.helpers import IRIS, X, golden, iris_net, moved, selector, table, weights, y
from tests.test_golden import OPTIMIZERS, network_of_run

STOPPING = golden("early_stopping")["runs"]


class Score(Callback):
    """Writes given scores into the history, one per epoch."""

    def __init__(self, scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        net.history.record("score", self.scores[len(net.history) - 1])


@pytest.mark.parametrize("run", STOPPING, ids=[run["id"] for run in STOPPING])
def test_training_ends_when_it_does_in_r(run):
    stopping = CallbackSetEarlyStopping(
        run["patience"], run["min_delta"], monitor="score", lower_is_better=run["minimize"]
    )
    net = iris_net(Score(run["scores"]), stopping, max_epochs=run["max_epochs"], batch_size=150).fit(X, y)
    assert len(net.history) == run["epochs_trained"]
    assert stopping.best_epoch == run["best_epochs"]
    assert stopping.best_score == run["best_score"]
    assert stopping.stagnation == run["stagnation"]


SCORES = [0.5, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_stopping_goes_on_across_calls(stop):
    stopping = CallbackSetEarlyStopping(2, monitor="score")
    net = iris_net(("stopping", stopping), ("score", Score(SCORES)), max_epochs=stop, batch_size=150).fit(X, y)
    net = pickle.loads(pickle.dumps(net)).set_params(max_epochs=7 - stop)
    net.partial_fit(X, y)
    assert len(net.history) == 6
    assert dict(net.callbacks_)["stopping"].best_epoch == 4


def test_a_training_that_was_ended_stays_ended():
    stopping = CallbackSetEarlyStopping(1, monitor="score")
    net = iris_net(("stopping", stopping), ("score", Score(SCORES)), batch_size=150).fit(X, y)
    assert len(net.history) == 3
    before = weights(net)
    with pytest.warns(UserWarning, match="`score` had stopped improving .* raise `patience`"):
        net.partial_fit(X, y)
    assert len(net.history) == 3
    assert not moved(before, weights(net))
    net.set_params(callbacks__stopping__patience=3)
    net.partial_fit(X, y)
    assert len(net.history) == 7


def test_the_best_weights_are_put_back():
    class Keeps(Callback):
        def on_epoch_end(self, net, **kwargs):
            kept.append(weights(net))

    for restore in (True, False):
        kept = []
        stopping = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=restore)
        net = iris_net(Score(SCORES), stopping, Keeps(), max_epochs=7, batch_size=150).fit(X, y)
        assert len(kept) == 6
        assert not moved(kept[3 if restore else 5], weights(net))


def test_a_state_goes_through_save_and_load():
    stopping = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=True)
    iris_net(Score(SCORES), stopping, batch_size=150, max_epochs=3).fit(X, y)
    again = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=True)
    again.load_state_dict(stopping.state_dict())
    assert (again.best_epoch, again.best_score, again.stagnation) == (2, 0.4, 1)
    with pytest.raises(ValueError, match="`state` is of the score 'score', but `monitor` is 'valid_loss'"):
        CallbackSetEarlyStopping().load_state_dict(stopping.state_dict())


def test_a_score_that_is_missing_is_named():
    with pytest.raises(ValueError, match="`monitor` is 'train_los', .* did you mean 'train_loss'"):
        iris_net(CallbackSetEarlyStopping(monitor="train_los")).fit(X, y)


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"min_delta": -1}, {"monitor": 3}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(arguments))}`"):
        t_clbk("early_stopping", **arguments)


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


def test_the_history_goes_on_and_leaves_gaps_where_a_run_had_no_score():
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


def test_callbacks_are_described_for_people(capsys):
    made = t_clbk("early_stopping", patience=3)
    assert made.label == "Early Stopping"
    assert made.packages == ["mlr3torch_py", "skorch", "torch"]
    assert made.man == "mlr3torch_py.callbacks.early_stopping.CallbackSetEarlyStopping"
    assert made.parameters["patience"] == 3
    assert repr(made).splitlines()[:4] == [
        "<TorchCallback:early_stopping>",
        "* Label: Early Stopping",
        "* Generator: CallbackSetEarlyStopping",
        "* patience: 3",
    ]
    made.help()
    assert "End training when a score has not improved" in capsys.readouterr().out


def test_everything_that_describes_a_callback_is_taken():
    made = t_clbk("history")
    assert as_torch_callback(made) is made
    assert as_torch_callback("history").id == "history"
    assert as_torch_callback(CallbackSetHistory).id == "history"
    assert as_torch_callback(made.callback) == TorchCallback("history", made.callback)
    unset = as_torch_callback(CallbackSetUnfreeze)
    with pytest.raises(ValueError, match="never set"):
        unset.callback.require_params()
    assert as_torch_callbacks(None) == []
    assert as_torch_callbacks(made) == [made]
    assert [one.id for one in as_torch_callbacks(("history", CallbackSetEarlyStopping))] == [
        "history",
        "early_stopping",
    ]
    for wrong in (3, CallbackSet.__init__, int):
        with pytest.raises(TypeError, match="`x` is"):
            as_torch_callback(wrong)


IN_R = golden("registry")["callbacks"]


@pytest.mark.parametrize("entry", IN_R, ids=[entry["key"] for entry in IN_R])
def test_the_dictionary_agrees_with_r(entry):
    row = mlr3torch_callbacks.to_frame().set_index("key").loc[entry["key"]]
    assert row["label"] == entry["label"]
    assert row["weight"] == float(entry["weight"])
    wanted = [name for name in entry["params"] if name != "verbose"]  # which torch's schedulers no longer have
    assert [name for name in row["params"] if name in wanted] == wanted
    optional_here = {"unfreeze"} if entry["key"] == "unfreeze" else set()
    assert set(row["required"]) == set(entry["required"]) - optional_here


def test_no_warning_is_given_where_nothing_ended():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = iris_net(CallbackSetEarlyStopping(3, monitor="train_loss"), max_epochs=1).fit(X, y)
        net.partial_fit(X, y)
    assert len(net.history) == 2
