"""torch.compile before torch 2.12, which never trains what is unfrozen later: refused with a schedule."""

import pytest
import torch

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last
from tests.helpers import Nested, X, iris_net, moved, weights, y

pytestmark = pytest.mark.skipif(torch.__version__ >= "2.12", reason="this torch follows a schedule")
COMPILED = {"module": Nested, "compile": True, "compile__backend": "eager"}


def test_a_schedule_is_refused_before_the_first_step():
    net = iris_net(CallbackSetUnfreeze(select_last(1), {"epoch": [3], "weights": [select_all()]}), **COMPILED)
    net.initialize()
    before = weights(net)
    with pytest.raises(ValueError, match=r"torch 2\.\d+\S* never trains what is unfrozen .* install torch 2.12"):
        net.partial_fit(X, y)
    assert len(net.history) == 0
    assert not moved(before, weights(net))


def test_what_stays_frozen_throughout_is_not_refused():
    net = iris_net(CallbackSetUnfreeze(select_last(1)), **COMPILED).initialize()
    before = weights(net)
    net.partial_fit(X, y)
    assert moved(before, weights(net)) == {"_orig_mod.head.weight", "_orig_mod.head.bias"}
