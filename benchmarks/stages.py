"""(g) Five callbacks on a batch, beside five of skorch's own.

In the middle of a training, the callbacks of the net are called as skorch calls them at a stage, many times; the cost
of a net without further callbacks is taken off. Ours are unfreezing by a table, history, early stopping, a
learning-rate schedule that steps after each batch and a checkpoint; skorch's are Freezer, EpochScoring, EarlyStopping,
LRScheduler with such a schedule and Checkpoint.
"""

from functools import partial
from tempfile import TemporaryDirectory
from time import process_time
from timeit import repeat

import numpy as np
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring, Freezer, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.rounds import in_turns, row, table
from mlr3torch_py import MLP, select_all, select_last, t_clbk

STAGES = ("on_batch_begin", "on_grad_computed", "on_batch_end")


class Measures(Callback):
    """Calls all callbacks of the net at a stage many times, once, at the second batch."""

    def __init__(self, number):
        self.number = number
        self.microseconds_ = {}

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if not training or self.microseconds_ or len(net.history[-1, "batches"]) < 2:
            return
        arguments = {"batch": batch, "training": True, **kwargs}
        others = [callback for _, callback in net.callbacks_ if callback is not self]
        for stage in STAGES:
            more = {"named_parameters": list(net.module_.named_parameters())} if stage == "on_grad_computed" else {}

            def call(stage=stage, more=more):
                for callback in others:
                    getattr(callback, stage)(net, **arguments, **more)

            seconds = min(repeat(call, number=self.number, repeat=5, timer=process_time))
            self.microseconds_[stage] = seconds / self.number * 1e6


def none(_):
    return []


def ours(folder):
    later = {"epoch": [9], "weights": [select_all()]}
    return [
        t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=later),
        t_clbk("history"),
        t_clbk("early_stopping", monitor="train_loss"),
        t_clbk("lr_one_cycle", max_lr=0.1, total_steps=10**6),
        t_clbk("checkpoint", path=folder, freq=9),
    ]


def of_skorch(folder):
    return [
        Freezer("0.*"),
        EpochScoring("accuracy", name="acc", on_train=True, use_caching=False),
        EarlyStopping(monitor="train_loss"),
        LRScheduler(OneCycleLR, max_lr=0.1, total_steps=10**6, step_every="batch"),
        Checkpoint(monitor=None, dirname=folder),
    ]


def on_a_batch(make, number):
    """A way: CPU microseconds of all callbacks of a net in the three stages of a batch."""
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    with TemporaryDirectory() as folder:
        probe = Measures(number)
        NeuralNetClassifier(
            MLP,
            module__d_in=4,
            module__d_out=3,
            module__neurons=(8,),
            criterion=nn.CrossEntropyLoss,
            max_epochs=1,
            batch_size=10,
            train_split=None,
            verbose=0,
            callbacks=[*make(f"{folder}/kept"), probe],
        ).fit(rows, np.arange(40) % 3)
    return sum(probe.microseconds_.values())


def measure(number=500, rounds=9):
    ways = {make.__name__: partial(on_a_batch, make, number) for make in (none, of_skorch, ours)}
    microseconds = in_turns(ways, rounds)
    own, theirs = (microseconds[name] - microseconds["none"] for name in ("ours", "of_skorch"))
    return table([row("g", "five callbacks on a batch", "five of skorch", own, theirs)])
