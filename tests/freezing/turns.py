"""Nets of several modules: two that take turns, and two in a row."""

import numpy as np
import torch
from skorch import NeuralNet
from torch import nn

ALL = ["0.weight", "0.bias", "2.weight", "2.bias"]
HEAD = ALL[2:]
REAL = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
judged = nn.functional.binary_cross_entropy_with_logits


def networks():
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)),
    )


def take_turns(generator, discriminator, make, judge, batch):
    """Take a step with either optimizer, each of whose backward passes also reaches the other network."""
    noise = torch.randn(len(batch), 2)
    judge.zero_grad()
    of_real, of_made = discriminator(batch), discriminator(generator(noise))
    loss = judged(of_real, torch.ones_like(of_real)) + judged(of_made, torch.zeros_like(of_made))
    loss.backward()
    judge.step()
    make.zero_grad()
    of_made = discriminator(generator(noise))
    loss = judged(of_made, torch.ones_like(of_made))
    loss.backward()
    make.step()
    return loss.detach()


class GAN(NeuralNet):
    """Two networks that take turns, and no ``module_``."""

    def initialize_module(self):
        self.generator_, self.discriminator_ = networks()
        return self

    def initialize_optimizer(self):
        self.make_ = torch.optim.Adam(self.generator_.parameters(), lr=0.01)
        self.judge_ = torch.optim.SGD(self.discriminator_.parameters(), lr=0.1, momentum=0.9)
        return self

    def train_step(self, batch, **fit_params):
        self._set_training(True)
        loss = take_turns(self.generator_, self.discriminator_, self.make_, self.judge_, batch[0])
        return {"loss": loss, "y_pred": batch[0]}


def gan(*callbacks, cls=GAN, **params):
    given = {"criterion": nn.MSELoss, "max_epochs": 4, "batch_size": 20, "train_split": None, "verbose": 0} | params
    return cls(nn.Identity, callbacks=list(callbacks), **given)


def fitted(net, y=None):
    net.initialize()
    torch.manual_seed(1)
    return net.partial_fit(REAL, y)


def batches():
    torch.manual_seed(1)
    for _ in range(4):
        yield from torch.utils.data.DataLoader(torch.as_tensor(REAL), batch_size=20)


def bits(*modules):
    return [tensor.detach().clone() for module in modules for tensor in module.state_dict().values()]


def same(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


def weights_of(net):
    return bits(net.generator_, net.discriminator_)


class Pair(NeuralNet):
    """An encoder and a decoder with the optimizer, and the step, of skorch."""

    def initialize_module(self):
        self.decoder_, self.module_ = networks()
        return self

    def infer(self, x, **fit_params):
        return self.decoder_(self.module_(x).repeat(1, 2))
