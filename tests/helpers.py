"""Small networks, data, recorded cases and callbacks that watch a training."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import (
    MLP,
    select_all,
    select_grep,
    select_invert,
    select_name,
    select_none,
    t_clbk,
    trainable_names,
)

GOLDEN = Path(__file__).parent / "golden"

# In eval mode, too, torch 2.8 computes the statistics of InstanceNorm as a mean of copies, which rounds them.
KEEPS_INSTANCE_NORM = torch.__version__ >= "2.13"
FOLLOWS_SCHEDULES = torch.__version__ >= "2.12"  # in compiled networks


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


IRIS = golden("iris_mlp")
X = np.array(IRIS["X"], dtype="float32")
y = np.array(IRIS["y_0based"])


def selector(tree):
    arguments = {key: value for key, value in tree.items() if key != "fn"}
    if tree["fn"] == "invert":
        return select_invert(selector(tree["select"]))
    makers = {"all": select_all, "none": select_none, "name": select_name, "grep": select_grep}
    return makers[tree["fn"]](**arguments)


def table(recorded):
    return {recorded["by"]: recorded["at"], "weights": [selector(tree) for tree in recorded["weights"]]}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Nested(nn.Module):
    """`embed`, `encoder.<i>.{norm,fc1,fc2}`, `head`."""

    def __init__(self, blocks=1, width=4):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.encoder = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)))


class Trace(Callback):
    """Records the trainable names and the weights at every training batch, and when training begins."""

    def __init__(self):
        self.begin_ = None
        self.batches_ = []
        self.epochs_ = []
        self.weights_ = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.begin_ = trainable_names(net.module_)
        self.weights_.append(weights(net))

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if training:
            self.batches_.append(trainable_names(net.module_))
            self.epochs_.append(len(net.history))
            self.weights_.append(weights(net))


class Score(Callback):
    """Writes given scores into the history, one per epoch, and knows which are better."""

    name = "score"

    def __init__(self, scores, lower_is_better=True):
        self.scores = scores
        self.lower_is_better = lower_is_better

    def on_epoch_end(self, net, **kwargs):
        net.history.record("score", self.scores[len(net.history) - 1])


class Stops(Callback):
    """An error, or Ctrl-C, at a training batch."""

    def __init__(self, error, batch):
        self.error = error
        self.batch = batch
        self.seen_ = 0

    def on_batch_end(self, net, training=None, **kwargs):
        self.seen_ += training
        if self.seen_ == self.batch:
            raise self.error


def weights(net):
    return {name: tensor.detach().clone() for name, tensor in net.module_.named_parameters()}


def moved(before, after):
    """The names of the weights that differ by at least one bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


AUDIT = t_clbk("freeze_audit")


def iris_net(*callbacks, module=MLP, cls=NeuralNetClassifier, audited=True, **params):
    """A net of three linear layers, `0`, `3` and `6`, for iris; 3 batches an epoch; what is frozen is watched."""
    if module is MLP:
        params = {"module__d_in": 4, "module__d_out": 3, "module__neurons": (3, 3), "module__p": 0.0} | params
    audit = [] if not audited or "freeze_audit" in [getattr(one, "id", None) for one in callbacks] else [AUDIT]
    return cls(
        module,
        **{
            "callbacks": [*callbacks, *copy.deepcopy(audit)],
            "criterion": nn.CrossEntropyLoss,
            "max_epochs": 4,
            "batch_size": 50,
            "lr": 0.1,
            "train_split": None,
            "verbose": 0,
        }
        | params,
    )


def copies(value, n):
    return [copy.deepcopy(value) for _ in range(n)]
