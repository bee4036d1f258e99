"""Which checkpoints stay."""

import pytest
from skorch.callbacks import Callback, EpochScoring

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests.checkpoint.runs import checkpoint, files, run
from tests.helpers import X, iris_net, moved, weights, y


class Score(Callback):
    """A score that is best at epoch 2."""

    name = "score"
    lower_is_better = True

    def on_epoch_end(self, net, **kwargs):
        net.history.record("score", abs(len(net.history) - 2.0))


def stay(path, epochs=6, freq=1, **params):
    iris_net(Score(), checkpoint(path, freq, **params), max_epochs=epochs).fit(X, y)
    return CheckpointFolder(path).epochs()


def test_all_stay_unless_asked_otherwise(tmp_path):
    assert stay(tmp_path) == [6, 5, 4, 3, 2, 1]


@pytest.mark.slow
def test_the_last_and_the_best_stay(tmp_path):
    assert stay(tmp_path / "last", keep_last=2) == [6, 5]
    assert stay(tmp_path / "both", keep_last=2, keep_best=True, monitor="score") == [6, 5, 2]
    assert stay(tmp_path / "best", keep_best=True, monitor="score") == [6, 2]
    assert stay(tmp_path / "worst", keep_best=True, monitor="score", lower_is_better=False) == [6]
    assert stay(tmp_path / "rare", freq=4, keep_last=1, keep_best=True, monitor="score") == [6, 4]
    assert [name for name in files(tmp_path / "last") if "4" in name] == []


def test_the_best_by_a_score_of_unknown_direction_is_warned_of(tmp_path):
    scoring = EpochScoring("neg_log_loss", on_train=True, name="train_log_loss")
    best = checkpoint(tmp_path, keep_best=True, monitor="train_log_loss")
    with pytest.warns(UserWarning, match="`monitor` is 'train_log_loss', which is minimised"):
        iris_net(scoring, best, max_epochs=1).fit(X, y)


def test_the_last_ones_can_be_resumed(tmp_path):
    whole = run(tmp_path / "whole", 5)
    last = {"keep_last": 1, "resume": True}
    iris_net(checkpoint(tmp_path / "kept", **last), max_epochs=3, batch_size=150).fit(X, y)
    again = iris_net(checkpoint(tmp_path / "kept", **last), max_epochs=5, batch_size=150).fit(X, y)
    assert len(again.history) == 5
    assert CheckpointFolder(tmp_path / "kept").epochs() == [5]
    assert len(whole.history) == 5


@pytest.mark.sample(3)
@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_script_of_several_calls_can_be_started_again(keep_last, tmp_path):
    def script():
        net = iris_net(checkpoint(tmp_path, resume=True, keep_last=keep_last), max_epochs=2, batch_size=150)
        return net.fit(X, y).partial_fit(X, y).partial_fit(X, y)

    ended = script()
    assert {2, 4, 6} <= set(CheckpointFolder(tmp_path).epochs())
    again = script()
    assert len(again.history) == 6
    assert not moved(weights(ended), weights(again))


def test_what_a_killed_deletion_left_is_removed_next_time(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "state1.json").unlink()
    net = iris_net(checkpoint(tmp_path, resume=True, keep_last=2), max_epochs=3, batch_size=150).fit(X, y)
    assert not [name for name in files(tmp_path) if "1" in name]
    assert not moved(weights(net), weights(run(tmp_path, 3, resume=True)))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"keep_last": 0}, "`keep_last` is 0; give a whole number of checkpoints, at least 1"),
        ({"keep_best": 1}, "`keep_best` is 1"),
        (
            {"monitor": "valid_loss"},
            "`keep_best` is False and `monitor` is 'valid_loss', .*; give keep_best=True",
        ),
        ({"keep_best": True}, "`keep_best` is True and `monitor` is None, .*; give keep_best=True"),
        ({"monitor": 3, "keep_best": True}, "`monitor` is 3"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, tmp_path):
    with pytest.raises((TypeError, ValueError), match=error):
        t_clbk("checkpoint", path=tmp_path, freq=1, **arguments).callback.require_params()


class NamedScore(Score):
    def __init__(self, name):
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        net.history.record(self.name, 1.0)


def test_a_score_that_no_epoch_has_is_named(tmp_path):
    kept = checkpoint(tmp_path, keep_best=True, monitor="scores", lower_is_better=True)
    with pytest.warns(UserWarning, match="`monitor` is 'scores', which no epoch has recorded; did you mean 'score'"):
        iris_net(NamedScore("score"), kept, max_epochs=2).fit(X, y)


@pytest.mark.slow
def test_a_row_of_the_history_is_written_once(tmp_path):
    run(tmp_path / "a", 40)
    folder = tmp_path / "a"
    sizes = [(folder / f"state{n}.json").stat().st_size for n in (5, 40)]
    assert abs(sizes[1] - sizes[0]) < 200
    assert len((folder / ".history.jsonl").read_text().splitlines()) == 39
