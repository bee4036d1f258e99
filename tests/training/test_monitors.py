"""Scores that callbacks monitor: those that cannot come are refused, and those that come late are found."""

import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit

from mlr3torch_py import CallbackSetEarlyStopping, Plateau, select_all, select_last, t_clbk, torch_callback
from tests.helpers import X, iris_net, moved, weights, y


def by_plateau(monitor):
    table = {"when": [Plateau(monitor, patience=1)], "weights": [select_all()]}
    return t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table)


MONITORING = {
    "early_stopping": lambda monitor: t_clbk("early_stopping", monitor=monitor, patience=1),
    "lr_reduce_on_plateau": lambda monitor: t_clbk("lr_reduce_on_plateau", monitor=monitor, patience=0),
    "unfreeze": by_plateau,
}
every_one = pytest.mark.parametrize("monitoring", MONITORING.values(), ids=MONITORING)


class Steps(Callback):
    n_ = 0

    def on_batch_end(self, net, training=None, **kwargs):
        self.n_ += bool(training)


class Score(Callback):
    """Records given scores, one per epoch; what is "left out" is not recorded."""

    def __init__(self, scores, name="own_loss"):
        self.scores = scores
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        score = self.scores[len(net.history) - 1]
        if score != "left out":
            net.history.record(self.name, score)


@every_one
def test_a_score_of_validation_is_refused_without_validation_data(monitoring):
    steps = Steps()
    net = iris_net(monitoring("valid_loss"), steps, train_split=None)
    with pytest.raises(ValueError, match="`monitor` is 'valid_loss', but the net has no validation data; give it a"):
        net.fit(X, y)
    assert steps.n_ == 0
    assert len(net.history) == 0
    net.set_params(train_split=ValidSplit(3), max_epochs=2).fit(X, y)


@every_one
def test_a_misspelt_score_is_refused_before_the_first_step(monitoring):
    steps = Steps()
    with pytest.raises(ValueError, match="`monitor` is 'train_los', which nothing .* did you mean 'train_loss'"):
        iris_net(monitoring("train_los"), steps).fit(X, y)
    assert steps.n_ == 0


@every_one
@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("valid_loss_best", "which only says whether an epoch is the best one so far; give 'valid_loss'"),
        ("batches", "which nothing in the net records as a number"),
        ("event_unfreeze", "which nothing in the net records as a number"),
        ("cache_hits", "which nothing in the net records as a number"),
    ],
)
def test_what_is_no_score_is_refused_before_the_first_step(monitor, message, monitoring):
    steps = Steps()
    net = iris_net(steps, t_clbk("freezer", names="0.bias"), monitoring(monitor))
    with pytest.raises(ValueError, match=f"`monitor` is '{monitor}', {message}"):
        net.fit(X, y)
    assert steps.n_ == 0


def test_a_flag_that_code_records_is_no_score():
    flag = torch_callback("flag", on_epoch_end=lambda self: self.ctx.net.history.record("own_loss", np.bool_(1)))
    with pytest.raises(TypeError, match="`monitor` is 'own_loss', and the history has True; record a number"):
        iris_net(flag, MONITORING["early_stopping"]("own_loss")).fit(X, y)


@pytest.mark.parametrize("monitor", ["event_lr", "n_trainable", "dur", "train_batch_count"])
def test_a_number_that_a_callback_records_may_be_monitored(monitor):
    freezer, stopping = t_clbk("freezer", names="0.bias"), t_clbk("early_stopping", monitor=monitor, patience=9)
    for rates in (t_clbk("lr_step", step_size=1), LRScheduler("StepLR", step_size=1)):
        net = iris_net(freezer, rates, stopping, callbacks__early_stopping__lower_is_better=True, max_epochs=1)
        assert monitor in net.fit(X, y).history[-1]


@every_one
def test_a_score_of_the_user_is_not_refused(monitoring):
    recorders = [
        Score([0.5] * 2, "valid_loss"),
        torch_callback("mine", on_epoch_end=lambda self: self.ctx.net.history.record("valid_loss", 0.5)),
        EpochScoring("accuracy", on_train=True, name="valid_loss", lower_is_better=False),
    ]
    for recorder in recorders:
        net = iris_net(("recorder", recorder) if isinstance(recorder, Callback) else recorder, monitoring("valid_loss"))
        net.set_params(train_split=None, max_epochs=2, callbacks__valid_loss=None).fit(X, y)
        assert len(net.history[:, "valid_loss"]) == 2


