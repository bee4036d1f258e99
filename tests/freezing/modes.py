"""Layers that behave differently in training mode, and a network around them."""

import warnings

import torch
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py.network.unwrap import all_modules
from tests.helpers import X

BATCH = torch.tensor(X[::10])


class Network(nn.Module):
    """`body`, which keeps four features, and `head`."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Reshaped(nn.Module):
    """A layer on inputs of another shape."""

    def __init__(self, layer, *shape):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layer = layer
        self.shape = shape

    def forward(self, x):
        return self.layer(self.first(x).reshape(len(x), *self.shape)).reshape(len(x), 4)


class OwnNorm(nn.Module):
    """Keeps a mean that torch knows nothing of."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return (x - self.mean) * self.weight


class LateNorm(nn.Module):
    """Keeps a mean that the first forward pass makes, in a buffer declared beforehand, a new one, or an attribute."""

    def __init__(self, kind):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.ones(4)), kind
        if kind == "declared":
            self.register_buffer("mean", None)
        else:
            self.mean = None

    def forward(self, x):
        if self.training:
            now = x.detach().mean(0)
            mean = now if self.mean is None else self.mean.lerp(now, 0.1)
            if self.mean is None and self.kind == "new":
                del self.mean
                self.register_buffer("mean", mean)
            self.mean = mean
        return (x if self.mean is None else x - self.mean) * self.weight


class Called(nn.Module):
    """Calls dropout as a function, as the attention of transformers does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), 0.5, training=self.training)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1) < 0.5) * 2 if self.training else x


class Residual(nn.Module):
    """A block that is left out for some of the rows; the layer that does so has no parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop_path = StochasticDepth()

    def forward(self, x):
        return x + self.drop_path(self.linear(x))


class Codebook(nn.Module):
    """Vectors that follow the inputs by a moving average, beside weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("codes", torch.randn(5, 4))

    def forward(self, x):
        x = self.linear(x)
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        if self.training:
            self.codes.index_add_(0, nearest, 0.1 * (x.detach() - self.codes[nearest]))
        return self.codes[nearest] + x - x.detach()


def scripted(module, frozen=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.jit.script(module)
        return torch.jit.freeze(compiled) if frozen else compiled


def traced(mode, layer):
    """Trace layers, which from then on are in one mode for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(nn.Linear(4, 4), layer).train(mode), BATCH, check_trace=False)


NORMALISATION = {
    "BatchNorm1d": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    "BatchNorm1d without parameters": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
    "BatchNorm1d with a plain average": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None)),
    "BatchNorm1d alone": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d": lambda: Reshaped(nn.BatchNorm2d(2), 2, 2, 1),
    "BatchNorm3d": lambda: Reshaped(nn.BatchNorm3d(2), 2, 1, 2, 1),
    "SyncBatchNorm": lambda: nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4)),
    "InstanceNorm1d": lambda: Reshaped(nn.InstanceNorm1d(2, affine=True, track_running_stats=True), 2, 2),
    "InstanceNorm2d": lambda: Reshaped(nn.InstanceNorm2d(2, track_running_stats=True), 2, 2, 1),
    "scripted BatchNorm": lambda: scripted(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
    "own normalisation": lambda: nn.Sequential(nn.Linear(4, 4), OwnNorm()),
}
DROPOUT = {
    "Dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
    "Dropout2d": lambda: Reshaped(nn.Dropout2d(), 2, 2, 1),
    "AlphaDropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout()),
    "dropout as a function": Called,
    "MultiheadAttention": Attention,
    "TransformerEncoderLayer": lambda: Reshaped(nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True), 1, 4),
    "stochastic depth": Residual,
    "RReLU": lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU()),
}
WRITERS = {
    "spectral_norm by hooks": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "spectral_norm by a parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "codebook": Codebook,
}
KINDS = NORMALISATION | DROPOUT | WRITERS


def buffers(module):
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def modes(module):
    return [one.training for one in all_modules(module)]


class Probe(Callback):
    """Runs the body twice after each training batch, in whatever mode it is, and compares outputs and buffers."""

    def __init__(self):
        self.is_fixed_ = []

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.is_fixed_.append(is_fixed(net.module_.body))


def is_fixed(body):
    """Whether two forward passes give one output and leave the buffers as they were, to the bit."""
    before = buffers(body)
    with torch.no_grad():
        outputs = [body(BATCH) for _ in range(2)]
    after = buffers(body)
    return torch.equal(*outputs) and all(torch.equal(before[name], after[name]) for name in before)
