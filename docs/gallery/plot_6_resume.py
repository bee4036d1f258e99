"""
Stop, and resume as if nothing had happened
===========================================

A run that is stopped after three epochs and resumed ends with the same weights, bit for bit, as one that never stopped.
"""

# %%
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier

from mlr3torch_py import MLP, gradual_unfreezing, t_clbk

X, y = load_iris(return_X_y=True)
X = X.astype("float32")


def train(max_epochs, folder):
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        MLP,
        module__d_in=4,
        module__d_out=3,
        module__neurons=(16, 16),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[
            t_clbk("unfreeze", schedule=gradual_unfreezing(every=2)),
            t_clbk("checkpoint", path=folder, freq=1, resume=True),
        ],
    )
    return net.fit(X, y)


# %%
# With ``resume=True``, ``max_epochs`` counts all epochs of the run. The second call starts from a new net and finds the
# first three epochs in the folder.
with TemporaryDirectory() as one, TemporaryDirectory() as other:
    whole = train(6, one)
    train(3, other)
    resumed = train(6, other)

pairs = zip(whole.module_.parameters(), resumed.module_.parameters(), strict=True)
print("the same bits:", all(torch.equal(a, b) for a, b in pairs))
print("trainable weights by epoch:", resumed.history[:, "n_trainable"])
