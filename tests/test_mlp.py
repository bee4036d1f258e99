import numpy as np
import pytest
import torch
from torch import nn

from mlr3torch_py import MLP


def test_the_network_of_the_seed_has_its_names():
    names = [name for name, _ in MLP(4, 3, neurons=(1, 1, 1)).named_parameters()]
    assert names == [f"{i}.{what}" for i in (0, 3, 6, 9) for what in ("weight", "bias")]


def test_every_hidden_layer_is_linear_activation_dropout():
    network = MLP(4, 3, neurons=(8, 5), p=0.3, activation=nn.LeakyReLU, activation_args={"negative_slope": 0.5})
    assert [type(part) for part in network] == [nn.Linear, nn.LeakyReLU, nn.Dropout] * 2 + [nn.Linear]
    assert [tuple(part.weight.shape) for part in network if isinstance(part, nn.Linear)] == [(8, 4), (5, 8), (3, 5)]
    assert network[1].negative_slope == 0.5
    assert network[2].p == 0.3
    assert network(torch.ones(7, 4)).shape == (7, 3)


def test_one_width_can_be_repeated():
    assert str(MLP(4, 3, neurons=8, n_layers=2)) == str(MLP(4, 3, neurons=(8, 8)))
    assert str(MLP(4, 3, neurons=[8], n_layers=2)) == str(MLP(4, 3, neurons=np.array([8, 8])))


def test_a_slice_is_a_network_too():
    network = MLP(4, 3, neurons=8)
    assert [type(part) for part in network[:2]] == [nn.Linear, nn.ReLU]
    assert network[-1].out_features == 3


def test_no_neurons_make_a_linear_model():
    assert [name for name, _ in MLP(4, 3).named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"d_in": 0}, "d_in"),
        ({"d_in": 4.0}, "d_in"),
        ({"d_out": True}, "d_out"),
        ({"neurons": (3, 0)}, "neurons"),
        ({"neurons": "33"}, "neurons"),
        ({"neurons": None}, "neurons"),
        ({"neurons": (3, 3), "n_layers": 2}, "n_layers"),
        ({"neurons": 3, "n_layers": 0}, "n_layers"),
        ({"p": 1.5}, "p"),
        ({"p": "0.5"}, "p"),
        ({"activation": "relu"}, "activation"),
        ({"activation": nn.ReLU()}, "activation"),
    ],
)
def test_a_wrong_argument_is_named(arguments, argument):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        MLP(**{"d_in": 4, "d_out": 3} | arguments)
