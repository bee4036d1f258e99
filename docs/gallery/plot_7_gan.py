"""
A GAN from some digits to others
================================

A GAN learns to draw the digits 0 to 4, and is then shown fifty images of 5 to 9, with and without the first layer of
its discriminator frozen. (Freezing the lower layers of a discriminator is known as FreezeD.)
"""

# %%
# A net with two modules and two optimizers. ``module=`` tells a freezing callback which of them to govern.
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNet
from torch import nn

from mlr3torch_py import select_all, select_last, t_clbk

torch.set_num_threads(1)
SEEDS = range(3)
images, y = load_digits(return_X_y=True)
images = (images / 8 - 1).astype("float32")
low, high = images[y < 5], np.random.default_rng(0).permutation(images[y >= 5])
few, others = high[:50], high[50:]


class GAN(NeuralNet):
    def __init__(self, *args, state=None, **params):
        super().__init__(*args, **params)
        self.state = state

    def initialize_module(self):
        self.generator_ = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
        self.discriminator_ = nn.Sequential(
            nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )
        if self.state is not None:
            self.generator_.load_state_dict(self.state[0])
            self.discriminator_.load_state_dict(self.state[1])
        return self

    def initialize_optimizer(self):
        for name in ("generator", "discriminator"):
            weights = getattr(self, f"{name}_").parameters()
            setattr(self, f"{name}_optimizer_", torch.optim.Adam(weights, lr=self.lr, betas=(0.5, 0.999)))
        return self

    def drawn(self, n):
        return self.generator_(torch.randn(n, 16))

    def train_step(self, batch, **fit_params):
        real, _ = batch
        self._set_training(True)
        fake = self.drawn(len(real))
        self.discriminator_optimizer_.zero_grad()
        real_score, fake_score = self.discriminator_(real), self.discriminator_(fake.detach())
        (nn.functional.softplus(-real_score).mean() + nn.functional.softplus(fake_score).mean()).backward()
        self.discriminator_optimizer_.step()
        self.generator_optimizer_.zero_grad()
        loss = nn.functional.softplus(-self.discriminator_(fake)).mean()
        loss.backward()
        self.generator_optimizer_.step()
        return {"loss": loss, "y_pred": fake}


def trained(images, seed, *callbacks, **params):
    torch.manual_seed(seed)
    net = GAN(
        nn.Identity,
        criterion=nn.Identity,
        lr=0.001,
        batch_size=25,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=list(callbacks),
        **params,
    )
    return net.fit(images, None)


# %%
# How far what is drawn lies from images of 5 to 9 that were not shown: the Fréchet distance of their pixels.
def distance(net):
    with torch.no_grad():
        drawn = net.drawn(len(others)).double().numpy()
    (mean, spread), (true_mean, true_spread) = [(one.mean(0), np.cov(one.T)) for one in (drawn, others)]
    roots = np.sqrt(np.linalg.eigvals(spread @ true_spread).real.clip(0))
    return ((mean - true_mean) ** 2).sum() + np.trace(spread + true_spread) - 2 * roots.sum()


pretrained = trained(low, 0, max_epochs=25)
state = pretrained.generator_.state_dict(), pretrained.discriminator_.state_dict()
print(f"before: {distance(pretrained):.1f}")

# %%
# From random weights, and in three ways from the pretrained ones, with three seeds. A callback of the generator would
# stand beside that of the discriminator, as in ``t_clbk("unfreeze_1", ..., module="generator")``.
upper = {"starting_weights": select_last(2), "module": "discriminator"}
ways = {
    "from random weights": (None,),
    "everything at once": (state,),
    "its first layer frozen": (state, t_clbk("unfreeze", **upper)),
    "its first layer frozen, then released": (
        state,
        t_clbk("unfreeze", unfreeze={"epoch": [21], "weights": [select_all()]}, **upper),
    ),
}
rows = []
for way, (begin, *callbacks) in ways.items():
    for seed in SEEDS:
        net = trained(few, seed, *callbacks, max_epochs=40, state=begin)
        rows.append((way, distance(net)))

table = pd.DataFrame(rows, columns=["way", "distance"]).groupby("way", sort=False)["distance"]
print(table.agg(["mean", "min", "max"]).round(1))

# %%
# The last one, by epochs.
print(net.history[::10, ("epoch", "n_trainable_discriminator")])

# %%
# The pretrained weights are a gain, and freezing is none here: what is drawn stays worse while the first layer of the
# discriminator is frozen, and is as good as with everything at once when it has been released.
