"""Early stopping: what R recorded, and what a user of skorch expects."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import get_scorer
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import CallbackSet, CallbackSetEarlyStopping, t_clbk, torch_callback
from tests.helpers import Score, X, golden, iris_net, moved, weights, y

STOPPING = golden("early_stopping")["runs"]


@pytest.mark.parametrize("who_knows", ["the callback that records it", "early stopping"])
@pytest.mark.parametrize("run", STOPPING, ids=[run["id"] for run in STOPPING])
def test_training_ends_when_it_does_in_r(run, who_knows):
    is_asked = who_knows != "early stopping"
    stopping = CallbackSetEarlyStopping(
        run["patience"], run["min_delta"], monitor="score", lower_is_better=None if is_asked else run["minimize"]
    )
    score = Score(run["scores"], run["minimize"] if is_asked else None)
    net = iris_net(score, stopping, max_epochs=run["max_epochs"], batch_size=150).fit(X, y)
    assert len(net.history) == run["epochs_trained"]
    assert stopping.best_epoch == stopping.best_epochs == run["best_epochs"]
    assert stopping.best_score == run["best_score"]
    assert stopping.stagnation == run["stagnation"]


SCORES = [0.5, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_stopping_continues_across_calls(stop):
    stopping = CallbackSetEarlyStopping(2, monitor="score")
    net = iris_net(("stopping", stopping), ("score", Score(SCORES)), max_epochs=stop, batch_size=150).fit(X, y)
    net = pickle.loads(pickle.dumps(net)).set_params(max_epochs=7 - stop)
    net.partial_fit(X, y)
    assert len(net.history) == 6
    assert dict(net.callbacks_)["stopping"].best_epoch == 4


def test_a_training_that_was_stopped_stays_stopped():
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


def test_the_best_weights_are_restored():
    class Keeps(Callback):
        def on_epoch_end(self, net, **kwargs):
            kept.append(weights(net))

    for restore in (True, False):
        kept = []
        stopping = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=restore)
        net = iris_net(Score(SCORES), stopping, Keeps(), max_epochs=7, batch_size=150).fit(X, y)
        assert len(kept) == 6
        assert not moved(kept[3 if restore else 5], weights(net))


class Centred(nn.Linear):
    """Subtracts a running mean that is in no state dict."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return super().forward(x - self.mean)


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_buffers_that_are_not_persistent_are_restored_with_the_best_weights(is_reloaded):
    class Keeps(Callback):
        def on_epoch_end(self, net, **kwargs):
            kept.append(net.predict_proba(X))
            if is_reloaded:
                stopping = dict(net.callbacks_)["early_stopping"]
                stopping.load_state_dict(copy.deepcopy(stopping.state_dict()))

    kept = []
    stopping = t_clbk("early_stopping", patience=2, monitor="score", restore_best_weights=True)
    net = iris_net(Score(SCORES), stopping, Keeps(), module=Centred, max_epochs=7).fit(X, y)
    assert np.array_equal(net.predict_proba(X), kept[3])


def test_a_state_goes_through_save_and_load():
    stopping = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=True)
    iris_net(Score(SCORES), stopping, batch_size=150, max_epochs=3).fit(X, y)
    again = CallbackSetEarlyStopping(2, monitor="score", restore_best_weights=True)
    again.load_state_dict(stopping.state_dict())
    assert (again.best_epoch, again.best_score, again.stagnation) == (2, 0.4, 1)
    other = CallbackSetEarlyStopping()
    with pytest.warns(UserWarning, match="`state` is of the score 'score', but `monitor` is 'valid_loss'"):
        other.load_state_dict(stopping.state_dict())
    assert (other.best_epoch, other.best_score, other.stagnation) == (None, None, 0)


def test_a_resumed_script_may_monitor_another_score(tmp_path):
    def net_of(monitor, epochs):
        stopping = t_clbk("early_stopping", monitor=monitor, patience=9, restore_best_weights=True)
        checkpoint = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
        return iris_net(stopping, Score(SCORES), checkpoint, batch_size=150, max_epochs=epochs)

    net_of("score", 3).fit(X, y)
    with (
        pytest.warns(UserWarning, match="resumed with other settings: callbacks__early_stopping__monitor"),
        pytest.warns(UserWarning, match="`state` is of the score 'score', but `monitor` is 'train_loss'"),
        pytest.warns(UserWarning, match="the best epoch is 3, whose weights were not kept"),
    ):
        net = net_of("train_loss", 6).fit(X, y)
    best = 1 + int(np.argmin(net.history[:, "train_loss"]))
    assert dict(net.callbacks_)["early_stopping"].best_epoch == best


def test_a_score_that_is_missing_is_named():
    with pytest.raises(ValueError, match="`monitor` is 'trian_loss', .* did you mean 'train_loss'"):
        iris_net(CallbackSetEarlyStopping(monitor="trian_loss")).fit(X, y)


