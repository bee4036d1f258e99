"""
From some digits to others
==========================

A convolutional network is trained on the digits 0 to 4, and transferred to 5 to 9 with few images, in three ways.
"""

# %%
# The pretrained network: small images, so that this page runs in seconds.
import pandas as pd
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from mlr3torch_py import freeze_plan, gradual_unfreezing, head_first, network_blocks, t_clbk

torch.set_num_threads(1)
X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 1, 8, 8) / 16).astype("float32")
low = y < 5


def block(d_in, d_out):
    return nn.Sequential(nn.Conv2d(d_in, d_out, 3, padding=1), nn.BatchNorm2d(d_out), nn.ReLU())


class Network(nn.Module):
    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = nn.Sequential(block(1, 16), block(16, 32), nn.MaxPool2d(2), block(32, 32))
        self.head = nn.Linear(32, 5)
        if backbone is not None:
            self.backbone.load_state_dict(backbone)

    def forward(self, X):
        return self.head(self.backbone(X).mean((2, 3)))


params = {
    "criterion": nn.CrossEntropyLoss,
    "optimizer": torch.optim.Adam,
    "lr": 0.003,
    "batch_size": 32,
    "iterator_train__shuffle": True,
    "train_split": None,
    "verbose": 0,
}
torch.manual_seed(0)
pretrained = NeuralNetClassifier(Network, max_epochs=8, **params).fit(X[low], y[low])
backbone = pretrained.module_.backbone.state_dict()
print(network_blocks(Network()))

# %%
# Fifty images of the other digits to train with, the rest to test. Three schedules:
few = [i for i in range(len(y)) if not low[i]][:50]
rest = [i for i in range(len(y)) if not low[i]][50:]
schedules = {
    "the head alone": head_first(epochs=30),
    "the head, then all": head_first(epochs=15),
    "gradual, falling rates": gradual_unfreezing(every=6, lr_decay=2.6),
}


def transfer(schedule, seed):
    torch.manual_seed(seed)
    net = NeuralNetClassifier(
        Network,
        module__backbone=backbone,
        max_epochs=30,
        callbacks=[t_clbk("unfreeze", schedule=schedule, frozen_mode="eval"), t_clbk("frozen_cache")],
        **params,
    )
    return net.fit(X[few], y[few] - 5)


rows = [
    (name, transfer(schedule, seed).score(X[rest], y[rest] - 5))
    for name, schedule in schedules.items()
    for seed in (0, 1, 2)
]
scores = pd.DataFrame(rows, columns=["schedule", "accuracy"])
print(scores.groupby("schedule", sort=False)["accuracy"].agg(["mean", "min", "max"]).round(3))

# %%
# The plan of the last one.
net = transfer(schedules["gradual, falling rates"], 0)
_ = freeze_plan(net, X[few], y[few]).plot()
