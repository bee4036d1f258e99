"""The example of mlr3torch's unfreezing callback: a small network on the iris data, unfrozen step by step.

Run it by ``python -m mlr3torch_py``. It prints the schedule, trains, and shows which weights were trainable when.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback

from mlr3torch_py import MLP, freeze_plan, select_invert, select_name, t_clbk
from mlr3torch_py.protocols import Net

_COLUMNS: Final = """
A phase is a stretch without a change; epoch and batch say where it starts. tensors counts the tensors that train,
trainable their weights, total all weights, and share is the ratio of the two. frozen_prefix counts the frozen tensors
from the input on, which need no backward pass. A line with + says what a phase releases."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the example and print what happens."""
    parser = argparse.ArgumentParser(prog="python -m mlr3torch_py", description=main.__doc__)
    parser.add_argument("--png", default="iris_mlp_timeline.png", help="where the picture goes (default: %(default)s)")
    png: str = parser.parse_args(arguments).png

    starting_weights = select_invert(select_name(["0.weight", "3.weight", "6.weight", "6.bias"]))
    unfreeze = pd.DataFrame(
        {
            "epoch": [2, 5],
            "weights": [select_name("0.weight"), select_name(["3.weight", "6.weight"])],
        }
    )
    torch.manual_seed(1)
    net = NeuralNetClassifier(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(32, 32, 32),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.02,
        max_epochs=6,
        batch_size=8,
        iterator_train__shuffle=True,
        callbacks=[
            t_clbk("unfreeze", starting_weights=starting_weights, unfreeze=unfreeze),
            ("observer", _Observer()),
        ],
    )
    X, y = load_iris(return_X_y=True)
    X = X.astype("float32")

    print("The schedule\n")
    plan = freeze_plan(net, X, y)
    print(plan)
    print(_COLUMNS)

    print("\nThe training\n")
    net.fit(X, y)
    print(f"\nThe accuracy on all flowers is {net.score(X, y):.2f}.")

    print("\nWhat was trainable in which epoch\n")
    observed = pd.DataFrame(dict(net.callbacks_)["observer"].trainable_)
    print(observed.map(lambda trainable: "+" if trainable else "-").to_string())
    try:
        plan.plot().figure.savefig(png, dpi=120)  # type: ignore[union-attr]
    except ImportError as error:
        print(f"\nNo picture: {error}")
    else:
        print(f"\nThe picture of it is {Path(png).resolve()}")


class _Observer(Callback):  # type: ignore[misc]
    """Records, at the end of each epoch, which parameters are trainable."""

    def initialize(self) -> _Observer:
        self.trainable_: dict[int, dict[str, bool]] = {}
        return self

    def on_epoch_end(self, net: Net, **kwargs: Any) -> None:
        flags = {name: tensor.requires_grad for name, tensor in net.module_.named_parameters()}
        self.trainable_[len(net.history)] = flags


if __name__ == "__main__":
    main()
