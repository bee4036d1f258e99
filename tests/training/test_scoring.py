"""Scores before skorch records them, and their direction."""

import numpy as np
import pytest
from skorch.callbacks import BatchScoring, EpochScoring
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, torch_callback
from mlr3torch_py.training.scoring import lower_is_better
from tests.helpers import IRIS, X, iris_net, selector, table, y
from tests.test_golden import OPTIMIZERS, network_of_run

VALIDATED = [run for run in IRIS["runs"] if run["valid_rows_0based"]]
SPLIT = ValidSplit(3, stratified=True)


def error_rate(net, X, y):
    return float(np.mean(net.predict(X) != y))


def spy(**stages):
    """A callback that keeps what it is to look at, by stage; and what it has kept."""
    seen = {stage: [] for stage in stages}

    def look_at(stage, attribute):
        return lambda self: seen[stage].append(getattr(self.ctx, attribute))

    hooks = {f"on_{stage}": look_at(stage, attribute) for stage, attribute in stages.items()}
    return torch_callback("spy", weight=-1, **hooks), seen


@pytest.mark.parametrize("run", VALIDATED, ids=[run["id"] for run in VALIDATED])
def test_the_scores_are_those_of_r_in_its_stages(run):
    valid = run["valid_rows_0based"]
    train = [row for row in range(150) if row not in valid]
    scorings = [
        EpochScoring(score, name=f"{part}_classif.{name}", on_train=part == "train", lower_is_better=name == "ce")
        for part in ("train", "valid")
        for name, score in (("acc", "accuracy"), ("ce", error_rate))
    ]
    watcher, seen = spy(before_valid="last_scores_train", valid_end="last_scores_valid")
    iris_net(
        CallbackSetUnfreeze(selector(run["starting_weights"]), table(run["unfreeze"])),
        *[(f"scoring{i}", scoring) for i, scoring in enumerate(scorings)],
        watcher,
        module=network_of_run(run),
        criterion=nn.CrossEntropyLoss,
        optimizer=OPTIMIZERS[run["optimizer"]["name"]],
        **{"lr": run["optimizer"]["args"]["lr"]},
        **{f"optimizer__{key}": value for key, value in run["optimizer"]["args"].items() if key != "lr"},
        max_epochs=run["epochs"],
        batch_size=run["batch_size"],
        train_split=predefined_split(Dataset(X[valid], y[valid])),
    ).fit(X[train], y[train])
    for stage, part in (("before_valid", "train"), ("valid_end", "valid")):
        recorded = {name: values for name, values in run["history"].items() if name.startswith(f"{part}.")}
        assert recorded
        for name, values in recorded.items():
            assert [scores[name.removeprefix(f"{part}.")] for scores in seen[stage]] == pytest.approx(values, abs=1e-6)


def test_the_scores_of_the_epoch_before_are_there_until_the_next_are():
    stages = ("epoch_begin", "batch_end", "before_valid", "batch_valid_end", "valid_end", "epoch_end", "end", "exit")
    watcher, seen = spy(**dict.fromkeys(stages, "last_scores_valid"))
    net = iris_net(watcher, max_epochs=2, batch_size=150, train_split=SPLIT).fit(X, y)
    first, second = ({"acc": row["valid_acc"], "loss": row["valid_loss"]} for row in net.history)
    assert {stage: scores[-1] for stage, scores in seen.items()} == {
        **dict.fromkeys(["epoch_begin", "batch_end", "before_valid", "batch_valid_end"], first),
        **dict.fromkeys(["valid_end", "epoch_end", "end", "exit"], second),
    }
    assert seen["epoch_begin"][0] == {}


def test_asking_early_changes_nothing_that_is_recorded():
    def scorings():
        return (
            ("score", EpochScoring("accuracy", on_train=True, name="train_acc", lower_is_better=False)),
            ("batch", BatchScoring("accuracy", on_train=True, name="train_batch_acc", lower_is_better=False)),
        )

    watcher, seen = spy(before_valid="last_scores_train", valid_end="last_scores_valid")
    asked = iris_net(*scorings(), watcher, train_split=SPLIT).fit(X, y)
    assert all({"acc", "batch_acc", "loss"} == set(scores) for scores in seen["before_valid"])
    iris_net(*scorings(), train_split=SPLIT)
    for row, scores in zip(asked.history, seen["before_valid"], strict=True):
        assert {name: row[f"train_{name}"] for name in scores} == scores
        assert isinstance(row["train_acc_best"], bool)
    assert any(asked.history[:, "train_acc_best"])


def test_a_scoring_without_a_cache_comes_at_the_end_of_the_epoch():
    uncached = EpochScoring("accuracy", on_train=True, name="train_slow", lower_is_better=False, use_caching=False)
    watcher, seen = spy(before_valid="last_scores_train")
    iris_net(uncached, watcher, max_epochs=1, train_split=SPLIT).fit(X, y)
    assert list(seen["before_valid"][0]) == ["loss"]


def test_a_scoring_function_is_not_called_once_more_unless_it_is_asked():
    calls = []

    def count(net, X, y):
        calls.append(1)
        return 0.5

    scoring = EpochScoring(count, on_train=True, name="train_count")
    iris_net(scoring, torch_callback("spy", on_before_valid=lambda self: self.ctx.epoch), max_epochs=2).fit(X, y)
    assert len(calls) == 2


@pytest.mark.parametrize("direction", [True, False])
@pytest.mark.parametrize("scoring", [EpochScoring, BatchScoring])
def test_a_scoring_callback_knows_its_direction(scoring, direction):
    net = iris_net(scoring(error_rate, name="score", lower_is_better=direction)).initialize()
    assert lower_is_better(net, "score") is direction


def test_losses_are_minimised_and_accuracies_are_not():
    net = iris_net().initialize()
    directions = [lower_is_better(net, name) for name in ("train_loss", "valid_loss", "valid_acc", "unknown_loss")]
    assert directions == [True, True, False, True]
