"""Reading the history of a net."""

import math

import numpy as np
import pytest
from skorch.dataset import ValidSplit
from skorch.history import History

from mlr3torch_py.training.clock import moment_of, score_of, scores_by_epoch, take_back_epoch
from tests.helpers import Stops, X, iris_net, y


def test_training_batches_count_and_validation_batches_do_not():
    net = iris_net(max_epochs=2, train_split=ValidSplit(3)).fit(X, y)
    moment = moment_of(net.history)
    assert (moment.epoch, moment.batch, moment.firsts) == (2, 4, (1, 3))


def test_batches_of_an_interrupted_epoch_count_if_they_were_trained():
    net = iris_net(Stops(KeyboardInterrupt, 5), max_epochs=4).fit(X, y)
    moment = moment_of(net.history)
    assert (moment.epoch, moment.batch, moment.firsts) == (2, 5, (1, 4))


def test_a_net_without_history_is_at_its_beginning():
    moment = moment_of(History())
    assert (moment.epoch, moment.batch, moment.firsts) == (0, 0, ())


def test_an_epoch_in_which_nothing_was_trained_is_removed():
    net = iris_net(max_epochs=2).fit(X, y)
    take_back_epoch(net)
    assert len(net.history) == 1


def test_a_score_is_read_from_a_row():
    row = {"epoch": 1, "train_loss": 0.5, "none": None, "nan": math.nan, "array": np.array(2), "text": "x"}
    assert score_of(row, "train_loss") == 0.5
    assert score_of(row, "array") == 2.0
    assert [score_of(row, monitor) for monitor in ("absent", "none", "nan")] == [None] * 3
    with pytest.raises(TypeError, match="`monitor` is 'text', and the history has 'x'; record a number"):
        score_of(row, "text")


def test_only_evaluated_epochs_have_scores():
    rows = [{"score": 0.5}, {}, {"score": None}, {"score": math.nan}, {"score": 0.25}]
    assert scores_by_epoch(History(rows), "score") == [(1, 0.5), (5, 0.25)]
    assert scores_by_epoch(History([{}]), "score") == []
