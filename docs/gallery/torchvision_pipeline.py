"""
A torchvision network in a Pipeline
===================================

A small DenseNet of torchvision stands in a scikit-learn pipeline, behind the steps that make its images. It
learns the digits 0 to 4, and is transferred to 5 to 9 with fifty images, in three ways.

This script needs torchvision and is not run when the site is built. What it printed on two cores stands at its end.
"""

# %%
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
from skorch import NeuralNetClassifier
from torch import nn
from torchvision.models import DenseNet

from mlr3torch_py import freeze_plan, gradual_unfreezing, head_first, network_blocks, t_clbk

SEEDS = range(4)
torch.set_num_threads(1)
X, y = load_digits(return_X_y=True)
low = y < 5


def images(X):
    """Make three equal channels, each pixel four times as wide and high."""
    return X.reshape(-1, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3).repeat(3, axis=1).astype("float32")


class Network(DenseNet):
    def __init__(self, backbone=None):
        super().__init__(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, num_classes=5)
        if backbone is not None:
            self.features.load_state_dict(backbone)


def pipeline(*callbacks, **params):
    net = NeuralNetClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
        **params,
    )
    return make_pipeline(MinMaxScaler(), FunctionTransformer(images), net)


torch.manual_seed(0)
pretrained = pipeline(lr=0.003, max_epochs=3, batch_size=32).fit(X[low], y[low])
backbone = pretrained[-1].module_.features.state_dict()
print(network_blocks(Network(), n_groups=4))

# %%
# Three ways, each at the rate that did best of some: 0.0005, 0.001 and 0.002 for everything at once, 0.01 and
# 0.03 for the head, 0.003, 0.01 and 0.02 for gradual unfreezing. The callbacks stand in the net, so the pipeline is
# used like any other.
gradual = gradual_unfreezing(every=3, start=3, n_groups=4, lr_decay=2.6)
ways = {
    "everything at once": (0.001, None),
    "the head alone": (0.03, head_first(epochs=15)),
    "gradual": (0.01, gradual),
}


def transfer(lr, schedule):
    callbacks = [t_clbk("unfreeze", schedule=schedule, frozen_mode="eval"), t_clbk("frozen_cache")] if schedule else []
    return pipeline(*callbacks, lr=lr, max_epochs=15, batch_size=16, module__backbone=backbone)


rows = []
for way, params in ways.items():
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(np.flatnonzero(~low))
        few, rest = order[:50], order[50:350]
        torch.manual_seed(seed)
        model = transfer(*params).fit(X[few], y[few] - 5)
        rows.append((way, model.score(X[rest], y[rest] - 5), sum(model[-1].history[:, "dur"])))

table = pd.DataFrame(rows, columns=["way", "accuracy", "seconds"]).groupby("way", sort=False)
print(table["accuracy"].agg(["mean", "min", "max"]).join(table["seconds"].mean()).round(3))

# %%
# The plan of the last one takes the images that the steps before the net have made.
model = transfer(*ways["gradual"]).fit(X[few], y[few] - 5)
print(freeze_plan(model[-1], model[:-1].transform(X[few]), y[few] - 5))

# %%
# What it printed on two cores, with torch 2.14.1 and torchvision 0.29.1, long lines cut:
#
# .. code-block:: text
#
#     name                                             holds ...
#     features.{conv0,denseblock1}                     select_prefix('features.conv0', 'features.norm0', 'featur ...
#     features.transition1.conv, features.denseblock2  select_prefix('features.transition1.conv', 'features.dens ...
#     features.transition2.conv, features.denseblock3  select_prefix('features.transition2.conv', 'features.dens ...
#     classifier                                       select_prefix('classifier') ...
#                          mean    min    max  seconds
#     way
#     everything at once  0.889  0.833  0.927    1.874
#     the head alone      0.758  0.720  0.837    0.467
#     gradual             0.872  0.847  0.897    1.367
#            epoch  batch  tensors  trainable  total share  frozen_prefix      lr_mult
#     phase
#     1          1      1        2        350  74264  0.5%             65            1
#     2          6     21       23      25256  74264   34%             44   0.385 to 1
#     3          9     33       44      49328  74264   66%             23   0.148 to 1
#     4         12     45       67      74264  74264  100%              0  0.0569 to 1
#     1 + classifier.weight, classifier.bias
#     2 + features.transition2.conv, features.{denseblock3,norm5} (21 tensors)
#     2 lr_mult 0.3846: features.transition2.conv, features.{denseblock3,norm5} (21 tensors)
#     3 + features.transition1.conv, features.denseblock2, features.transition2.norm (21 tensors)
#     3 lr_mult 0.1479: features.transition1.conv, features.denseblock2, features.transition2.norm (21 tensors)
#     4 + features.{conv0,norm0,denseblock1}, features.transition1.norm (23 tensors)
#     4 lr_mult 0.0569: features.{conv0,norm0,denseblock1}, features.transition1.norm (23 tensors)
#     frozen_cache: 400 of 550 rows come from memory, which holds up to 0.8 MB; about 0.19 s are lost, filling i ...
#
# Freezing gains no accuracy here: everything at once is as good as gradual unfreezing, whose range is narrower,
# and whose epochs take about three quarters of the time. The head alone takes a quarter, and is worse: this network is
# small, and what it learned from five digits does not tell five others apart.
