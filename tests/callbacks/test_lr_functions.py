"""Schedulers made by functions of the optimizer, the rates in the history, and those that simulate() forecasts."""

import functools
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import LRScheduler
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import IterableDataset

from mlr3torch_py import as_lr_scheduler, mlr3torch_callbacks, t_clbk
from tests.helpers import X, iris_net, y


def warm_up(optimizer, epochs=2, length=3):
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=epochs),
        lr_scheduler.CosineAnnealingLR(optimizer, length),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[epochs])


def chained(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


def rates_of_torch(make, n, lr=1.0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("make", [warm_up, chained, functools.partial(warm_up, epochs=1)])
def test_a_function_makes_the_scheduler(make):
    callback = as_lr_scheduler(make)
    net = iris_net(callback, max_epochs=5, lr=1.0).fit(X, y)
    assert net.history[:, "event_lr"] == pytest.approx(rates_of_torch(make, 5))
    assert callback.callback.simulate(5, initial_lr=1.0) == pytest.approx(rates_of_torch(make, 5))


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
def test_it_continues_after_a_stop_and_has_parameters():
    whole = iris_net(as_lr_scheduler(warm_up, length=4), max_epochs=6).fit(X, y).history[:, "event_lr"]
    net = iris_net(as_lr_scheduler(warm_up), callbacks__lr_warm_up__length=4, max_epochs=3).fit(X, y)
    net = pickle.loads(pickle.dumps(net)).partial_fit(X, y)
    assert net.history[:, "event_lr"] == pytest.approx(whole)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (lr_scheduler.SequentialLR, "`x` is SequentialLR, which is made of other .*; give a function of the optimizer"),
        (lr_scheduler.ChainedScheduler, "`x` is ChainedScheduler, .*; give a function of the optimizer"),
        (lambda: None, "`x` is .*, which takes no optimizer; give a function of the optimizer"),
        (int, "`x` is <class 'int'>; give a scheduler class"),
    ],
)
def test_what_makes_no_scheduler_is_refused(x, message):
    with pytest.raises(TypeError, match=message):
        as_lr_scheduler(x)


def test_a_function_that_returns_no_scheduler_is_refused_before_the_first_step():
    with pytest.raises(TypeError, match="lr_3|fails with no arguments: it returned 3, which is no scheduler"):
        iris_net(as_lr_scheduler(lambda optimizer: len(optimizer.param_groups) + 2)).fit(X, y)


def of_another_optimizer(_):
    return lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_another_optimizer, "it returned a scheduler of another optimizer than the one that it was given"),
        (
            lambda one: lr_scheduler.ReduceLROnPlateau(one),
            r"needs a score; t_clbk\('lr_reduce_on_plateau'\) gives it one",
        ),
    ],
)
def test_a_function_whose_scheduler_cannot_be_stepped_is_refused_before_the_first_step(make, message):
    net = iris_net(as_lr_scheduler(make))
    with pytest.raises((TypeError, ValueError), match=message):
        net.fit(X, y)
    assert not net.history


def test_every_scheduler_records_the_rate():
    required = {"T_max": 3, "lr_lambda": lambda _: 0.9, "max_lr": 0.1, "step_size": 1}
    for key in (key for key in mlr3torch_callbacks if key.startswith("lr_")):
        params = {name: value for name, value in required.items() if name in t_clbk(key).parameters}
        net = iris_net(t_clbk(key, **params, **({"monitor": "train_loss"} if "plateau" in key else {})), max_epochs=2)
        net.set_params(optimizer__momentum=0.9).fit(X, y)
        assert len(net.history[:, "event_lr"]) == 2


def test_the_rate_is_that_of_skorch():
    for by_batch in (False, True):
        ours = as_lr_scheduler(lr_scheduler.ExponentialLR, gamma=0.9, step_on_epoch=not by_batch)
        history = iris_net(ours, max_epochs=3).fit(X, y).history
        of_skorch = LRScheduler(lr_scheduler.ExponentialLR, gamma=0.9, step_every="batch" if by_batch else "epoch")
        theirs = iris_net(("theirs", of_skorch), max_epochs=3).fit(X, y).history
        if by_batch:
            assert history[:, "batches", :, "event_lr"] == theirs[:, "batches", :, "event_lr"]
        else:
            assert history[:, "event_lr"] == theirs[:, "event_lr"]


