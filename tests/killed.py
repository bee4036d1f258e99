"""Trainings whose process is killed at the nth function call, or at the nth within writing."""

import os
import random
import signal
import sys
from functools import partial

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, RandomSampler

from mlr3torch_py import CallbackSetUnfreeze, Plateau, select_all, select_last, select_prefix, t_clbk
from tests.checkpoint.kept import Accumulates, Criterion, Hidden, Noise, Scaled, TwoOptimizers
from tests.helpers import X, iris_net, y

EPOCHS = 5
BY_EPOCH = {"epoch": [2, 4], "weights": [select_prefix("3"), select_all()]}
BY_BATCH = {"batch": [5, 8], "weights": [select_prefix("3"), select_all()]}
BY_SCORE = {"when": [Plateau("train_loss", 1, min_delta=9.0)] * 2, "weights": [select_prefix("3"), select_all()]}


def error_rate(net, X, y):
    return float(np.mean(net.predict(X) != y))


class Draws(Callback):
    """Records a number drawn by numpy and one drawn by Python at each epoch."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("drawn", [np.random.rand(), random.random()])


def jobs():
    """Return trainings that depend on everything a checkpoint must keep."""
    shuffled = {"iterator_train__shuffle": True, "module__p": 0.3}
    split = {"train_split": ValidSplit(0.2)}
    linear = {"module": nn.Linear, "module__in_features": 4, "module__out_features": 3}
    return {
        "epochs": {"table": BY_EPOCH, **shuffled, "optimizer": torch.optim.Adam},
        "batches": {"table": BY_BATCH, **shuffled, **split, "optimizer__momentum": 0.9, "rates": "own"},
        "conditions": {"table": BY_SCORE, **split, "generator": True, "freq": 2},
        "rates of skorch": {"table": BY_EPOCH, **shuffled, **split, "rates": "of skorch"},
        "accumulation": {"cls": Accumulates, **linear, "iterator_train__shuffle": True},
        "further objects": {"cls": Scaled, **linear, "iterator_train__shuffle": True},
        "hidden values": {"module": Hidden, "criterion": Criterion, **split},
        "hidden generators": {
            "module": Noise,
            "iterator_train": partial(DataLoader, generator=torch.Generator().manual_seed(5)),
            "iterator_train__shuffle": True,
        },
        "two optimizers": {"cls": TwoOptimizers, **linear, "iterator_train__shuffle": True},
    }


def seed():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def net_of(folder, job, *, is_seeded=True, **more):
    params = {**jobs()[job], **more}
    table, rates, has_generator = (params.pop(name, None) for name in ("table", "rates", "generator"))
    if is_seeded:
        seed()
    callbacks = [
        t_clbk("checkpoint", path=folder, freq=params.pop("freq", 1), resume=True),
        ("error_rate", EpochScoring(error_rate, on_train=True)),
        t_clbk("history"),
        Draws(),
    ]
    if table is not None:
        callbacks.append(("unfreeze", CallbackSetUnfreeze(select_last(1), table)))
    if rates == "of skorch":
        callbacks += [
            ("multi", LRScheduler(MultiStepLR, milestones=[1, 3], gamma=0.5)),
            ("stopping", EarlyStopping(patience=9, load_best=True)),
        ]
    if rates == "own":
        stopping = t_clbk("early_stopping", patience=2, monitor="valid_loss", restore_best_weights=True)
        callbacks += [t_clbk("lr_one_cycle", max_lr=0.5), stopping]
    if has_generator:
        params["iterator_train__sampler"] = RandomSampler(range(120), generator=torch.Generator().manual_seed(3))
    return iris_net(*callbacks, audited=table is not None, **{"max_epochs": EPOCHS, "batch_size": 40, **params})


class Killer:
    """Counts function calls, and kills the process at one of them: ``("calls", n)`` or ``("writes", n)``."""

    def __init__(self, kill_at=None):
        self.counts = {"calls": 0, "writes": 0}
        self.kill_at = kill_at

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_call"):
            return
        self._count("calls")
        if event == "c_call" and argument.__name__ in ("replace", "fsync"):
            self._count("writes")

    def _count(self, kind):
        self.counts[kind] += 1
        if (kind, self.counts[kind]) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def once(folder, job):
    """Train one net, and return it with its folder."""
    return {folder: net_of(folder, job).fit(X, y)}


def again(folder, job):
    """Train a net, and train it on."""
    return {folder: net_of(folder, job, max_epochs=2).fit(X, y).partial_fit(X, y)}


def both(folder, job):
    """Train two nets, of which the second draws what the first has left."""
    seed()
    nets = [net_of(folder / name, job, is_seeded=False, max_epochs=3) for name in ("a", "b")]
    return {folder / name: net.fit(X, y) for name, net in zip(("a", "b"), nets, strict=True)}


def scripts():
    """Return scripts by name: the function that trains, and what it trains."""
    once_each = {job: (once, job) for job in jobs()}
    return once_each | {"a call and another": (again, "epochs"), "two nets": (both, "hidden values")}


def train(folder, script, kill_at=None):
    """Run a script in this process, and return its nets by folder, and its Killer."""
    killer = Killer(kill_at)
    sys.setprofile(killer)
    try:
        return run(folder, script), killer
    finally:
        sys.setprofile(None)


def run(folder, script):
    """Run a script, and return its nets by folder."""
    of, job = scripts()[script]
    return of(folder, job)