KEY = "own_loss"


def write_half(net):
    net.history.record("own_loss", 0.5)


class ByName(Score):
    def on_epoch_end(self, net, **kwargs):
        """Record."""
        super().on_epoch_end(net, **kwargs)


class ByConstant(Callback):
    def on_epoch_end(self, net, **kwargs):
        mode = "eval"
        net.history.record(KEY if mode else mode, 0.5)


class ByFunction(Callback):
    def on_epoch_end(self, net, **kwargs):
        write_half(net)


class ByGiven(Callback):
    def __init__(self, write):
        self.write = write

    def on_epoch_end(self, net, **kwargs):
        self.write(net)


class Writer:
    def write(self, net):
        net.history.record(f"{KEY[:3]}_loss", 0.5)


def formatted(net, name, score):
    net.history.record("{}_loss".format(name), score)  # noqa: UP032


def added(net, name, score):
    net.history.record("" + name.lower() + "_loss", score)


def joined(net, name, score):
    net.history.record("_".join((name, "loss")), score)


def by_keyword(net, name, score):
    net.history.record(attr="" + name.lower() + "_loss", value=score)


def passed_on(net, name, score):
    (lambda record: record(f"{name}_loss", score))(net.history.record)


def into_row(net, name, score):
    net.history[-1][f"{name}_loss"] = score


def updated(net, name, score):
    net.history[-1].update({f"{name}_loss": score})


@pytest.mark.parametrize(
    "record",
    [formatted, added, joined, by_keyword, passed_on, into_row, updated],
    ids=lambda f: f.__name__,
)
def test_a_score_whose_name_is_worked_out_is_not_refused(record):
    mine = torch_callback("mine", on_epoch_end=lambda self: record(self.ctx.net, "own", 0.5))
    net = iris_net(mine, MONITORING["early_stopping"]("own_loss"), max_epochs=2, batch_size=150).fit(X, y)
    assert net.history[:, "own_loss"] == [0.5, 0.5]


@every_one
@pytest.mark.parametrize(
    "recorder", [ByName([0.5] * 2), ByConstant(), ByFunction(), ByGiven(write_half), ByGiven(Writer().write)]
)
def test_a_score_is_not_refused_whatever_way_code_records_it(recorder, monitoring):
    net = iris_net(("recorder", recorder), monitoring("own_loss"), max_epochs=2, batch_size=150).fit(X, y)
    assert net.history[:, "own_loss"] == [0.5, 0.5]


def several(net, X, y):
    net.history.record("own_loss", 0.5)
    return 0.5


class Scorer:
    def __call__(self, net, X, y):
        return several(net, X, y)


class Merged(Callback):
    def on_epoch_end(self, net, **kwargs):
        row, name = net.history.to_list()[-1], "own"
        row |= {name + "_loss": 0.5}


class Imported(Callback):
    def on_epoch_end(self, net, **kwargs):
        from tests.training.stages import record_half

        record_half(net)


@every_one
@pytest.mark.parametrize(
    "recorder",
    [EpochScoring(several, on_train=True), EpochScoring(Scorer(), on_train=True, name="s"), Merged(), Imported()],
)
def test_a_score_is_not_refused_where_only_an_epoch_shows_it(recorder, monitoring):
    net = iris_net(("recorder", recorder), monitoring("own_loss"), max_epochs=2, batch_size=150).fit(X, y)
    assert net.history[:, "own_loss"] == [0.5, 0.5]


class Recording(torch.nn.CrossEntropyLoss):
    def forward(self, *args):
        self.net[0].history.record("own_loss", 0.5)
        return super().forward(*args)


class Held(type(iris_net())):
    def initialize_criterion(self):
        super().initialize_criterion()
        self.criterion_.net = [self]
        return self


def test_a_score_that_a_criterion_records_is_not_refused():
    net = iris_net(MONITORING["early_stopping"]("own_loss"), cls=Held, criterion=Recording, max_epochs=2)
    assert net.fit(X, y).history[:, "own_loss"] == [0.5, 0.5]


class Timer(Callback):
    """Records other things than scores, and a score with another name."""

    def on_epoch_end(self, net, **kwargs):
        self.record()
        self.record(0, 1)
        net.history.record("own_losses", min(1.0, net.history[-1]["train_loss"]))

    def record(self, *args):
        pass


