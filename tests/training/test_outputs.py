"""What a callback sees of the outputs of the network."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import torch_callback
from mlr3torch_py.training.outputs import detached, first_tensor
from tests.helpers import X, iris_net, y


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True)
class Record:
    name: str
    logits: torch.Tensor
    hidden: list


class Slotted:
    __slots__ = ("hidden", "logits")

    def __init__(self, logits, hidden):
        self.logits = logits
        self.hidden = hidden


FORMS = {
    "tensor": lambda logits, _: logits,
    "tuple": lambda logits, hidden: (logits, hidden),
    "named tuple": Pair,
    "dict": lambda logits, hidden: {"logits": logits, "hidden": hidden},
    "nested": lambda logits, hidden: [None, {"a": (logits,)}, hidden],
    "object": lambda logits, hidden: Record("a", logits, [hidden]),
    "distribution": lambda logits, _: torch.distributions.Categorical(logits=logits),
}


class Network(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)
        self.last = None

    def forward(self, x):
        hidden = self.hidden(x)
        self.last = self.head(hidden)
        return FORMS[self.form](self.last, hidden)


class Classifier(NeuralNetClassifier):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return nn.functional.cross_entropy(self.module_.last, y_true)


def tensors_in(output):
    is_object = hasattr(output, "__dict__") and not isinstance(output, torch.Tensor)
    leaves = torch.utils._pytree.tree_leaves(vars(output) if is_object else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("form", FORMS)
def test_after_backward_shows_the_output_of_the_batch_without_its_graph(form):
    same = []

    def look(self):
        ctx = self.ctx
        last = ctx.network.last.detach()
        expected = last.log_softmax(1) if form == "distribution" else last
        same.append(torch.allclose(ctx.y_hat, expected) and len(ctx.y_hat) == len(ctx.batch[0]))
        assert type(ctx.y_hats) is type(FORMS[form](last, last))
        assert len(tensors_in(ctx.y_hats)) == (1 if form == "tensor" else 2)
        assert not any(tensor.requires_grad for tensor in tensors_in(ctx.y_hats))

    looks = torch_callback("looks", on_after_backward=look, on_batch_end=look)
    net = iris_net(looks, module=Network, module__form=form, cls=Classifier, max_epochs=1, batch_size=60)
    net.set_params(callbacks__valid_acc=None).fit(X, y)
    assert same == [True] * 6


def test_all_of_an_object_with_slots_is_freed_of_its_graph():
    tensor = torch.ones(2, requires_grad=True) * 2
    output = Slotted(tensor, [tensor])
    free = detached(output)
    assert not free.logits.requires_grad
    assert not free.hidden[0].requires_grad
    assert output.logits is tensor


def test_an_output_that_holds_itself_and_one_without_tensors():
    loop = {"tensor": torch.ones(1)}
    loop["self"] = loop
    assert first_tensor(detached(loop)).tolist() == [1.0]
    plain = ["a", {"b": (1, None)}]
    assert detached(plain) is plain
    assert first_tensor(plain) is None


def test_an_optimizer_that_takes_a_batch_several_times_shows_each_output():
    seen = []

    def look(self):
        seen.append(torch.equal(self.ctx.y_hat, self.ctx.network.last.detach()))

    looks = torch_callback("looks", on_after_backward=look)
    optimizer = {"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 3}
    iris_net(looks, module=Network, module__form="tensor", max_epochs=1, audited=False, **optimizer).fit(X, y)
    assert len(seen) > 3
    assert all(seen)


class OwnSteps(NeuralNetClassifier):
    """Trains without train_step_single."""

    def train_step(self, batch, **fit_params):
        def closure():
            self.optimizer_.zero_grad()
            y_pred = self.infer(batch[0])
            loss = self.get_loss(y_pred, batch[1])
            loss.backward()
            self.notify("on_grad_computed", named_parameters=self.module_.named_parameters(), training=True)
            self.step_ = {"loss": loss, "y_pred": y_pred}
            return loss

        self.optimizer_.step(closure)
        return self.step_


def test_a_net_with_steps_of_its_own_never_shows_the_output_of_another_batch():
    seen = []
    looks = torch_callback(
        "looks",
        on_after_backward=lambda self: seen.append(self.ctx.y_hat),
        on_batch_end=lambda self: seen.append(len(self.ctx.y_hat)),
    )
    net = iris_net(looks, cls=OwnSteps, max_epochs=1).fit(X, y)
    assert seen == [None, 50] * 3
    assert "train_step_single" not in vars(net)


def test_a_step_that_the_user_has_put_in_the_place_of_the_nets_stays():
    calls = []
    looks = torch_callback("looks", on_after_backward=lambda self: calls.append(self.ctx.y_hat is not None))
    net = iris_net(looks, max_epochs=1).initialize()
    own = net.train_step_single
    net.train_step_single = lambda *args, **kwargs: calls.append("own") or own(*args, **kwargs)
    given = net.train_step_single
    net.partial_fit(X, y)
    assert calls == ["own", True] * 3
    assert vars(net)["train_step_single"] is given


def test_an_error_in_a_step_leaves_the_net_as_it_was():
    def fail(self):
        raise RuntimeError("no")

    net = iris_net(torch_callback("fails", on_after_backward=fail))
    with pytest.raises(RuntimeError, match="no"):
        net.fit(X, y)
    assert "train_step_single" not in vars(net)


def test_the_outputs_of_training_are_there_before_validation():
    seen = []

    def look(self):
        seen.append([len(output) for output in self.ctx.epoch_outputs])

    looks = torch_callback("looks", on_before_valid=look, on_valid_end=look, public={"keeps_outputs": True})
    iris_net(looks, max_epochs=2, train_split=ValidSplit(3, stratified=True)).fit(X, y)
    assert seen == [[50, 50], [50]] * 2
