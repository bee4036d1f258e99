"""The best weights of a phase at its end, with `restore_best_between`."""

import copy
import logging
import pickle

import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochScoring, LRScheduler, PassthroughScoring
from torch import nn
from torch.optim import lr_scheduler

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Freezer,
    Plateau,
    gradual_unfreezing,
    select_all,
    select_last,
    select_prefix,
    t_clbk,
)
from tests.checkpoint.runs import checkpoint, resumed_equals_whole
from tests.helpers import X, iris_net, moved, weights, y

HEAD = select_last(1)
PHASES = {"epoch": [4, 7], "weights": [select_prefix("3"), select_prefix("0")]}


class Score(Callback):
    """Records scores that are given, one per epoch; None for an epoch without one."""

    def __init__(self, scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        net.history.record("my_loss", self.scores[len(net.history) - 1])


class Weights(Callback):
    """Keeps the weights at the end of each epoch, and before each batch of it."""

    def __init__(self):
        self.ends_ = {}
        self.begins_ = {}

    def on_train_begin(self, net, **kwargs):
        self.begins_.clear()

    def on_batch_begin(self, net, training=None, **kwargs):
        if training:
            self.begins_.setdefault(len(net.history), []).append(weights(net))

    def on_epoch_end(self, net, **kwargs):
        self.ends_[len(net.history)] = weights(net)


def restoring(table=PHASES, starting=HEAD, **params):
    params = {"monitor": "my_loss", "restore_best_between": True} | params
    return ("unfreeze", CallbackSetUnfreeze(starting, table, **params))


def train(scores, *callbacks, table=PHASES, net=None, **params):
    seen = Weights()
    net = iris_net(Score(scores), restoring(table), seen, *callbacks, max_epochs=len(scores), **params)
    return net.fit(X, y), dict(net.callbacks_)["Weights"]


SCORES = [0.9, 0.5, 0.6, 0.8, 0.9, 0.7, 0.4, 0.3]  # the best of the phases: 2, 6 (which is the last one), 8


def test_the_next_phase_begins_with_the_best_weights_of_the_one_before(caplog):
    with caplog.at_level(logging.INFO, "mlr3torch_py"):
        _, seen = train(SCORES)
    assert not moved(seen.begins_[4][0], seen.ends_[2])
    assert moved(seen.begins_[4][0], seen.ends_[3])
    assert not moved(seen.begins_[7][0], seen.ends_[6])
    said = [one.getMessage() for one in caplog.records if "restored" in one.getMessage()]
    assert said == ["`unfreeze`: restored the best weights of the phase that ends, those of epoch 2 (my_loss 0.5)"]


def test_the_best_weights_of_a_phase_are_kept_if_another_callback_ends_training_in_their_epoch():
    class StopsIn2(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise KeyboardInterrupt

    seen = Weights()
    net = iris_net(Score(SCORES), ("seen", seen), StopsIn2(), restoring()).fit(X, y)
    net.partial_fit(X, y, epochs=2)
    assert not moved(seen.begins_[4][0], seen.ends_[2])


def test_each_phase_is_compared_with_itself_alone():
    _, seen = train([0.1, 0.2, 0.3, 0.9, 0.8, 0.85, 0.9, 0.9])
    assert not moved(seen.begins_[4][0], seen.ends_[1])
    assert not moved(seen.begins_[7][0], seen.ends_[5])


def test_by_default_nothing_is_restored():
    seen = Weights()
    net = iris_net(Score(SCORES), ("unfreeze", CallbackSetUnfreeze(select_last(1), PHASES)), seen, max_epochs=8)
    net.fit(X, y)
    seen = dict(net.callbacks_)["Weights"]
    assert not moved(seen.begins_[4][0], seen.ends_[3])
    assert dict(net.callbacks_)["unfreeze"].state_dict().keys() == {"trainable"}


def test_the_weights_are_those_of_a_loop_by_hand():
    net = iris_net(Score([0.5, 0.9, 0.9, 0.9]), restoring({"epoch": [3], "weights": [select_all()]})).initialize()
    module = copy.deepcopy(net.module_)
    net.partial_fit(X, y)

    optimizer, best = torch.optim.SGD(module.parameters(), lr=0.1), {}
    for epoch in range(1, 5):
        if epoch == 3:
            module.load_state_dict(best)
        for name, tensor in module.named_parameters():
            tensor.requires_grad = epoch >= 3 or name.startswith("6.")
        for start in (0, 50, 100):
            rows = slice(start, start + 50)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
            optimizer.step()
        if epoch == 1:
            best = copy.deepcopy(module.state_dict())
    assert not moved(weights(net), dict(module.named_parameters()))


def test_a_row_of_a_batch_ends_a_phase_in_the_middle_of_an_epoch():
    _, seen = train([0.5, 0.6, 0.7, 0.8], table={"batch": [8], "weights": [select_all()]})  # the second of epoch 3
    assert moved(seen.begins_[3][0], seen.ends_[1])
    assert not moved(seen.begins_[3][1], seen.ends_[1])


def test_a_row_in_the_middle_of_an_epoch_drops_its_batches_also_after_the_best_epoch():
    _, seen = train([0.9, 0.6, 0.7, 0.8], table={"batch": [8], "weights": [select_all()]})
    assert not moved(seen.begins_[3][1], seen.ends_[2])


def test_a_row_that_waits_for_a_plateau_ends_a_phase():
    table = {"when": [Plateau("my_loss", patience=2)], "weights": [select_all()]}
    _, seen = train([0.9, 0.5, 0.6, 0.7, 0.8], table=table)  # met when epoch 5 begins
    assert not moved(seen.begins_[5][0], seen.ends_[2])


def test_a_row_that_scales_rates_alone_ends_a_phase():
    table = {"epoch": [1, 3], "weights": [select_all()] * 2, "lr_mult": [None, 0.1], "lr_mult_from": ["start", "row"]}
    _, seen = train([0.5, 0.6, 0.7], table=table)
    assert not moved(seen.begins_[3][0], seen.ends_[1])


@pytest.mark.usefixtures("no_schedule_warnings")
def test_a_row_that_changes_nothing_ends_no_phase():
    table = {"epoch": [3, 4], "weights": [select_last(1), select_all()]}
    _, seen = train([0.5, 0.6, 0.7, 0.8], table=table)
    assert not moved(seen.begins_[3][0], seen.ends_[2])
    assert not moved(seen.begins_[4][0], seen.ends_[1])


def test_epochs_without_a_score_are_never_the_best():
    _, seen = train([None, 0.5, None, 0.8, None, None, None])
    assert not moved(seen.begins_[4][0], seen.ends_[2])
    assert not moved(seen.begins_[7][0], seen.ends_[4])


def test_a_phase_without_any_score_restores_nothing():
    _, seen = train([None, None, None, 0.8])
    assert not moved(seen.begins_[4][0], seen.ends_[3])


def test_the_direction_is_that_of_the_scoring_or_as_given():
    accuracy = EpochScoring("accuracy", name="acc", on_train=True, lower_is_better=False)
    table = {"epoch": [4], "weights": [select_all()]}
    seen = Weights()
    net = iris_net(accuracy, restoring(table, monitor="acc"), seen, max_epochs=4).fit(X, y)
    seen = dict(net.callbacks_)["Weights"]
    scores = net.history[:3, "acc"]
    assert not moved(seen.begins_[4][0], seen.ends_[1 + scores.index(max(scores))])
    given = iris_net(Score([0.1, 0.9, 0.5, 0.5]), restoring(table, lower_is_better=False), Weights(), max_epochs=4)
    seen = dict(given.fit(X, y).callbacks_)["Weights"]
    assert not moved(seen.begins_[4][0], seen.ends_[2])


def test_all_modules_and_criteria_are_restored():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, out, target):
            return nn.functional.cross_entropy(out * self.scale, target)

    class Sees(Callback):
        def on_epoch_end(self, net, **kwargs):
            scales[len(net.history)] = net.criterion_.scale.item()

        def on_batch_begin(self, net, training=None, **kwargs):
            scales.setdefault(-len(net.history), net.criterion_.scale.item())

    scales = {}
    scores, table = [0.5, 0.6, 0.7, 0.8], {"epoch": [4], "weights": [select_all()]}
    net = iris_net(Score(scores), restoring(table), Sees(), cls=NeuralNet, criterion=Loss)
    net.fit(X, torch.tensor(y))
    assert scales[-4] == scales[1] != scales[3]


def test_other_freezing_callbacks_and_the_order_do_not_matter():
    ends = []
    for turned in (False, True):
        torch.manual_seed(0)
        callbacks = [Score(SCORES), restoring(), Freezer(names="6.bias", until_epoch=2)]
        net = iris_net(*(callbacks[::-1] if turned else callbacks), max_epochs=8).fit(X, y)
        ends.append(weights(net))
    assert not moved(*ends)


def test_a_cache_of_frozen_parts_follows():
    ends = []
    for cache in ([], [t_clbk("frozen_cache")]):
        torch.manual_seed(0)
        table = {"epoch": [4, 7], "weights": [select_prefix("0", "3")] * 2, "action": ["freeze", "unfreeze"]}
        net = iris_net(*cache, Score(SCORES), restoring(table, select_all()), max_epochs=8).fit(X, y)
        ends.append(weights(net))
    assert sum(net.history[:, "cache_hits"]) > 0
    assert not moved(*ends)


@pytest.mark.sample(4)
@pytest.mark.parametrize("stop", [lambda net: net, lambda net: pickle.loads(pickle.dumps(net)), copy.deepcopy])
@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_a_training_that_goes_on_restores_as_one_that_never_stopped(stop, epochs):
    torch.manual_seed(0)
    whole = train(SCORES)[0]
    torch.manual_seed(0)
    net = iris_net(Score(SCORES), restoring(), max_epochs=epochs).fit(X, y)
    net = stop(net).set_params(max_epochs=8 - epochs).partial_fit(X, y)
    assert not moved(weights(whole), weights(net))


@pytest.mark.sample(3)
@pytest.mark.parametrize("crash", [3, 4, 6, 7])
def test_a_run_resumed_from_a_checkpoint_restores_as_one_that_never_stopped(crash, tmp_path):
    def net_of(path, *more):
        rate = LRScheduler(lr_scheduler.StepLR, step_size=1, gamma=0.9)
        callbacks = [checkpoint(path, resume=True), rate, Score(SCORES), restoring(), *more]
        return iris_net(*callbacks, iterator_train__shuffle=True, max_epochs=8)

    assert resumed_equals_whole(tmp_path, net_of, crash=crash)


def test_best_weights_that_are_not_at_hand_are_warned_of(tmp_path):
    files = {"f_params": tmp_path / "p", "f_optimizer": tmp_path / "o", "f_history": tmp_path / "h"}
    iris_net(Score(SCORES), restoring(), max_epochs=3).fit(X, y).save_params(**files)
    net = iris_net(Score(SCORES), restoring(), max_epochs=1).initialize()
    net.load_params(**files)
    with pytest.warns(
        UserWarning, match=r"best of the phase that ends is epoch 2 \(my_loss 0.5\), whose weights were not"
    ):
        net.partial_fit(X, y)


def test_another_fit_does_not_restore_weights_of_the_one_before():
    net, _ = train(SCORES)
    net.fit(X, y)
    seen = dict(net.callbacks_)["Weights"]
    assert not moved(seen.begins_[4][0], seen.ends_[2])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"restore_best_between": 2}, (TypeError, ValueError), "`restore_best_between` is 2; give True or False"),
        ({"monitor": "valid_los"}, ValueError, "`monitor` is 'valid_los', which nothing in the net records"),
        ({"monitor": 3}, TypeError, "`monitor` is 3; give"),
        ({"lower_is_better": "yes"}, (TypeError, ValueError), "`lower_is_better` is 'yes'"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_step(params, error, message):
    given = {"restore_best_between": True, "monitor": "train_loss"} | params
    with pytest.raises(error, match=message):
        iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), PHASES, **given))).fit(X, y)


def test_it_goes_with_a_schedule_that_is_a_value():
    callback = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2), restore_best_between=True, monitor="train_loss")
    seen = Weights()
    net = iris_net(callback, seen, max_epochs=5, lr=5.0).fit(X, y)
    seen = dict(net.callbacks_)["Weights"]
    losses = net.history[:, "train_loss"]
    assert not moved(seen.begins_[3][0], seen.ends_[1 if losses[0] < losses[1] else 2])


def test_a_score_that_comes_late_counts():
    late = PassthroughScoring("train_loss", on_train=True)
    net = iris_net(restoring(monitor="train_loss"), ("late", late), callbacks__train_loss=None, max_epochs=4)
    assert net.fit(X, y).history[-1]["n_trainable"] > net.history[0]["n_trainable"]
