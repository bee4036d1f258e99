"""What a row releases and something else freezes again is warned of, and the history does not say that it trained."""

import pytest
import torch
from torch import nn

from mlr3torch_py import CallbackSetUnfreeze, select_all, select_last, trained_when
from tests.helpers import X, iris_net, y

TABLE = {"epoch": [2], "weights": [select_all()]}
WORDS = "has frozen them again, such as the network's own train\\(\\): 0;"


class Stubborn(nn.Sequential):
    """A backbone that keeps its first stage frozen, as those of mmdet do."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def train(self, mode=True):
        super().train(mode)
        self[0].requires_grad_(False)
        return self


@pytest.mark.parametrize("batch_size", [30, 150])
def test_what_the_network_freezes_again_is_warned_of_once_and_has_not_trained(batch_size):
    net = iris_net(
        CallbackSetUnfreeze(select_last(1), TABLE),
        module=Stubborn,
        batch_size=batch_size,
        train_split=None,
        audited=False,
    )
    with pytest.warns(UserWarning, match=WORDS) as said:
        net.fit(X, y)
    assert len(said) == 1
    assert set(net.history[:, "n_trainable"]) == {15}
    assert not trained_when(net).loc["0.weight"].any()


def test_the_audit_names_the_cause():
    net = iris_net(CallbackSetUnfreeze(select_last(1), TABLE), module=Stubborn)
    with (
        pytest.warns(UserWarning, match=WORDS),
        pytest.warns(UserWarning, match=r"0.weight, 0.bias did not .* something has frozen it again"),
    ):
        net.fit(X, y)


class Turns(nn.Sequential):
    """Trains its parts in turns, one in each batch, as the steps of a GAN do."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        self.n = 0

    def forward(self, x):
        if self.training:
            self.n += 1
            for part, flag in ((self[0], self.n % 2 == 0), (self[2], self.n % 2 == 1)):
                part.requires_grad_(flag)
        return super().forward(x)


def test_what_others_train_in_turns_is_none():
    net = iris_net(CallbackSetUnfreeze(select_all()), module=Turns, batch_size=50, train_split=None, audited=False)
    net.initialize()
    before = net.module_[2].weight.detach().clone()
    net.partial_fit(X, y)  # in which a warning would be an error
    assert not torch.equal(net.module_[2].weight, before)
