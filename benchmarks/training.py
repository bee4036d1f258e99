"""(c) A whole training, against other ways to train the same network on the same images in the same order.

A small CNN with BatchNorm is trained block after block: the head alone in the first epoch, one more block in each
further one. It is done by a plain loop of torch that flips the flags by hand, by skorch with a callback that does so,
and by skorch with CallbackSetUnfreeze; beside them skorch trains everything from the start.

Whole trainings differ by some percent from one to the next, whatever trains; flags by hand are compared with
themselves to show it. What decides is steadier: all that callbacks do, skorch's own and the calling included, is timed
within each training, and what that is more with ours than with flags by hand is what ours adds to the whole.
"""

from functools import partial
from gc import collect
from itertools import chain, pairwise
from operator import itemgetter
from time import process_time

import torch
from skorch import NeuralNet, NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.rounds import Stopwatch, in_turns, row, table
from mlr3torch_py import gradual_unfreezing, t_clbk

LIMIT = 1.01
BATCH, RATE = 32, 0.01
PARTS = ("head", "blocks.2", "blocks.1", "blocks.0")


class CNN(nn.Module):
    """Three blocks, which have some convolutions each, and a head."""

    def __init__(self, depth):
        super().__init__()
        widths = [3, 16, 32, 32]
        self.blocks = nn.ModuleList(
            nn.Sequential(*convolution(a, b), nn.MaxPool2d(2), *chain(*(convolution(b, b) for _ in range(depth - 1))))
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


def convolution(width_in, width_out):
    return nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()


def network(depth=1):
    torch.manual_seed(0)
    return CNN(depth)


def images(n):
    torch.manual_seed(0)
    return torch.randn(n, 3, 32, 32), torch.randint(10, (n,))


def one_by_one(epoch):
    """The parts that train in an epoch: the head from the start, and one more block in each epoch."""
    return PARTS[:epoch]


def flip(module, parts):
    """Let these parts train, and nothing else."""
    for name, tensor in module.named_parameters():
        trains = name.startswith(parts)
        if tensor.requires_grad != trains:
            tensor.requires_grad, tensor.grad = trains, None


class Flips(Callback):
    """Flips the flags by hand when an epoch begins."""

    def __init__(self, parts_of):
        self.parts_of = parts_of

    def on_epoch_begin(self, net, **kwargs):
        flip(net.module_, self.parts_of(len(net.history)))


def by_skorch(module, data, *callbacks):
    NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        lr=RATE,
        batch_size=BATCH,
        max_epochs=len(PARTS),
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
    ).fit(*data)


def by_hand(module, data):
    optimizer, criterion = torch.optim.SGD(module.parameters(), lr=RATE), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*data), BATCH)
    for epoch in range(1, len(PARTS) + 1):
        flip(module, one_by_one(epoch))
        for batch, target in loader:
            optimizer.zero_grad()
            criterion(module(batch), target).backward()
            optimizer.step()


WAYS = {
    "ours": lambda module, data: by_skorch(module, data, t_clbk("unfreeze", **gradual_unfreezing(module))),
    "skorch, flags by hand": lambda module, data: by_skorch(module, data, Flips(one_by_one)),
    "the same again": lambda module, data: by_skorch(module, data, Flips(one_by_one)),
    "torch, flags by hand": by_hand,
    "skorch, everything trains": by_skorch,
}


def cpu_seconds(train, data, depth=1):
    """CPU seconds of a training of a new network."""
    module = network(depth)
    collect()
    begin = process_time()
    train(module, data)
    return process_time() - begin


def whole_and_callbacks(train, data):
    """CPU seconds of a training, and seconds in all callbacks."""
    with Stopwatch([(NeuralNet, "notify")]).running() as watch:
        return cpu_seconds(train, data), watch.seconds


def measure(n_images=512, rounds=21):
    data = images(n_images)
    ways = {name: partial(whole_and_callbacks, train, data) for name, train in WAYS.items()}
    ours, hand, again, *others = WAYS
    close = in_turns({name: ways[name] for name in (ours, hand, again)}, rounds)
    far = in_turns({name: ways[name] for name in (ours, *others)}, rounds // 2).map(itemgetter(0))
    whole, callbacks = close.map(itemgetter(0)), close.map(itemgetter(1))
    estimated = whole[hand] + callbacks[ours] - callbacks[hand]
    return table(
        [
            row("c", "whole training, by the time in callbacks", hand, estimated, whole[hand], LIMIT, "s"),
            row("c", "whole training", hand, whole[ours], whole[hand], unit="s"),
            row("c", hand, again, whole[hand], whole[again], unit="s"),
            *(row("c", "whole training", other, far[ours], far[other], unit="s") for other in others),
        ]
    )
