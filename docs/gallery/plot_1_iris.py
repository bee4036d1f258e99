"""
The iris example
================

Train some weights from the start and others later, look at the plan before, and at the history after.
"""

# %%
# The net. All but four parameters train from the start; two rows release three of them.
import torch
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier

from mlr3torch_py import MLP, freeze_plan, plot_history, select_invert, select_name, t_clbk

X, y = load_iris(return_X_y=True)
X = X.astype("float32")
torch.manual_seed(1)

net = NeuralNetClassifier(
    MLP,
    module__d_in=4,
    module__d_out=3,
    module__neurons=(32, 32, 32),
    criterion=torch.nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.02,
    max_epochs=6,
    batch_size=8,
    iterator_train__shuffle=True,
    callbacks=[
        t_clbk(
            "unfreeze",
            starting_weights=select_invert(select_name(["0.weight", "3.weight", "6.weight", "6.bias"])),
            unfreeze={"epoch": [2, 5], "weights": [select_name("0.weight"), select_name(["3.weight", "6.weight"])]},
        )
    ],
)

# %%
# The plan, as text and as a picture.
plan = freeze_plan(net, X, y)
print(plan)

# %%
_ = plan.plot()

# %%
# The training. `n_trainable` is the number of trainable weights, and a plus marks the epochs in which something was
# unfrozen.
_ = net.fit(X, y)

# %%
_ = plot_history(net)
