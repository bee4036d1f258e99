"""The table of scores: what R recorded, and what happens across calls."""

import numpy as np
import pandas as pd
import pytest
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from mlr3torch_py import CallbackSetHistory, CallbackSetUnfreeze, t_clbk
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
