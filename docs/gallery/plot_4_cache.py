"""
An epoch with and without the cache
===================================

What a frozen part computes for an image stays the same from epoch to epoch. The cache computes it once.
"""

# %%
# Two blocks of convolutions are frozen, a head trains.
import matplotlib.pyplot as plt
import torch
from skorch import NeuralNetClassifier
from torch import nn

from mlr3torch_py import select_prefix, t_clbk

torch.set_num_threads(1)
torch.manual_seed(0)
X, y = torch.randn(256, 3, 32, 32), torch.randint(2, (256,))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(32, 2)

    def forward(self, X):
        return self.head(self.encoder(X).mean((2, 3)))


def train(*more):
    net = NeuralNetClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        max_epochs=5,
        batch_size=64,
        train_split=None,
        verbose=0,
        callbacks=[t_clbk("unfreeze", starting_weights=select_prefix("head"), frozen_mode="eval"), *more],
    )
    return net.fit(X, y)


plain, cached = train(), train(t_clbk("frozen_cache"))

# %%
# The first epoch fills the cache, and takes longer because of the trials that check whether caching is right. From the
# second one on, every row comes from memory.
print(cached.history[:, ("cache_hits", "cache_misses")])

# %%
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
epochs = range(1, 6)
ax.plot(epochs, plain.history[:, "dur"], color="#7f7f7f", marker="o", label="plain freezing")
ax.plot(epochs, cached.history[:, "dur"], color="#0b5394", marker="s", label="with frozen_cache")
ax.set(xlabel="epoch", ylabel="seconds", ylim=(0, None), xticks=epochs)
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)
