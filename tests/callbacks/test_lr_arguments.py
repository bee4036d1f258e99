"""Arguments of schedulers are checked before the first step, and named."""

import copy
import math
import pickle

import numpy as np
import pytest
from skorch.callbacks import Callback
from torch.optim.lr_scheduler import (
    ConstantLR,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    PolynomialLR,
    ReduceLROnPlateau,
)

from mlr3torch_py import as_lr_scheduler, t_clbk
from tests.helpers import X, iris_net, y


class Steps(Callback):
    n_ = 0

    def on_batch_end(self, net, training=None, **kwargs):
        self.n_ += bool(training)


@pytest.mark.parametrize(
    ("key", "params", "argument"),
    [
        ("lr_step", {"step_size": 0}, "step_size"),
        ("lr_step", {"step_size": "2"}, "step_size"),
        ("lr_step", {"step_size": 2.5}, "step_size"),
        ("lr_step", {"step_size": 2, "gamma": "0.1"}, "gamma"),
        ("lr_step", {"step_size": 2, "gamma": math.nan}, "gamma"),
        ("lr_step", {"step_size": 2, "gamma": -1}, "gamma"),
        ("lr_step", {"step_size": 2, "last_epoch": 3}, "last_epoch"),
        ("lr_cosine_annealing", {"T_max": 0}, "T_max"),
        ("lr_cosine_annealing", {"T_max": 2, "eta_min": math.inf}, "eta_min"),
        ("lr_lambda", {"lr_lambda": 0.9}, "lr_lambda"),
        ("lr_lambda", {"lr_lambda": [len, len]}, "lr_lambda"),
        ("lr_lambda", {"lr_lambda": lambda _: None}, "lr_lambda"),
        ("lr_lambda", {"lr_lambda": lambda _: math.nan}, "lr_lambda"),
        ("lr_multiplicative", {"lr_lambda": lambda _: "x"}, "lr_lambda"),
        ("lr_one_cycle", {"max_lr": 0.1, "cycle_momentum": "no"}, "cycle_momentum"),
        ("lr_one_cycle", {"max_lr": 0.1, "div_factor": 0}, "div_factor"),
        ("lr_one_cycle", {"max_lr": 0.1, "pct_start": 2}, "pct_start"),
        ("lr_one_cycle", {"max_lr": 0.1, "pct_start": 1}, "pct_start"),
        ("lr_one_cycle", {"max_lr": [0.1, 0.1]}, "max_lr"),
        ("lr_one_cycle", {"max_lr": 0.1, "steps_per_epoch": 1}, "steps_per_epoch"),
        ("lr_reduce_on_plateau", {"mode": "least"}, "mode"),
        ("lr_reduce_on_plateau", {"factor": 2.0}, "factor"),
        ("lr_reduce_on_plateau", {"cooldown": "x"}, "cooldown"),
        ("lr_reduce_on_plateau", {"monitor": None}, "monitor"),
    ],
)
def test_a_wrong_argument_is_named_before_the_first_step(key, params, argument):
    steps = Steps()
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        iris_net(t_clbk(key, **params), steps, optimizer__momentum=0.9).fit(X, y)
    assert steps.n_ == 0


@pytest.mark.parametrize(
    ("scheduler", "params", "argument"),
    [
        (MultiStepLR, {"milestones": "2"}, "milestones"),
        (MultiStepLR, {"milestones": [1, "2"]}, "milestones"),
        (ConstantLR, {"factor": 2}, "factor"),
        (CyclicLR, {"base_lr": 0.1, "max_lr": "1"}, "max_lr"),
        (PolynomialLR, {"total_iters": -1}, "total_iters"),
    ],
)
def test_wrong_arguments_of_other_schedulers_are_named(scheduler, params, argument):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        iris_net(as_lr_scheduler(scheduler, **params)).fit(X, y)


def test_an_argument_that_is_set_through_the_net_is_checked_as_well():
    net = iris_net(t_clbk("lr_step"), callbacks__lr_step__step_size=0)
    with pytest.raises(ValueError, match="`step_size` is 0; give a whole number of steps, at least 1"):
        net.fit(X, y)


@pytest.mark.parametrize("two", [2, 2.0, np.int8(2), np.array(2)])
def test_numbers_of_numpy_are_numbers(two):
    net = iris_net(t_clbk("lr_step", step_size=two, gamma=np.float64(0.5)), max_epochs=4, lr=1.0).fit(X, y)
    assert net.history[:, "event_lr"] == [1, 1, 0.5, 0.5]


