"""Early stopping that waits for the last row of a schedule, with `after_schedule=True`."""

import copy
import pickle

import pytest
import torch
from skorch.callbacks import Callback

from mlr3torch_py import CallbackSetUnfreeze, Freezer, Plateau, select_all, select_last, select_prefix, t_clbk
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, final
from tests.helpers import X, iris_net, moved, weights, y

LAST_IN_6 = {"epoch": [3, 6], "weights": [select_prefix("3"), select_prefix("0")]}


class Score(Callback):
    """Records scores that are given, one per epoch, and the last one ever after."""

    def __init__(self, *scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        net.history.record("my_loss", self.scores[min(len(net.history), len(self.scores)) - 1])


def unfreeze(table=LAST_IN_6):
    return ("unfreeze", CallbackSetUnfreeze(select_last(1), table))


def stopping(patience=2, **params):
    return t_clbk("early_stopping", patience=patience, monitor="my_loss", **{"after_schedule": True, **params})


def n_epochs(*callbacks, scores=(0.5,), **params):
    return len(iris_net(*callbacks, Score(*scores), **{"max_epochs": 20, **params}).fit(X, y).history)


def test_patience_is_counted_from_the_epoch_of_the_last_row_on():
    assert n_epochs(unfreeze(), stopping(2)) == 8  # 6 is the first to count, and 7 and 8 are no better


def test_by_default_training_stops_before_the_last_row():
    assert n_epochs(unfreeze(), stopping(2, after_schedule=False)) == 3


def test_the_last_phase_need_not_beat_the_phases_before():
    assert n_epochs(unfreeze(), stopping(2), scores=[0.1] * 5 + [0.9, 0.8, 0.7, 0.6, 0.6]) == 11


@pytest.mark.parametrize("place", ["before", "behind"])
def test_the_order_of_the_callbacks_does_not_matter(place):
    callbacks = [unfreeze(), stopping(2)]
    assert n_epochs(*(callbacks[::-1] if place == "before" else callbacks)) == 8


def test_a_row_of_a_batch_counts_in_its_epoch():
    assert n_epochs(unfreeze({"batch": [8], "weights": [select_all()]}), stopping(2)) == 5  # in epoch 3


@pytest.mark.parametrize(("patience", "expected"), [(1, 5), (3, 7)])
def test_rows_that_wait_for_a_condition_are_waited_for(patience, expected):
    table = {"when": [Plateau("my_loss", patience=2)], "weights": [select_all()]}  # met when epoch 4 begins
    assert n_epochs(unfreeze(table), stopping(patience)) == expected


def test_a_condition_that_is_never_met_lets_training_go_on():
    table = {"when": [Plateau("my_loss", patience=9)], "weights": [select_all()]}
    assert n_epochs(unfreeze(table), stopping(1), max_epochs=8) == 8


def test_all_freezing_callbacks_are_waited_for():
    early = unfreeze({"epoch": [2], "weights": [select_all()]})
    assert n_epochs(early, Freezer(names="0.bias", until_epoch=5), stopping(1)) == 7


def test_a_freezer_is_done_with_whichever_of_its_ends_comes_first():
    assert n_epochs(Freezer(names="0.bias", until_epoch=2, until_step=10_000), stopping(1)) == 4


@pytest.mark.usefixtures("no_schedule_warnings")
def test_rows_that_change_nothing_are_not_waited_for():
    table = {"epoch": [2, 9], "weights": [select_all(), select_all()]}
    assert n_epochs(unfreeze(table), stopping(1)) == 3


def test_a_row_that_scales_rates_alone_is_waited_for():
    table = {"epoch": [2, 5], "weights": [select_all()] * 2, "lr_mult": [None, 0.1], "lr_mult_from": ["start", "row"]}
    assert n_epochs(unfreeze(table), stopping(1)) == 6


def test_the_best_epoch_is_that_of_the_whole_training():
    scores = [0.5, 0.1, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4]
    net = iris_net(unfreeze(), stopping(2, restore_best_weights=True), Score(*scores), max_epochs=20).fit(X, y)
    (found,) = [one for _, one in net.callbacks_ if type(one).__name__ == "CallbackSetEarlyStopping"]
    assert (len(net.history), found.best_epoch, found.best_score, found.stagnation) == (9, 2, 0.1, 2)


@pytest.mark.sample(5)
@pytest.mark.parametrize("stop", [lambda net: net, lambda net: pickle.loads(pickle.dumps(net)), copy.deepcopy])
@pytest.mark.parametrize("epochs", [2, 5, 6, 7])
def test_counting_goes_on_in_a_training_that_goes_on(stop, epochs):
    net = iris_net(unfreeze(), stopping(2), Score(0.5), max_epochs=epochs).fit(X, y)
    assert len(stop(net).set_params(max_epochs=20).partial_fit(X, y).history) == 8


@pytest.mark.sample(3)
@pytest.mark.parametrize("crash", [4, 7])
def test_a_run_resumed_from_a_checkpoint_stops_as_one_that_never_stopped(crash, tmp_path):
    table = {"when": [Plateau("my_loss", patience=3)], "weights": [select_all()]}

    def net_of(path, *more):
        callbacks = [checkpoint(path, resume=True), stopping(3, restore_best_weights=True), unfreeze(table), Score(0.5)]
        return iris_net(*callbacks, *more, max_epochs=20)

    torch.manual_seed(0)
    complete = net_of(tmp_path / "whole").fit(X, y)
    torch.manual_seed(0)
    with pytest.raises(CrashError):
        net_of(tmp_path / "kept", Crashes(crash)).fit(X, y)
    resumed = net_of(tmp_path / "kept").fit(X, y)
    assert len(resumed.history) == len(complete.history) == 8
    assert final(tmp_path / "kept", resumed) == final(tmp_path / "whole", complete)
    again = net_of(tmp_path / "whole")
    with pytest.warns(UserWarning, match="had stopped improving in an earlier call, so nothing is trained"):
        again.fit(X, y)
    assert not moved(weights(again), weights(complete))


def test_a_wrong_value_is_refused():
    with pytest.raises((TypeError, ValueError), match="`after_schedule` is 2; give True or False"):
        stopping(after_schedule=2)


def test_without_a_freezing_callback_all_epochs_count_and_that_is_said():
    with pytest.warns(UserWarning, match="`after_schedule` is True, but no callback of the net has a schedule"):
        assert n_epochs(stopping(2)) == 3
