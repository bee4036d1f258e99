"""Early stopping: what R recorded, and what a user of skorch expects."""

import pickle
import warnings

import pytest
from skorch.callbacks import Callback

from mlr3torch_py import CallbackSetEarlyStopping, t_clbk
from tests.helpers import X, golden, iris_net, moved, weights, y

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


def test_no_warning_is_given_if_nothing_was_stopped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = iris_net(CallbackSetEarlyStopping(3, monitor="train_loss"), max_epochs=1).fit(X, y)
        net.partial_fit(X, y)
    assert len(net.history) == 2