class Slotted:
    __slots__ = ()

    def __call__(self, epoch):
        return 0.5**epoch


@pytest.mark.parametrize("function", [[1, 0.5, 0.25].__getitem__, {0: 1, 1: 0.5, 2: 0.25}.get, Slotted()])
def test_a_function_may_be_written_in_c(function):
    for lr_lambda in (function, [function]):
        net = iris_net(t_clbk("lr_lambda", lr_lambda=lr_lambda), max_epochs=1, lr=1.0).fit(X, y)
        assert pickle.loads(pickle.dumps(net)).partial_fit(X, y).history[:, "event_lr"] == [1, 0.5]


def test_the_trial_calls_a_copy_of_a_function_that_counts():
    class Counting:
        n = 0

        def __call__(self, epoch):
            self.n += 1
            return 1.0

    counting = Counting()
    iris_net(t_clbk("lr_lambda", lr_lambda=counting), max_epochs=3).fit(X, y)
    assert counting.n == 4


def test_a_scheduler_of_the_user_may_have_arguments_of_its_own():
    class Halving(LRScheduler):
        def __init__(self, optimizer, every: int = 1, last_epoch=-1):
            self.every = every
            super().__init__(optimizer, last_epoch)

        def get_lr(self):
            return [lr * 0.5 ** (self.last_epoch // self.every) for lr in self.base_lrs]

    net = iris_net(as_lr_scheduler(Halving, every=2.0), max_epochs=3, lr=1.0).fit(X, y)
    assert net.history[:, "event_lr"] == [1, 1, 0.5]
    with pytest.raises(TypeError, match="`every` is '2', with which Halving fails"):
        iris_net(as_lr_scheduler(Halving, every="2")).fit(X, y)


def test_a_scheduler_that_monitors_a_score_is_one_for_as_lr_scheduler_too():
    callback = as_lr_scheduler(ReduceLROnPlateau, monitor="train_loss", factor=0.5)
    assert callback.parameters["monitor"] == "train_loss"
    assert len(iris_net(callback, max_epochs=2).fit(X, y).history) == 2


def test_a_rate_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="`lr_lambda` is .* with which LambdaLR fails: it sets the learning rates"):
        iris_net(as_lr_scheduler(LambdaLR, lr_lambda=lambda epoch: 1.0 if epoch == 0 else -1.0)).fit(X, y)


@pytest.mark.parametrize("function", [lambda epoch: 1 - epoch / 2, {0: 1, 1: 0.5, 2: 0}.__getitem__])
@pytest.mark.parametrize("unit", ["epoch", "batch"])
def test_a_rate_that_becomes_impossible_is_refused_when_it_is_needed(function, unit):
    def trained(n_steps):
        rates = as_lr_scheduler(LambdaLR, step_on_epoch=unit == "epoch", lr_lambda=function)
        size = {"batch_size": 150, "max_epochs": n_steps} if unit == "epoch" else {"max_epochs": 1}
        rows = 50 * n_steps if unit == "batch" else 150
        return iris_net(rates, **{"batch_size": 50} | size, train_split=None).fit(X[:rows], y[:rows])

    net = trained(3)  # which needs no fourth rate
    for one in (net, copy.deepcopy(net)):
        with pytest.raises(
            ValueError, match="LambdaLR fails in epoch .* with `lr_lambda`=.*; give it a rate for every"
        ):
            one.partial_fit(X, y)


def test_a_table_of_rates_may_be_extended_when_it_is_at_its_end():
    net = iris_net(t_clbk("lr_lambda", lr_lambda=[1, 0.5].__getitem__), max_epochs=2, lr=1.0).fit(X, y)
    net.set_params(callbacks__lr_lambda__lr_lambda=[1, 0.5, 0.25, 0.125].__getitem__).partial_fit(X, y)
    assert net.history[:, "event_lr"] == [1, 0.5, 0.25, 0.125]


def test_a_simulation_names_what_it_cannot_take():
    with pytest.raises(ValueError, match="OneCycleLR fails after 4 of 5 steps with `max_lr`=0.1"):
        t_clbk("lr_one_cycle", max_lr=0.1, total_steps=3).callback.simulate(5)
    for wrong in ("x", {}, [None], (), iter(())):
        with pytest.raises((TypeError, ValueError), match="`step_args` is .*; give a number, or a list of numbers"):
            t_clbk("lr_reduce_on_plateau").callback.simulate(3, step_args=wrong)
