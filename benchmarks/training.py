"""What freezing by the callback costs over a whole training: ratios measured in one run.

Run it by ``python benchmarks/training.py``. A small CNN with BatchNorm is trained on 1,024 images of 32x32, block
after block, in four ways that take turns: a plain loop of torch that flips the flags by hand; skorch with a callback
that does so; skorch with CallbackSetUnfreeze; and skorch without any, where everything trains from the start.
"""

from itertools import pairwise
from time import perf_counter

import pandas as pd
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import gradual_unfreezing, t_clbk

ROUNDS, EPOCHS, BATCH = 5, 4, 64


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [3, 16, 32, 32]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


PARTS = ("head", "blocks.2", "blocks.1", "blocks.0")


def flip(module, epoch):
    """Let the head train from the start, and one more block in each epoch."""
    for name, tensor in module.named_parameters():
        trains = name.startswith(PARTS[:epoch])
        if tensor.requires_grad != trains:
            tensor.requires_grad, tensor.grad = trains, None


class Flips(Callback):
    def on_epoch_begin(self, net, **kwargs):
        flip(net.module_, len(net.history))


def by_skorch(*callbacks):
    return lambda module, images, labels: NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        lr=0.01,
        batch_size=BATCH,
        max_epochs=EPOCHS,
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
    ).fit(images, labels)


def by_hand(module, images, labels):
    optimizer, criterion = torch.optim.SGD(module.parameters(), lr=0.01), nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), BATCH)
    for epoch in range(1, EPOCHS + 1):
        flip(module, epoch)
        for batch, target in loader:
            optimizer.zero_grad()
            criterion(module(batch), target).backward()
            optimizer.step()


def main():
    torch.manual_seed(0)
    images, labels = torch.randn(1024, 3, 32, 32), torch.randint(10, (1024,))
    ways = {
        "torch, flags by hand": by_hand,
        "skorch, flags by hand": by_skorch(Flips()),
        "skorch, CallbackSetUnfreeze": by_skorch(t_clbk("unfreeze", **gradual_unfreezing(CNN()))),
        "skorch, everything trains": by_skorch(),
    }
    seconds = pd.DataFrame(index=range(ROUNDS), columns=list(ways), dtype=float)
    for i in range(-1, ROUNDS):  # the first round warms up
        for name, train in ways.items():
            module = CNN()
            begin = perf_counter()
            train(module, images, labels)
            if i >= 0:
                seconds.loc[i, name] = perf_counter() - begin
    ratios = seconds.div(seconds["skorch, flags by hand"], axis=0)
    print(pd.DataFrame({"seconds": seconds.median(), "ratio": ratios.median()}).round(3).to_string())


if __name__ == "__main__":
    main()