@every_one
def test_what_records_other_things_is_refused_after_the_first_epoch(monitoring):
    net = iris_net(("timer", Timer()), monitoring("own_loss"))
    with pytest.raises(ValueError, match="`monitor` is 'own_loss', which nothing in the net records"):
        net.fit(X, y)
    assert len(net.history) == 1


@every_one
def test_a_misspelt_score_is_refused_before_the_first_step_whatever_else_is_recorded(monitoring):
    net = iris_net(("timer", Timer()), monitoring("valid_los"))
    with pytest.raises(ValueError, match="did you mean 'valid_loss'"):
        net.fit(X, y)
    assert len(net.history) == 0


@every_one
def test_a_score_that_never_came_is_warned_of(monitoring):
    names = iter(["other"] * 4)
    net = iris_net(torch_callback("mine", on_epoch_end=lambda self: self.ctx.net.history.record(next(names), 0.5)))
    net.set_params(callbacks=[*net.callbacks, monitoring("own_loss")], max_epochs=2)
    with pytest.warns(UserWarning, match="`monitor` is 'own_loss', which no epoch has recorded; "):
        net.fit(X, y)


SCORES = [0.5, 0.4, 0.6, 0.7, 0.3]


@pytest.mark.parametrize("weight", [-1, 0, 1000])
def test_early_stopping_finds_a_score_that_is_recorded_after_it(weight):
    stopping = t_clbk("early_stopping", monitor="own_loss", patience=2, weight=weight, restore_best_weights=True)
    kept = torch_callback("kept", on_epoch_end=lambda self: epochs.append(weights(self.ctx.net)))
    epochs = []
    net = iris_net(stopping, kept, Score(SCORES), max_epochs=5, batch_size=150).fit(X, y)
    assert len(net.history) == 4
    assert not moved(epochs[1], weights(net))


def test_a_scheduler_finds_a_score_that_is_recorded_after_it():
    def rates(*callbacks):
        return iris_net(*callbacks, max_epochs=5, batch_size=150).fit(X, y).history[:, "event_lr"]

    plateau = t_clbk("lr_reduce_on_plateau", monitor="own_loss", patience=0)
    before = rates(Score(SCORES), plateau)
    assert rates(plateau, Score(SCORES)) == before
    assert len(set(before)) > 1


@pytest.mark.parametrize("gap", ["left out", None, math.nan])
def test_an_epoch_without_a_score_counts_neither_for_nor_against_patience(gap):
    scores = [gap, 0.5, gap, gap, 0.6, gap, 0.7, 0.1]
    stopping = CallbackSetEarlyStopping(2, monitor="own_loss")
    net = iris_net(Score(scores), stopping, max_epochs=8, batch_size=150)
    if isinstance(gap, float):
        with pytest.warns(UserWarning, match="`monitor` is 'own_loss', which is NaN in epoch 1") as caught:
            net.fit(X, y)
        assert len(caught) == 1
    else:
        net.fit(X, y)
    assert len(net.history) == 7
    assert (stopping.best_epoch, stopping.stagnation) == (2, 2)


def test_validation_every_other_epoch():
    class EveryOther(type(iris_net())):
        def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
            if training or len(self.history) % 2 == 0:
                super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)

    for monitoring in MONITORING.values():
        net = iris_net(monitoring("valid_loss"), cls=EveryOther, max_epochs=4, train_split=ValidSplit(3))
        net.set_params(callbacks__valid_acc=None).fit(X, y)
        assert ["valid_loss" in row for row in net.history.to_list()] == [False, True, False, True][: len(net.history)]


def test_scores_may_be_scalars_of_other_libraries():
    scores = [np.float32(0.5), np.array(0.4), torch.tensor(0.6), 0.7, 0.1]
    stopping = CallbackSetEarlyStopping(2, monitor="own_loss")
    assert len(iris_net(Score(scores), stopping, max_epochs=5, batch_size=150).fit(X, y).history) == 4
    with pytest.raises(TypeError, match="`monitor` is 'own_loss', and the history has 'high'; record a number"):
        iris_net(Score(["high"]), CallbackSetEarlyStopping(monitor="own_loss"), max_epochs=1).fit(X, y)
