"""Nets that train in ways of their own, with what they are fitted to."""

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier
from skorch.callbacks import InputShapeSetter
from skorch.helper import SliceDict
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mlr3torch_py import select_all, select_prefix, t_clbk

X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
y = np.arange(48) % 2


class Net(nn.Module):
    def __init__(self, d=6, width=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, 2)

    def forward(self, X):
        return self.head(self.encoder(X))


def make(cls=NeuralNetClassifier, module=Net, callbacks=(), cached=True, **params):
    """Train the head alone for two epochs, then everything for two."""
    schedule = {"starting_weights": select_prefix("head"), "unfreeze": {"epoch": [3], "weights": [select_all()]}}
    callbacks = [t_clbk("unfreeze", **schedule), *([t_clbk("frozen_cache")] if cached else []), *callbacks]
    usual = {"criterion": nn.CrossEntropyLoss, "max_epochs": 4, "batch_size": 16, "train_split": None, "verbose": 0}
    return cls(module, **usual | {"callbacks": callbacks} | params)


class Detector(Net):
    def forward(self, X, targets=None):
        assert (targets is not None) == self.training
        return super().forward(X) if targets is None else {"loss": (super().forward(X)[:, 0] - targets).square().mean()}


class DetectorNet(NeuralNet):
    def train_step_single(self, batch, **params):
        self._set_training(True)
        losses = self.module_(*batch)
        losses["loss"].backward()
        return {"loss": losses["loss"], "y_pred": losses}


class GAN(NeuralNet):
    def initialize_module(self):
        super().initialize_module()
        self.critic_ = nn.Linear(2, 1)
        return self

    def initialize_optimizer(self):
        self.optimizer_ = torch.optim.Adam(self.module_.parameters())
        self.optimizer_of_critic_ = torch.optim.Adam(self.critic_.parameters())
        return self

    def train_step(self, batch, **params):
        self._set_training(True)
        self.optimizer_of_critic_.zero_grad()
        fake = self.module_(batch[0]).detach()
        (self.critic_(fake).mean() - self.critic_(torch.randn_like(fake)).mean()).backward()
        self.optimizer_of_critic_.step()
        self.optimizer_.zero_grad()
        loss = -self.critic_(self.module_(batch[0])).mean()
        loss.backward()
        self.optimizer_.step()
        return {"loss": loss, "y_pred": fake}


class DictLoader(DataLoader):
    def __iter__(self):
        for features, target in super().__iter__():
            yield {"features": features, "target": target}


class DictNet(NeuralNetClassifier):
    def train_step_single(self, batch, **params):
        return super().train_step_single((batch["features"], batch["target"]), **params)


class Rows(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


class RowNet(NeuralNet):
    def train_step_single(self, batch, **params):
        return super().train_step_single((batch, torch.zeros(len(batch), 2)), **params)


class AMP(NeuralNetClassifier):
    def initialize(self):
        super().initialize()
        self.scaler = torch.amp.GradScaler("cpu")
        return self

    def train_step(self, batch, **params):
        self._set_training(True)
        self.optimizer_.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y_pred = self.infer(batch[0])
            loss = self.get_loss(y_pred, batch[1])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer_)
        self.scaler.update()
        return {"loss": loss, "y_pred": y_pred}


class Accumulates(NeuralNetClassifier):
    def train_step(self, batch, **params):
        step = self.train_step_single(batch, **params)
        if len(self.history[-1, "batches"]) % 2 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class Learns(NeuralNetClassifier):
    """Learns the width of its data in fit, and turns them into a dictionary."""

    def fit(self, X, y):
        self.set_params(module__d=X.shape[1])
        return super().fit({"X": X}, y)


class NeedsWidth(Net):
    def __init__(self, d=None):
        if d is None:
            raise ValueError("the width\nis not known")
        super().__init__(d)


class Conditioned(Net):
    data = None

    def forward(self, X):
        if self.data is None:
            raise RuntimeError("no training data")
        return super().forward(X)


class GivesData(NeuralNetClassifier):
    def fit(self, X, y=None):
        self.initialize()
        self.module_.data = X
        return self.partial_fit(X, y)


def parametrized():
    network = Net()
    nn.utils.parametrizations.weight_norm(network.encoder[0])
    nn.utils.parametrizations.orthogonal(network.encoder[2])
    return network


KINDS = {
    "a class": lambda: (make(), X, y),
    "an instance": lambda: (make(module=Net()), X, y),
    "fitted": lambda: (make().fit(X, y), X, y),
    "a detector": lambda: (make(DetectorNet, Detector, criterion=nn.MSELoss), X, X[:, 0]),
    "a GAN": lambda: (make(GAN, criterion=nn.MSELoss), X, X[:, 0]),
    "a fitted GAN": lambda: (make(GAN, criterion=nn.MSELoss).fit(X, X[:, 0]), X, X[:, 0]),
    "batches of dicts": lambda: (make(DictNet, iterator_train=DictLoader), X, y),
    "a SliceDict": lambda: (make(), SliceDict(X=X), y),
    "a dataset without y": lambda: (make(RowNet, criterion=nn.MSELoss), Rows(), None),
    "a shape setter": lambda: (make(module__d=1, callbacks=[InputShapeSetter(param_name="d")]), X, y),
    "learns in fit": lambda: (make(Learns, NeedsWidth), X, y),
    "has learned in fit": lambda: (make(Learns, NeedsWidth).fit(X, y), X, y),
    "gets data in fit": lambda: (make(GivesData, Conditioned), X, y),
    "AMP": lambda: (make(AMP), X, y),
    "a fitted AMP": lambda: (make(AMP).fit(X, y), X, y),
    "accumulates": lambda: (make(Accumulates), X, y),
    "parametrized": lambda: (make(module=parametrized), X, y),
    "fitted, parametrized": lambda: (make(module=parametrized).fit(X, y), X, y),
    "a pipeline": lambda: (make_pipeline(StandardScaler(), make()), X, y),
    "LBFGS": lambda: (make(optimizer=torch.optim.LBFGS, optimizer__max_iter=2), X, y),
}
