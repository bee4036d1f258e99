"""Draw the pictures of the guide: ``python docs/pictures/draw.py``. It needs torchvision."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from torch import nn
from torchvision.models import resnet18

from mlr3torch_py import (
    MLP,
    freeze_plan,
    gradual_unfreezing,
    plot_history,
    plot_network,
    select_invert,
    select_name,
    t_clbk,
)
from mlr3torch_py.forecast.ink import for_any_theme

HERE = Path(__file__).parent


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)


def transformer(n_blocks, width=8):
    parts = {"embed": nn.Linear(4, width), "encoder": nn.Sequential(*(Block(width) for _ in range(n_blocks)))}
    return nn.ModuleDict(parts | {"head": nn.Linear(width, 2)})


def main():
    X, y = load_iris(return_X_y=True)
    torch.manual_seed(1)
    net = NeuralNetClassifier(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(32, 32, 32),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.02,
        max_epochs=12,
        batch_size=8,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[
            t_clbk(
                "unfreeze",
                starting_weights=select_invert(select_name(["0.weight", "3.weight", "6.weight", "6.bias"])),
                unfreeze={"epoch": [2, 5], "weights": [select_name("0.weight"), select_name(["3.weight", "6.weight"])]},
            )
        ],
    )
    freeze_plan(net, max_epochs=6).plot().figure.savefig(HERE / "plan_8.png", dpi=90)
    plot_history(net.fit(X.astype("float32"), y), "valid_acc").savefig(HERE / "history.png", dpi=90)
    network = resnet18()  # as the weights are not asked for, they are random; the plan is that of the trained network
    network.fc = nn.Linear(512, 10)
    schedule = gradual_unfreezing(network, every=2, level="stage", lr_decay=2.6)
    plan = freeze_plan(network, callbacks=[t_clbk("unfreeze", **schedule)], max_epochs=12)
    figure, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
    plan.plot(ax).tick_params(axis="y", labelsize=6.5)
    for_any_theme(figure).savefig(HERE / "plan_resnet18.png", dpi=120)
    net = NeuralNetClassifier(network, callbacks=[t_clbk("unfreeze", **schedule)], max_epochs=12)
    plot_network(net, epoch=7).figure.savefig(HERE / "network_resnet18.png", dpi=90)
    network = transformer(100)
    schedule = gradual_unfreezing(network, every=3, unit="batch")
    plan = freeze_plan(network, callbacks=[t_clbk("unfreeze", **schedule)], max_epochs=30, batches_per_epoch=12)
    plan.plot().figure.savefig(HERE / "plan_800.png", dpi=90)


if __name__ == "__main__":
    main()
