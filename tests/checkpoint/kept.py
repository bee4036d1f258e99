"""Nets that remember more than their state dicts."""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Accumulates(NeuralNetClassifier):
    """Takes a step at every second batch, of three in an epoch."""

    def train_step(self, batch, **fit_params):
        n = len(self.history[-1, "batches"])
        step = self.train_step_single(batch, **fit_params)
        if n % 2 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class Scaler:
    def __init__(self):
        self.scale = 1.0

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]


class Scaled(NeuralNetClassifier):
    """Scales the loss by objects that change, one of them in a list."""

    def initialize(self):
        self.scaler, self.scalers = Scaler(), [Scaler()]
        self.n_steps = 0
        return super().initialize()

    def get_loss(self, *args, training=False, **kwargs):
        if training:
            self.scaler.scale *= 0.9
            self.scalers[0].scale *= 1.01
            self.n_steps += 1
        factor = self.scaler.scale * self.scalers[0].scale / max(self.n_steps, 1)
        return super().get_loss(*args, training=training, **kwargs) * factor


class Hidden(nn.Linear):
    """Remembers plain values, and a buffer that is not persistent."""

    def __init__(self):
        super().__init__(4, 3)
        self.n, self.phase, self.mean = 0, "cold", torch.zeros(4)
        self.register_buffer("running", torch.zeros(3), persistent=False)

    def forward(self, x):
        if self.training:
            self.n += 1
            self.phase = "warm" if self.n > 4 else "cold"
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.running.lerp_(super().forward(x).detach().mean(0), 0.1)
        return super().forward(x - self.mean) * (2 if self.phase == "warm" else 1) - self.running


class Criterion(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, scores, targets):
        self.n += 1
        return nn.functional.cross_entropy(scores, targets) / self.n


class PlainCriterion:
    n = 0

    def __call__(self, scores, targets):
        self.n += 1
        return nn.functional.cross_entropy(scores, targets) / self.n


class TwoOptimizers(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.offset_ = nn.Linear(4, 3)
        return self

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.Adam(self.module_.parameters())
        self.offset_optimizer_ = torch.optim.SGD(self.offset_.parameters(), lr=0.1, momentum=0.9)
        return self

    def infer(self, x, **fit_params):
        return super().infer(x, **fit_params) + self.offset_(x)

    def train_step(self, batch, **fit_params):
        self.optimizer_.zero_grad()
        self.offset_optimizer_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_.step()
        self.offset_optimizer_.step()
        return step


class Around(torch.optim.Optimizer):
    """Steps as Adam does, and has a state dict of its own form around Adam's."""

    def __init__(self, params, lr):
        self.inner = torch.optim.Adam(params, lr=lr)
        super().__init__(self.inner.param_groups, {})
        self.n_steps = 0

    def step(self, closure=None):
        self.n_steps += 1
        return self.inner.step(closure)

    def state_dict(self):
        return {"n_steps": self.n_steps, "inner": self.inner.state_dict()}

    def load_state_dict(self, state):
        self.n_steps = state["n_steps"]
        self.inner.load_state_dict(state["inner"])


class Zeroes(Callback):
    """Zeroes in place, when training begins, the tensor that it has loaded."""

    def initialize(self):
        self.n = torch.zeros(1)
        return self

    def on_train_begin(self, net, **kwargs):
        self.n.zero_()

    def on_batch_end(self, net, **kwargs):
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


class Averages(Callback):
    """Makes what it loads into when training begins."""

    def on_train_begin(self, net, **kwargs):
        self.average = AveragedModel(net.module_)

    def on_batch_end(self, net, **kwargs):
        self.average.update_parameters(net.module_)

    def state_dict(self):
        return self.average.state_dict()

    def load_state_dict(self, state):
        self.average.load_state_dict(state)


class Metric(nn.Module):
    """Has its sum in an attribute, and its number in a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.sum = torch.zeros(())
        self.register_buffer("n", torch.zeros(()), persistent=False)

    def forward(self, value):
        self.sum = self.sum + value
        self.n += 1
        return self.sum / self.n


class Measures(Callback):
    """Measures by a module of its own."""

    def initialize(self):
        self.metric = nn.Sequential(Metric())
        return self

    def on_batch_end(self, net, loss=None, **kwargs):
        net.history.record_batch("mean_loss", self.metric(loss.detach()).item())


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.generators = [torch.Generator().manual_seed(3)]
        self.linear = nn.Linear(4, 3)
        self.n_calls = 0
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def forward(self, x):
        if self.training:
            self.n_calls += 1
            self.mean.lerp_(x.mean(0), 0.1)
            x = x + 0.1 * torch.randn(x.shape, generator=self.generators[0]) / self.n_calls
        return self.linear(x - self.mean)