def test_with_two_schedulers_the_rate_is_that_of_the_epoch():
    two = [t_clbk("lr_step", step_size=1), as_lr_scheduler(lr_scheduler.ExponentialLR, gamma=0.5)]
    assert iris_net(*two, max_epochs=3, lr=1.0).fit(X, y).history[:, "event_lr"] == pytest.approx([1, 0.05, 0.0025])


def test_simulate_says_what_training_does():
    for callback in (t_clbk("lr_step", step_size=2), t_clbk("lr_cosine_annealing", T_max=3)):
        rates = callback.callback.simulate(5, initial_lr=0.5)
        assert isinstance(rates, np.ndarray)
        assert list(rates) == iris_net(callback, max_epochs=5, lr=0.5).fit(X, y).history[:, "event_lr"]
    cycle = t_clbk("lr_one_cycle", max_lr=0.5)
    history = iris_net(cycle, max_epochs=2, optimizer__momentum=0.9).fit(X, y).history
    recorded = [rate for rates in history[:, "batches", :, "event_lr"] for rate in rates]
    assert list(cycle.callback.simulate(len(recorded), initial_lr=0.1)) == pytest.approx(recorded)


def test_simulate_takes_scores_as_that_of_skorch_does():
    plateau = t_clbk("lr_reduce_on_plateau", patience=0).callback
    assert list(plateau.simulate(3, initial_lr=1.0, step_args=[1.0, 2.0, 3.0])) == pytest.approx([1, 1, 0.1])
    for wrong in ({"steps": -1}, {"initial_lr": "x"}):
        with pytest.raises((TypeError, ValueError), match=f"`{next(iter(wrong))}`"):
            plateau.simulate(**{"steps": 1} | wrong)
    with pytest.raises(ValueError, match="`step_size` of .* was never set"):
        t_clbk("lr_step").callback.simulate(1)


class Stream(IterableDataset):
    def __iter__(self):
        return ((row, target) for row, target in zip(X, y, strict=True))


def test_one_cycle_needs_no_length_of_the_data_if_it_has_its_own():
    for length in ({"total_steps": 30}, {"epochs": 2, "steps_per_epoch": 15}):
        net = iris_net(t_clbk("lr_one_cycle", max_lr=0.5, **length), max_epochs=2, batch_size=10, train_split=None)
        net.set_params(optimizer__momentum=0.9).fit(Stream(), None)
        assert len(net.history[-1, "batches"]) == 15
    net = iris_net(t_clbk("lr_one_cycle", max_lr=0.5), max_epochs=2, train_split=None, optimizer__momentum=0.9)
    with pytest.raises(ValueError, match="no length, .*; give `total_steps`, or `epochs` and `steps_per_epoch`"):
        net.fit(Stream(), None)


def test_one_cycle_takes_a_number_of_epochs_of_numpy():
    net = iris_net(t_clbk("lr_one_cycle", max_lr=0.5), optimizer__momentum=0.9)
    assert len(net.set_params(max_epochs=np.int64(2)).fit(X, y).history) == 2


class Accumulating:
    """Stands in for accelerate with gradient accumulation over two batches and at the end of an epoch."""

    optimizer_step_was_skipped = False
    gradient_accumulation_steps = 2
    sync_gradients = True


class AccumulatingNet(type(iris_net())):
    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        self.n_, self.n_batches_ = 0, 0 if iterator is None else len(iterator)
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)

    def train_step(self, batch, **fit_params):
        self.n_ += 1
        self.accelerator.sync_gradients = self.n_ % 2 == 0 or self.n_ == self.n_batches_
        return super().train_step(batch, **fit_params)


def test_between_the_updates_of_gradient_accumulation_no_step_is_taken():
    def rates(callback):
        net = iris_net(callback, cls=AccumulatingNet, audited=False, train_split=None, batch_size=30, max_epochs=2)
        net.accelerator = Accumulating()
        net.set_params(lr=1.0, optimizer__momentum=0.9).fit(X, y)
        return [rate for rates in net.history[:, "batches", :, "event_lr"] for rate in rates]

    halved = rates(as_lr_scheduler(lr_scheduler.ExponentialLR, gamma=0.5, step_on_epoch=False))
    assert halved == [0.5**i for i in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)]
    cycle = t_clbk("lr_one_cycle", max_lr=1.0)
    assert rates(cycle) == pytest.approx([cycle.callback.simulate(6)[i] for i in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)])
