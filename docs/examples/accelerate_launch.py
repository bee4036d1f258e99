"""Train in several processes, with Hugging Face accelerate.

Run it by ``accelerate launch --multi_gpu --num_processes 2 docs/examples/accelerate_launch.py``, with ``--cpu`` behind
the file for processes without a GPU.
"""

import gc
import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from skorch.hf import AccelerateMixin
from torch import nn

from mlr3torch_py import MLP, select_all, select_last, t_clbk


class AcceleratedNet(AccelerateMixin, NeuralNetClassifier):
    pass


def cross_entropy():
    """Return the loss as a function, since without a GPU accelerate cannot wrap a module that has no weights."""
    return nn.functional.cross_entropy


def train(accelerator):
    X, y = load_iris(return_X_y=True)
    net = AcceleratedNet(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(8, 8),
        criterion=cross_entropy,
        predict_nonlinearity=nn.Softmax(dim=-1),  # skorch knows by itself only what a CrossEntropyLoss needs
        max_epochs=6,
        batch_size=25,
        train_split=None,
        iterator_train__shuffle=True,
        accelerator=accelerator,
        callbacks=[
            t_clbk(
                "unfreeze",
                starting_weights=select_last(1),
                unfreeze={"epoch": [3, 5], "weights": [select_last(2), select_all()]},
            ),
        ],
        verbose=int(accelerator.is_main_process),
    )
    net.fit(X.astype("float32"), y)

    own = torch.cat([tensor.detach().flatten() for tensor in net.module_.parameters()])
    weights = accelerator.gather(own).view(accelerator.num_processes, -1)
    accelerator.print("all processes have the same weights:", all(torch.equal(one, own) for one in weights))


def main():
    accelerator = Accelerator(cpu="--cpu" in sys.argv)
    train(accelerator)
    accelerator.free_memory()  # as the next line, frees the wrapper of the network before its process group
    gc.collect()
    accelerator.end_training()


if __name__ == "__main__":
    main()
