"""What the examples in docstrings find there: iris data, and a net for it."""

import pytest
from sklearn.datasets import load_iris
from skorch import NeuralNetClassifier
from torch.nn import CrossEntropyLoss

from mlr3torch_py import MLP


def iris_net(**params):
    """Make a silent net for the iris data: 4 features, 3 classes, 150 rows."""
    given = {"criterion": CrossEntropyLoss, "module__d_in": 4, "module__d_out": 3, "verbose": 0} | params
    return NeuralNetClassifier(MLP, **given)


@pytest.fixture(autouse=True)
def _iris(request, doctest_namespace):
    if isinstance(request.node, pytest.DoctestItem):
        X, y = load_iris(return_X_y=True)
        doctest_namespace |= {"X": X.astype("float32"), "y": y, "iris_net": iris_net}
