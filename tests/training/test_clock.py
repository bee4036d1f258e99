"""Reading the history of a net."""

import math

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


def test_a_missing_score_is_named_with_the_nearest():
    row = {"epoch": 1, "train_loss": 0.5, "train_batch_count": 3}
    assert score_of(row, "train_loss") == 0.5
    with pytest.raises(ValueError, match="`monitor` is 'train_los', .* did you mean 'train_loss'"):
        score_of(row, "train_los")
    with pytest.raises(ValueError, match="did you mean 'train_loss'"):
        scores_by_epoch(History([row]), "train_los")


def test_scores_come_with_their_epochs_and_none_becomes_nan():
    rows = [{"score": 0.5}, {}, {"score": None}, {"score": 0.25}]
    first, without, last = scores_by_epoch(History(rows), "score")
    assert (first, last) == ((1, 0.5), (4, 0.25))
    assert without[0] == 3
    assert math.isnan(without[1])
    assert scores_by_epoch(History([{}]), "score") == []
