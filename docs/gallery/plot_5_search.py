"""
Search over three schedules
===========================

A schedule is a value, so it is an axis of a grid like any other.
"""

# %%
import pandas as pd
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNetClassifier

from mlr3torch_py import MLP, gradual_unfreezing, head_first, t_clbk

X, y = load_iris(return_X_y=True)
torch.manual_seed(0)

net = NeuralNetClassifier(
    MLP,
    module__d_in=4,
    module__d_out=3,
    module__neurons=(16, 16),
    criterion=torch.nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.01,
    max_epochs=10,
    batch_size=16,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
    callbacks=[t_clbk("unfreeze", schedule=head_first(epochs=1), frozen_mode="eval"), t_clbk("frozen_cache")],
)
pipeline = make_pipeline(StandardScaler(), FunctionTransformer(lambda X: X.astype("float32")), net)

# %%
# The cache stands in the net of every candidate, and each training has its own.
grid = {
    "neuralnetclassifier__callbacks__unfreeze__schedule": [
        head_first(epochs=5),
        gradual_unfreezing(every=2),
        gradual_unfreezing(every=2, lr_decay=2.6),
    ]
}
search = GridSearchCV(pipeline, grid, cv=StratifiedKFold(3, shuffle=True, random_state=0), scoring="accuracy")
_ = search.fit(X, y)

# %%
table = pd.DataFrame(search.cv_results_)
table["schedule"] = table.filter(like="param_").iloc[:, 0].map(repr)
print(table[["schedule", "mean_test_score", "std_test_score"]].round(3).to_string(index=False))
