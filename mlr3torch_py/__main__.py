"""The example of mlr3torch's unfreezing callback: a small network on the iris data, unfrozen step by step.

Run it by ``python -m mlr3torch_py``. It prints the schedule, trains, and shows which weights were trainable when.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier

from mlr3torch_py import MLP, select_invert, select_name, t_clbk
from mlr3torch_py.timeline import Timeline


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
    timeline = Timeline()
    torch.manual_seed(1)
    net = NeuralNetClassifier(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(1, 1, 1),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.05,
        max_epochs=6,
        batch_size=150,
        train_split=None,
        callbacks=[t_clbk("unfreeze", starting_weights=starting_weights, unfreeze=unfreeze), ("timeline", timeline)],
    ).initialize()

    print("The schedule\n")
    schedule = [("the start", starting_weights), *(("epoch " + str(at), s) for at, s in unfreeze.to_numpy())]
    print(_text(pd.DataFrame([(time, ", ".join(s.expand(net))) for time, s in schedule], columns=["from", "train"])))

    print("\nThe training\n")
    X, y = load_iris(return_X_y=True)
    net.partial_fit(X.astype("float32"), y)

    print("\nWhat was trainable in which epoch\n")
    print(
        _text(timeline.to_frame().map(lambda trainable: "yes" if trainable else "-").rename_axis("name").reset_index())
    )
    try:
        timeline.plot().figure.savefig(png, dpi=120)  # type: ignore[union-attr]
    except ImportError as error:
        print(f"\nNo picture: {error}")
    else:
        print(f"\nThe picture of it is {png}")


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, justify="left", max_colwidth=None)


if __name__ == "__main__":
    main()