RISING = [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_rising_accuracy_ends_no_training_and_its_best_weights_are_the_last():
    stopping = t_clbk("early_stopping", patience=1, monitor="score", restore_best_weights=True)
    net = iris_net(Score(RISING, lower_is_better=False), stopping, max_epochs=5, batch_size=150).fit(X, y)
    assert (len(net.history), stopping.callback.best_epoch) == (5, 5)


def test_a_score_of_unknown_direction_is_minimised_with_a_warning():
    stopping = CallbackSetEarlyStopping(2, monitor="score")
    net = iris_net(Score(RISING, lower_is_better=None), stopping, max_epochs=5, batch_size=150)
    with pytest.warns(UserWarning, match="`monitor` is 'score', which is minimised, .* give `lower_is_better`") as said:
        net.fit(X, y)
    assert (len(net.history), stopping.best_epoch, len(said)) == (3, 1, 1)


@pytest.mark.parametrize(
    ("scoring", "monitor"),
    [
        ("accuracy", "train_accuracy"),
        ("neg_log_loss", "train_log_loss"),
        (get_scorer("accuracy"), "acc"),
        (None, "acc"),
    ],
)
def test_skorchs_default_direction_of_a_scorer_is_not_believed(scoring, monitor):
    scoring = EpochScoring(scoring, on_train=True, name=monitor)
    with pytest.warns(UserWarning, match=f"`monitor` is '{monitor}', which is minimised"):
        iris_net(scoring, CallbackSetEarlyStopping(monitor=monitor), max_epochs=1).fit(X, y)


def test_without_patience_training_never_stops():
    stopping = CallbackSetEarlyStopping(0, monitor="score")
    net = iris_net(Score(RISING), stopping, max_epochs=5, batch_size=150).fit(X, y)
    assert (len(net.history), stopping.best_epoch, stopping.stagnation) == (5, 1, 4)


def test_the_best_weights_are_restored_when_training_ends_by_an_error():
    kept = []

    def keep(self):
        kept.append(weights(self.ctx.net))

    def fail(self):
        if self.ctx.epoch == 4:
            raise RuntimeError("disk full")

    stopping = t_clbk("early_stopping", patience=9, monitor="score", restore_best_weights=True)
    others = torch_callback("keep", on_epoch_end=keep), torch_callback("fail", on_batch_end=fail)
    net = iris_net(Score([0.5, 0.4, 0.6, 0.7]), stopping, *others, batch_size=150)
    with pytest.raises(RuntimeError, match="disk full"):
        net.fit(X, y)
    assert not moved(kept[1], weights(net))


def test_an_error_before_training_restores_nothing():
    def fail(self):
        raise RuntimeError("no")

    trained, loaded = (CallbackSetEarlyStopping(monitor="score", restore_best_weights=True) for _ in range(2))
    iris_net(Score(SCORES), trained, batch_size=150, max_epochs=3).fit(X, y)
    loaded.load_state_dict(trained.state_dict())
    net = iris_net(torch_callback("fails", on_begin=fail), Score(SCORES), loaded).initialize()
    before = weights(net)
    with pytest.raises(RuntimeError, match="no"):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))


def test_what_changes_the_weights_at_the_end_is_not_undone():
    class Doubles(CallbackSet):
        default_weight = 2000

        def on_train_end(self, net, **kwargs):
            with torch.no_grad():
                net.module_[0].bias.fill_(2.0)

    stopping = t_clbk("early_stopping", monitor="score", restore_best_weights=True)
    net = iris_net(Score(RISING), stopping, Doubles(), batch_size=150).fit(X, y)
    assert net.module_[0].bias.tolist() == [2.0] * 3


def test_a_score_that_is_nan_is_warned_of_once():
    stopping = CallbackSetEarlyStopping(9, monitor="score")
    net = iris_net(Score([0.5, math.nan, math.nan]), stopping, max_epochs=3, batch_size=150)
    with pytest.warns(UserWarning, match="`monitor` is 'score', which is NaN in epoch 2") as said:
        net.fit(X, y)
    assert len(said) == 1


@pytest.mark.parametrize("arguments", [{"patience": -1}, {"min_delta": -1}, {"monitor": 3}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(arguments))}`"):
        t_clbk("early_stopping", **arguments)


def test_no_warning_is_given_if_nothing_was_stopped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = iris_net(CallbackSetEarlyStopping(3, monitor="train_loss"), max_epochs=1).fit(X, y)
        net.partial_fit(X, y)
    assert len(net.history) == 2


@pytest.mark.parametrize("verbose", [0, 1])
def test_it_says_why_training_stops_if_the_net_is_verbose(verbose, capsys):
    stopping = t_clbk("early_stopping", patience=2, min_delta=100.0)
    iris_net(stopping, max_epochs=9, verbose=verbose, train_split=ValidSplit(3)).fit(X, y)
    line = "Stopping at epoch 3, since valid_loss has not improved in the last 2 epochs; the best epoch is 1."
    assert (line in capsys.readouterr().out) == bool(verbose)


def test_another_sink_is_told_whatever_the_verbosity(capsys):
    lines = []
    stopping = t_clbk("early_stopping", patience=2, min_delta=100.0, sink=lines.append)
    iris_net(stopping, max_epochs=9, train_split=ValidSplit(3)).fit(X, y)
    assert len(lines) == 1
    with pytest.raises(TypeError, match="`sink` is 3; give a function"):
        t_clbk("early_stopping", sink=3)


@pytest.mark.parametrize("state", [None, [1], {"monitor": "valid_loss"}])
def test_a_state_of_another_form_is_refused(state):
    with pytest.raises(TypeError, match=r"`state` is .*; give what state_dict\(\) has returned"):
        CallbackSetEarlyStopping().load_state_dict(state)


def test_a_sink_takes_a_text():
    with pytest.raises(TypeError, match="`sink` must be a function that takes a text"):
        t_clbk("early_stopping", sink=lambda: None)
