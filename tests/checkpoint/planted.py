"""Nets and data that remember something where no checkpoint looks, and nets that resume well."""

import itertools
import random
from functools import partial

import numpy as np
import torch
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, RandomSampler, Sampler

from mlr3torch_py import select_last, t_clbk
from tests.checkpoint.kept import Noise
from tests.helpers import X, iris_net, y

CALLS = {"n": 0}


class Data(torch.utils.data.Dataset):
    """Rows with noise that `noise` makes."""

    def __init__(self):
        self.n = 0

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + np.float32(self.noise()), y[i]

    def noise(self):
        return 0.0


class Counting(Data):
    def noise(self):
        self.n += 1
        return 1e-3 * self.n


class OfClass(Data):
    n_drawn = 0

    def noise(self):
        OfClass.n_drawn += 1
        return 1e-3 * OfClass.n_drawn


class GlobalCount(Data):
    def noise(self):
        CALLS["n"] += 1
        return 1e-3 * CALLS["n"]


class InClosure(Data):
    def __init__(self):
        numbers = [0]

        def noise():
            numbers[0] += 1
            return 1e-3 * numbers[0]

        self.noise = noise


class Iterated(Data):
    """Cannot be pickled, so it makes its iterator when it is first used."""

    numbers = None

    def noise(self):
        if self.numbers is None:
            self.numbers = itertools.cycle([0.0, 0.1, 0.3, 0.7])
        return next(self.numbers)


class OfSystem(Data):
    rng = None

    def noise(self):
        if self.rng is None:
            self.rng = random.SystemRandom()
        return self.rng.random()


class Curriculum(Sampler):
    """Starts one row later in each epoch."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return len(X)

    def __iter__(self):
        self.epoch += 1
        return iter(np.roll(np.arange(len(X)), self.epoch).tolist())


class Warmup(Callback):
    """Sets a rate by a counter of its own."""

    def on_train_begin(self, net, **kwargs):
        self.n = 0

    def on_epoch_begin(self, net, **kwargs):
        self.n += 1
        net.optimizer_.param_groups[0]["lr"] = 0.1 * self.n


class Odd:
    """A number in an object of a class that no file can hold."""

    def __init__(self):
        self.n = 0


class Remembering(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.odd = Odd()

    def forward(self, x):
        if self.training:
            self.odd.n += 1
        return super().forward(x) * (1 + 0.01 * self.odd.n)


class Growing(torch.optim.SGD):
    n = 0

    def step(self, closure=None):
        self.n += 1
        for group in self.param_groups:
            group["lr"] = 0.01 * self.n
        return super().step(closure)


class GrowingInside(torch.optim.SGD):
    """Scales its steps by a number that is not in its state dict."""

    n = 0

    def step(self, closure=None):
        self.n += 1
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for tensor in group["params"]:
                    tensor.mul_(1 + 0.001 * self.n)
        return loss


def linear(*callbacks, **params):
    return iris_net(*callbacks, audited=False, **{"module": nn.Linear(4, 3)} | params)


def planted():
    """Return trainings that lose something, and what the report must name."""
    return {
        "a counter of the dataset": (linear(), Counting(), "count|\\.n "),
        "a counter of a class": (linear(), OfClass(), "n_drawn"),
        "a counter of a module of Python": (linear(), GlobalCount(), "CALLS"),
        "a counter in a closure": (linear(), InClosure(), "numbers"),
        "an iterator": (linear(), Iterated(), "numbers"),
        "the generator of the system": (linear(), OfSystem(), "rng|repeat"),
        "a counter of the sampler": (linear(iterator_train__sampler=Curriculum()), None, "epoch"),
        "a counter of a callback": (linear(Warmup()), None, "\\.n "),
        "an object in a module": (linear(module=Remembering), None, "odd"),
        "a counter of the optimizer": (linear(optimizer=GrowingInside), None, "\\.n "),
    }


def good():
    """Return trainings that resume bit for bit."""
    shuffled = {"iterator_train__shuffle": True}
    split = {"train_split": ValidSplit(0.2)}
    loader = partial(DataLoader, generator=torch.Generator().manual_seed(5))
    sampler = RandomSampler(range(150), generator=torch.Generator().manual_seed(3))
    stopping = partial(t_clbk, "early_stopping", patience=5, monitor="train_loss", restore_best_weights=True)
    return {
        "plain": linear(),
        "shuffled": linear(**shuffled),
        "dropout": iris_net(module__p=0.3, **shuffled),
        "a split": linear(**split),
        "Adam": linear(optimizer=torch.optim.Adam),
        "momentum": linear(optimizer__momentum=0.9),
        "hidden state": linear(module=Noise),
        "a loader with a generator": linear(iterator_train=loader, **shuffled),
        "a sampler with a generator": linear(iterator_train__sampler=sampler),
        "workers": linear(iterator_train__num_workers=1, **shuffled),
        "unfreeze": iris_net(t_clbk("unfreeze", starting_weights=select_last(1))),
        "a scheduler": linear(t_clbk("lr_step", step_size=1)),
        "one cycle": linear(t_clbk("lr_one_cycle", max_lr=0.5)),
        "a scheduler of skorch": linear(("rates", LRScheduler(StepLR, step_size=1))),
        "early stopping": linear(stopping()),
        "the history": linear(t_clbk("history")),
        "scores": linear(EpochScoring("accuracy", on_train=True)),
        "a checkpoint of its own": linear(t_clbk("checkpoint", path="nowhere", freq=1)),
        "batch norm": linear(module=nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))),
        "accumulation of a group": linear(optimizer__param_groups=[("bias", {"lr": 0.01})]),
    }
