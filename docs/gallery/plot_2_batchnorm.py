"""
What freezing does to BatchNorm
===============================

A frozen BatchNorm layer keeps its weights and continues to update its running statistics, unless it is pinned in eval
mode.
"""

# %%
# A network with two BatchNorm layers, and inputs that are not those that it was made for.
import matplotlib.pyplot as plt
import torch
from skorch import NeuralNetClassifier
from torch import nn

from mlr3torch_py import select_last, t_clbk

torch.manual_seed(0)
X = 3 + 2 * torch.randn(512, 8)
y = (X[:, 0] > 3).long()


def network():
    torch.manual_seed(1)
    first = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


# %%
# Only the head trains. After each epoch the statistics of the first layer are noted.
def train(frozen_mode):
    means = []
    net = NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        verbose=0,
        callbacks=[t_clbk("unfreeze", starting_weights=select_last(1), frozen_mode=frozen_mode)],
    )
    for _ in range(6):
        net.partial_fit(X, y)
        means.append(float(net.module_[1].running_mean.abs().mean()))
    return means


train_mode, eval_mode = train("train"), train("eval")
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.plot(range(1, 7), train_mode, color="#0b5394", marker="o", label='frozen_mode="train", the default, as in R')
ax.plot(range(1, 7), eval_mode, color="#b45f06", marker="s", label='frozen_mode="eval", as in Keras')
ax.set(xlabel="epoch", ylabel="mean of |running_mean|")
ax.spines[["top", "right"]].set_visible(False)
_ = ax.legend(frameon=False)

# %%
# With ``frozen_mode="eval"`` not one bit of the statistics moves.
print(train_mode[-1] > 0.1, set(eval_mode))
