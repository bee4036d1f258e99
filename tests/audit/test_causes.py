"""The causes that the audit names: above all, whether the network itself has written."""

import copy
import pickle

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import CallbackSet, CallbackSetUnfreeze, Freezer, select_last, t_clbk
from tests.helpers import X, iris_net, y

WORDS = torch.arange(150 * 2).reshape(150, 2) % 10


class Follower(nn.Module):
    """A frozen copy that follows the trained original, as in MoCo and BYOL; both are equal at first."""

    def __init__(self, guarded=False):
        super().__init__()
        self.online = nn.Linear(4, 4)
        self.target = copy.deepcopy(self.online)
        self.head = nn.Linear(8, 3)
        self.guarded = guarded

    def forward(self, x):
        if self.target.training or not self.guarded:
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.1)
        return self.head(torch.cat([self.online(x), self.target(x)], 1))


class FirstBatch(nn.Module):
    """Sets its scale by the first batch, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.is_set = False

    def forward(self, x):
        if not self.is_set:
            self.scale.data = 1 / x.detach().std(0)
            self.is_set = True
        return x * self.scale


class Clamped(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.2, 0.2)
        return super().forward(x)


def error_of(net, x=X):
    with pytest.raises(RuntimeError) as error:
        net.fit(x, y)
    message, _, option = str(error.value).rpartition("; if it is meant to change, ")
    assert option == 'set on_change="warn" of freeze_audit'
    return message


def test_a_follower_in_the_network_is_found_though_it_does_not_move_at_first():
    net = iris_net(Freezer(name_starts_with="target"), t_clbk("freeze_audit"), module=Follower)
    assert error_of(net) == (
        "target.weight, target.bias changed while frozen, in batches 1 to 3: the network's own forward writes it; if "
        'it does so in training mode only, set frozen_mode="eval" of Freezer'
    )


def test_the_remedy_for_a_follower_helps_or_is_not_named_again():
    freezer = Freezer(name_starts_with="target", frozen_mode="eval")
    iris_net(freezer, t_clbk("freeze_audit"), module=Follower, module__guarded=True).fit(X, y)
    message = error_of(iris_net(freezer, t_clbk("freeze_audit"), module=Follower))
    assert message.endswith('writes it all the same, though frozen_mode="eval" of Freezer pins its module in eval mode')


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from the tracing of the criterion
def test_a_follower_is_found_in_a_compiled_network():
    net = iris_net(
        Freezer(name_starts_with="target"),
        t_clbk("freeze_audit"),
        module=Follower,
        compile=True,
        compile__backend="eager",
    )
    assert "the network's own forward writes it" in error_of(net)


@pytest.mark.parametrize("first", [FirstBatch, lambda: Clamped(4, 4)], ids=["ActNorm", "clamped"])
@pytest.mark.parametrize("sample", [None, 16])
def test_modules_that_write_their_own_weights_are_found(first, sample):
    network = nn.Sequential(first(), nn.Linear(4, 3))
    net = iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit", sample=sample), module=network)
    message = error_of(net)
    assert message.startswith(f"0.{'scale' if first is FirstBatch else 'weight'} changed while frozen, in batches 1")
    assert "the network's own forward writes it" in message


def test_a_forward_pass_that_begins_to_write_in_a_later_epoch_is_found():
    class Late(Follower):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls < 7:
                return self.head(torch.cat([self.online(x), self.target(x)], 1))
            return super().forward(x)

    net = iris_net(Freezer(name_starts_with="target"), t_clbk("freeze_audit"), module=Late)
    assert "in batches 7 to 9: the network's own forward writes it" in error_of(net)


class Words(nn.Module):
    def __init__(self, bag, max_norm=1.0, **params):
        super().__init__()
        self.bag = bag
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.words = kind(12, 4, max_norm=max_norm, **params)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(x) if self.bag else self.words(x).mean(1))


@pytest.mark.filterwarnings("ignore:words.weight will be frozen:UserWarning")
@pytest.mark.parametrize("bag", [False, True])
def test_max_norm_is_named(bag):
    net = iris_net(
        CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"), module=Words, module__bag=bag, module__max_norm=0.1
    )
    kind = "EmbeddingBag" if bag else "Embedding"
    assert error_of(net, WORDS) == (
        "words.weight changed while frozen, in batches 1 to 3: its own forward writes it, by max_norm=0.1 of the "
        f"{kind}; set max_norm to None to keep it as it is"
    )


@pytest.mark.filterwarnings("ignore:words.weight will be frozen:UserWarning")
def test_max_norm_is_named_where_no_forward_pass_was_watched():
    class Unseen(NeuralNetClassifier):
        def train_step_single(self, batch, **fit_params):
            self._set_training(True)
            y_pred = self.module_(batch[0])
            loss = self.get_loss(y_pred, batch[1], X=batch[0], training=True)
            loss.backward()
            return {"loss": loss, "y_pred": y_pred}

    net = iris_net(
        CallbackSetUnfreeze(select_last(1)),
        t_clbk("freeze_audit"),
        module=Words,
        module__bag=False,
        module__max_norm=0.1,
        cls=Unseen,
    )
    assert "max_norm=0.1" in error_of(net, WORDS)
    assert "infer" not in vars(net)


def writes_at(hook, weight):
    class Writes(CallbackSet):
        pass

    def write(self, net, training=True, **kwargs):
        if training:
            with torch.no_grad():
                net.module_.get_parameter("0.bias").add_(1)

    setattr(Writes, hook, write)
    writes = Writes()
    writes.weight = weight
    return writes


@pytest.mark.parametrize("hook", ["on_batch_begin", "on_grad_computed", "on_batch_end"])
@pytest.mark.parametrize("weight", [0, 999])
def test_what_a_callback_writes_is_not_laid_to_the_forward_pass(hook, weight):
    net = iris_net(writes_at(hook, weight), CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"))
    assert "0.bias changed while frozen" in (message := error_of(net))
    assert "something wrote into it, such as a callback" in message


def test_what_a_backward_hook_writes_is_not_laid_to_the_forward_pass():
    network = iris_net().initialize().module_

    def write(gradient):
        with torch.no_grad():
            network.get_parameter("0.bias").add_(1)

    network.get_parameter("6.bias").register_hook(write)
    net = iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"), module=network)
    assert "something wrote into it" in error_of(net)


def test_a_prediction_within_a_batch_is_not_taken_for_its_forward_pass():
    class Predicts(CallbackSet):
        default_weight = 999

        def on_batch_begin(self, net, training=None, **kwargs):
            if training:
                net.predict(X[:5])

    net = iris_net(Freezer(name_starts_with="target"), t_clbk("freeze_audit"), Predicts(), module=Follower)
    message = error_of(net)
    assert "something wrote into it" not in message
    assert "the network's own forward writes it" in message


def test_a_tensor_in_the_place_of_another_is_called_that():
    class Replaces(Callback):
        def on_batch_end(self, net, **kwargs):
            network = net.module_
            network[0].bias = nn.Parameter(network[0].bias.detach() + 1, requires_grad=False)

    net = iris_net(Replaces(), CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"))
    assert error_of(net) == "0.bias changed while frozen, in batches 1 to 1: another tensor has taken its place"


class Copies(CallbackSet):
    default_weight = 999

    def __init__(self):
        self.copies_ = []

    def on_batch_begin(self, net, training=None, **kwargs):
        if training and len(self.copies_) < 2:
            self.copies_.append(pickle.dumps(net if self.copies_ else copy.deepcopy(net)))


def test_the_net_is_given_back_as_it_was():
    copies = Copies()
    net = iris_net(CallbackSetUnfreeze(select_last(1)), t_clbk("freeze_audit"), copies, max_epochs=1).fit(X, y)
    assert "infer" not in vars(net)
    for one in map(pickle.loads, copies.copies_):
        assert (one.predict_proba(X) == one.predict_proba(X)).all()
        one.partial_fit(X, y)
        assert "infer" not in vars(one)


def test_what_stands_in_for_infer_already_is_kept():
    net = iris_net(Freezer(name_starts_with="target"), t_clbk("freeze_audit", on_change="warn"), module=Follower)
    net.initialize()
    calls = []

    def infer(x, **fit_params):
        calls.append(len(x))
        return type(net).infer(net, x, **fit_params)

    net.__dict__["infer"] = infer
    with pytest.warns(UserWarning, match="the network's own forward writes it"):
        net.partial_fit(X, y)
    assert vars(net)["infer"] is infer
    assert calls == [50] * 12


def test_an_error_in_the_forward_pass_leaves_nothing_behind():
    class Fails(nn.Linear):
        def forward(self, x):
            raise ZeroDivisionError

    net = iris_net(Freezer("0.bias"), t_clbk("freeze_audit"), module=nn.Sequential(Fails(4, 4), nn.Linear(4, 3)))
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    assert "infer" not in vars(net)


class Merging(nn.Linear):
    """Merges an adapter into its weight in eval mode, as LoRA layers do, which rounds."""

    def train(self, mode=True):
        with torch.no_grad():
            self.weight += 0.1 if self.training else -0.1
        return super().train(mode)


def test_the_train_method_of_a_module_is_named():
    net = iris_net(Freezer("0.weight"), t_clbk("freeze_audit"), module=nn.Sequential(Merging(4, 4), nn.Linear(4, 3)))
    assert "something wrote into it, such as its module's own train() or eval(), a callback," in error_of(net)
