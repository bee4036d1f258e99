"""The summary of a network: shapes, parameters, and from when on each part trains."""

import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from mlr3torch_py import gradual_unfreezing, network_summary, select_last, select_prefix, t_clbk
from tests.callbacks.test_progress_notebook import words_of
from tests.helpers import Nested, X, iris_net, weights, y

GRADUAL = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))


def row(summary, path):
    return summary.to_frame().set_index("path").loc[path]


def test_a_network_alone_has_shapes_and_parameters():
    summary = network_summary(Nested(2), torch.zeros(5, 4))
    assert row(summary, "").output_shape == "(5, 3)"
    assert row(summary, "encoder.1.fc1").output_shape == "(5, 4)"
    assert row(summary, "encoder.1").weights == 48
    assert str(summary).splitlines()[-1] == "131 weights, 131 of them trainable now"
    assert "trains from" not in str(summary)


def test_a_net_says_from_which_epoch_on_a_part_trains():
    net = iris_net(GRADUAL, module=Nested, max_epochs=3)
    summary = network_summary(net, X)
    assert row(summary, "head").trains_from == "epoch 1"
    assert row(summary, "encoder").trains_from == "epoch 3"
    assert row(summary, "embed").trains_from == "never"
    assert row(summary, "").trains_from == "epoch 1 to 3, or never"


@pytest.mark.parametrize("is_fitted", [False, True])
def test_nothing_of_the_net_changes(is_fitted):
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net = iris_net(GRADUAL, module=module, max_epochs=1, audited=False)
    if is_fitted:
        net.fit(X, y)
        before, state = weights(net), net.module_.state_dict()["1.running_mean"].clone()
        flags = [one.requires_grad for one in net.module_.parameters()]
        gradients = [one.grad is None for one in net.module_.parameters()]
    network_summary(net, X)
    assert net.initialized_ == is_fitted
    if is_fitted:
        assert all(torch.equal(before[name], tensor) for name, tensor in weights(net).items())
        assert torch.equal(state, net.module_.state_dict()["1.running_mean"])
        assert flags == [one.requires_grad for one in net.module_.parameters()]
        assert gradients == [one.grad is None for one in net.module_.parameters()]


def test_what_is_pinned_at_the_start_is_marked():
    pins = t_clbk("unfreeze", starting_weights=select_last(1), frozen_mode="eval")
    summary = network_summary(iris_net(pins, module=Nested), X)
    assert row(summary, "encoder.0.norm").pinned
    assert not row(summary, "head").pinned


def test_a_tied_weight_counts_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    assert row(network_summary(Tied()), "").weights == 4


def test_depth_limits_the_levels():
    assert list(network_summary(Nested(2), depth=1).to_frame().path) == ["", "embed", "encoder", "head"]
    with pytest.raises(ValueError, match="`depth` is 0"):
        network_summary(Nested(2), depth=0)


def test_a_pipeline_transforms_the_data():
    pipeline = make_pipeline(FunctionTransformer(lambda x: x[:, :4]), iris_net(GRADUAL, module=Nested))
    assert row(network_summary(pipeline, X.repeat(2, axis=1)), "").output_shape.endswith(", 3)")


def test_callbacks_that_count_batches_need_their_number():
    table = {"batch": [4], "weights": [select_prefix("encoder")]}
    net = iris_net(t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table), module=Nested, max_epochs=9)
    with pytest.raises(ValueError, match="`batches_per_epoch`"):
        network_summary(net)
    assert row(network_summary(net, batches_per_epoch=2), "encoder").trains_from == "epoch 2"


def test_it_is_a_table_in_a_notebook_with_everything_escaped():
    class Sly(nn.Linear):
        pass

    Sly.__name__ = "<Sly>"
    summary = network_summary(nn.Sequential(Sly(1, 1)))
    assert "<Sly>" not in summary._repr_html_()
    assert any("0: <Sly>" in word for word in words_of(summary._repr_html_()))


@pytest.mark.parametrize("wrong", [3, "net", iris_net])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(TypeError, match="`net` is .*; give a net of skorch"):
        network_summary(wrong)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_net_whose_network_torch_does_not_copy_is_summarised():
    layer = nn.utils.weight_norm(nn.Linear(4, 3))
    assert "18 weights, 18 of them trainable now" in str(network_summary(iris_net(module=layer), X))
