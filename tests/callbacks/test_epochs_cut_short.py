"""An epoch in whose last stage another callback ends training, or copies the net, is complete for every callback."""

import contextlib
import copy

import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit

from mlr3torch_py import t_clbk
from tests.callbacks.test_belonging import KINDS, rates_in, rates_of_whole, scheduled
from tests.checkpoint.runs import checkpoint, final
from tests.helpers import Score, X, copies, iris_net, moved, weights, y

pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
ERRORS = pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])


class StopsOnce(Callback):
    """Ctrl-C, or an error, when an epoch ends."""

    def __init__(self, error, epoch=2):
        self.error = error
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise self.error("disk full")


def stopped(net):
    with contextlib.suppress(ZeroDivisionError):
        net.fit(X, y)
    return net


def scheduled_after(callback, scheduler, **params):
    """A net with a callback that runs after the score is recorded, and before the scheduler."""
    net = scheduled(copies(scheduler, 1)[0], **params)
    net.callbacks[1:1] = [("before", callback)]
    return net


@ERRORS
@KINDS
def test_a_scheduler_steps(scheduler, error):
    net = stopped(scheduled_after(StopsOnce(error), scheduler))
    assert all("event_lr" in row for row in net.history)
    net.partial_fit(X, y, epochs=3)
    assert rates_of_whole(scheduler, first=3, last=5) == rates_in(net, 3)


@KINDS
def test_a_scheduler_steps_in_a_copy(scheduler):
    class Copies(Callback):
        made = None

        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                Copies.made = copy.deepcopy(net)

    scheduled_after(Copies(), scheduler, max_epochs=3).fit(X, y)
    net = Copies.made.partial_fit(X, y, epochs=3)
    assert all("event_lr" in row for row in net.history)
    assert rates_of_whole(scheduler, first=3, last=5) == rates_in(net, 3)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_plateau_that_waits_for_its_score_steps_when_it_is_there(epoch):
    plateau = t_clbk("lr_reduce_on_plateau", monitor="score", patience=0, threshold=9.0, threshold_mode="abs")
    net = iris_net(plateau, Score([0.5] * 6), StopsOnce(KeyboardInterrupt, epoch)).fit(X, y)
    net.partial_fit(X, y, epochs=2)
    assert net.history[:, "event_lr"] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001][: epoch + 2])


@ERRORS
def test_a_run_is_resumed_with_the_rates_of_one_that_was_never_stopped(error, tmp_path):
    def net_of(folder, *callbacks):
        scheduler = t_clbk("lr_step", step_size=1, gamma=0.5)
        return iris_net(*callbacks, scheduler, checkpoint(tmp_path / folder, resume=True), module__p=0.5)

    torch.manual_seed(0)
    whole = net_of("whole").fit(X, y)
    torch.manual_seed(0)
    stopped(net_of("kept", StopsOnce(error)))
    resumed = net_of("kept").fit(X, y)
    assert final(tmp_path / "kept", resumed) == final(tmp_path / "whole", whole)


@ERRORS
@pytest.mark.parametrize("weight", [-1, 1000], ids=["before the score", "after it"])
def test_early_stopping_keeps_the_best_weights(weight, error):
    stopping = t_clbk("early_stopping", restore_best_weights=True, patience=9, weight=weight)
    net = stopped(iris_net(StopsOnce(error), stopping, train_split=ValidSplit(3, stratified=True)))
    best = weights(net)
    net.set_params(lr=50.0).partial_fit(X, y)
    assert dict(net.callbacks_)["early_stopping"].best_epoch == 2
    assert not moved(best, weights(net))


def test_early_stopping_keeps_weights_as_it_saw_them_in_its_turn():
    class Spoils(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                seen.append(weights(net))
                net.module_[0].bias.data.fill_(2.0)

    seen = []
    stopping = t_clbk("early_stopping", restore_best_weights=True, monitor="score", weight=0)
    net = iris_net(Score([0.5, 0.4]), stopping, Spoils(), StopsOnce(KeyboardInterrupt)).fit(X, y)
    assert not moved(seen[0], weights(net))


def test_an_error_of_the_end_of_the_epoch_is_a_note_on_that_by_which_training_ends():
    stopping = t_clbk("early_stopping", monitor="score")
    net = iris_net(Score(["high"]), StopsOnce(ZeroDivisionError, 1), stopping)
    with pytest.raises(ZeroDivisionError, match="disk full") as error:
        net.fit(X, y)
    assert error.value.__notes__ == [
        "at the end of the epoch CallbackSetEarlyStopping raised too: "
        """TypeError("`monitor` is 'score', and the history has 'high'; record a number")"""
    ]


def test_the_progress_shows_it_before_an_error(capfd):
    stopped(iris_net(StopsOnce(ZeroDivisionError), t_clbk("progress")))
    assert [line[:9] for line in capfd.readouterr().out.splitlines()] == ["Epoch 1/4", "Epoch 2/4"]
