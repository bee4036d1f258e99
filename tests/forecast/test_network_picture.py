"""The picture of a network: its modules, their sizes, and what is frozen."""

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from mlr3torch_py import gradual_unfreezing, plot_network, select_last, select_prefix, t_clbk
from tests.freezing.turns import Pair, gan
from tests.helpers import Nested, X, iris_net, y

mpl.use("agg")
GRADUAL = t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def drawn(ax):
    """Return the size that is written beside each module, and whether its name is bold."""
    labels, sizes = ax.get_yticklabels(), ax.texts
    return {
        label.get_text().strip(" │├└─"): (size.get_text().strip(), label.get_fontweight() == "bold")
        for label, size in zip(labels, sizes, strict=True)
    }


def test_a_network_is_drawn_as_it_is_now():
    network = Nested(2)
    network.embed.requires_grad_(False)
    found = drawn(plot_network(network))
    assert found["embed: Linear"] == ("20", False)
    assert found["Nested"] == ("131 (85% trainable)", True)
    assert found["head: Linear"] == ("15", True)


def test_the_colours_say_the_share_that_trains():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    ax = plot_network(network)
    swatches = [patch.get_facecolor() for patch in ax.patches[::3]]
    assert len(set(swatches)) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["frozen", "in part", "trainable"]


def test_a_net_before_training_is_drawn_as_its_first_batch_has_it():
    net = iris_net(GRADUAL, module=Nested, max_epochs=3)
    assert [name for name, (_, is_bold) in drawn(plot_network(net)).items() if is_bold] == ["Nested", "head: Linear"]
    assert not net.initialized_


def test_an_epoch_is_drawn_by_the_plan():
    ax = plot_network(iris_net(GRADUAL, module=Nested, max_epochs=3), epoch=3)
    assert drawn(ax)["encoder: Sequential"][1]
    assert ax.get_xlabel() == "epoch 3"


def test_an_epoch_of_a_schedule_in_batches_needs_their_number():
    net = iris_net(t_clbk("unfreeze", schedule=gradual_unfreezing(every=2, unit="batch")), module=Nested)
    assert not drawn(plot_network(net))["encoder: Sequential"][1]
    with pytest.raises(ValueError, match="pass `X` and `y`, or `batches_per_epoch`"):
        plot_network(net, epoch=1)
    assert drawn(plot_network(net, epoch=1, batches_per_epoch=9))["encoder: Sequential"][1]


def test_a_trained_net_is_drawn_as_it_is_now_and_stays_so():
    frozen = t_clbk("unfreeze", starting_weights=~select_prefix("embed"))
    net = iris_net(frozen, module=Nested, max_epochs=1).fit(X, y)
    net.module_.head.requires_grad_(False)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = drawn(plot_network(net))
    assert torch.equal(state, torch.get_rng_state())
    assert not found["embed: Linear"][1]
    assert not found["head: Linear"][1]


@pytest.mark.parametrize("beside", [[], [t_clbk("freezer", name_starts_with="2.")]])
def test_a_module_is_drawn_by_the_callbacks_that_govern_it(beside):
    net = gan(t_clbk("unfreeze", starting_weights=select_last(1), module="decoder"), *beside, cls=Pair)
    for epoch in (None, 2):
        assert drawn(plot_network(net, module="decoder", epoch=epoch))["Sequential"][0] == "32 (62% trainable)"
        assert drawn(plot_network(net, epoch=epoch))["Sequential"][0] == ("25 (80% trainable)" if beside else "25")


def test_a_picture_of_a_large_network_has_at_most_forty_rows():
    ax = plot_network(Nested(12))
    assert len(ax.get_yticklabels()) <= 40
    assert "11: " in ax.get_yticklabels()[-2].get_text()
    assert len(plot_network(Nested(12), depth=1).get_yticklabels()) == 4


def test_own_axes_are_drawn_into():
    _, ax = pyplot.subplots()
    assert plot_network(nn.Linear(2, 2), ax=ax) is ax


def test_tied_weights_count_once_and_lazy_ones_not():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight
            self.c = nn.LazyLinear(2)

    found = drawn(plot_network(Tied()))
    assert [found[name][0] for name in ("Tied", "a: Linear", "b: Linear", "c: LazyLinear")] == ["4", "4", "4", "0"]


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (nn.Linear, {}, "`net` is"),
        (nn.Linear(1, 1), {"depth": 0}, "`depth` is 0"),
        (nn.Linear(1, 1), {"epoch": 2}, "which has no schedule"),
        (iris_net(GRADUAL), {"epoch": 0}, "`epoch` is 0"),
    ],
)
def test_wrong_arguments_are_refused(net, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot_network(net, **arguments)


def test_a_network_without_parameters_is_one_row():
    assert drawn(plot_network(nn.Sequential(nn.ReLU()))) == {"Sequential": ("0", False)}
