"""One engine per net: several callbacks, nets and modules, odd optimizers, and all that happens in between."""

import pickle

import pytest
import torch
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import (
    MLP,
    CallbackSet,
    CallbackSetUnfreeze,
    Freezer,
    select_all,
    select_last,
    select_none,
    select_prefix,
    t_clbk,
    trainable_names,
)
from mlr3torch_py.freezing.engine import FreezingEngine
from mlr3torch_py.schedule.steps import Moment
from tests.helpers import Trace, X, iris_net, moved, weights, y

ALL = ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]
HEAD = ["6.weight", "6.bias"]
LATER = {"epoch": [2, 3], "weights": [select_prefix("3"), select_all()]}


class HeadIsOptimized(NeuralNetClassifier):
    """Gives the optimizer the last layer alone."""

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.SGD(self.module_[-1].parameters(), lr=0.1)
        return self


@pytest.mark.usefixtures("no_schedule_warnings")
def test_something_that_the_optimizer_holds_must_train():
    trace = Trace()
    net = iris_net(CallbackSetUnfreeze(select_prefix("0"), LATER), trace, cls=HeadIsOptimized)
    with pytest.raises(ValueError, match="nothing trains at batch 1 ") as error:
        net.fit(X, y)
    assert "at least one weight that the optimizer holds must be trainable" in str(error.value)
    assert trainable_names(net.module_) == ALL
    table = {"epoch": [3], "weights": [select_prefix("6")], "action": ["freeze"]}
    net = iris_net(CallbackSetUnfreeze(select_all(), table), trace, cls=HeadIsOptimized)
    with pytest.raises(ValueError, match=r"nothing trains at batch 7 \(epoch 3\)"):
        net.fit(X, y)
    assert trace.batches_ == [ALL] * 6


class Halved:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def zero_grad(self):
        for tensor in self.parameters:
            tensor.grad = None

    def step(self):
        with torch.no_grad():
            for tensor in self.parameters:
                if tensor.grad is not None:
                    tensor -= 0.5 * tensor.grad


class HalvedNet(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = Halved(self.module_.parameters())
        return self

    def train_step(self, batch, **fit_params):
        self.optimizer_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_.step()
        return step


@pytest.mark.usefixtures("no_schedule_warnings")
def test_an_optimizer_that_is_none_of_torch_is_taken_to_hold_all_weights():
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace, cls=HalvedNet, max_epochs=3).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 3
    with pytest.raises(ValueError, match="nothing trains at batch 1 "):
        iris_net(CallbackSetUnfreeze(select_none()), cls=HalvedNet).fit(X, y)


def test_a_row_that_has_come_stays_when_another_callback_begins_late():
    class Restarts(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history[-1]["batches"]) == 2:
                dict(net.callbacks_)["freezer"].initialize()

    freezer, trace = t_clbk("freezer", names="3.bias"), Trace()
    table = {"batch": [3], "weights": [select_prefix("0")]}
    iris_net(CallbackSetUnfreeze(select_last(1), table), freezer, Restarts(), trace, max_epochs=2).fit(X, y)
    assert trace.batches_ == [HEAD] * 2 + [[*ALL[:2], *HEAD]] * 4


def test_a_table_that_another_callback_gives_when_training_begins_is_read():
    class Gives(CallbackSet):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            dict(net.callbacks_)["unfreeze"].unfreeze = {"epoch": [2], "weights": [select_all()]}

    trace = Trace()
    iris_net(Gives(), t_clbk("unfreeze", starting_weights=select_last(1)), trace, max_epochs=2).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL] * 3


@pytest.mark.parametrize("turn", [1, -1])
def test_the_number_counts_what_another_callback_does_at_the_begin_of_an_epoch(turn):
    numbers = []

    class Looks(Callback):
        def on_batch_begin(self, net, **kwargs):
            numbers.append(net.history[-1, "n_trainable"])

    both = [t_clbk("freezer", name_starts_with="0.", until_epoch=1), t_clbk("unfreeze", starting_weights=select_all())]
    iris_net(*both[::turn], Looks(), max_epochs=2).fit(X, y)
    assert numbers == [24] * 3 + [39] * 3


@pytest.mark.parametrize("turn", [1, -1])
def test_the_network_is_as_it_was_after_an_error_of_several_callbacks(turn):
    module = MLP(4, 3, neurons=(3, 3))
    table = {"batch": [1], "weights": [select_all()], "action": ["freeze"]}
    both = [CallbackSetUnfreeze(select_all()), CallbackSetUnfreeze(select_last(1), table)]
    with pytest.raises(ValueError, match="nothing trains"):
        iris_net(*both[::turn], module=module).fit(X, y)
    assert trainable_names(module) == ALL


def test_a_first_batch_that_a_row_unfreezes_is_enough():
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_none(), {"batch": [1], "weights": [select_all()]}), trace).fit(X, y)
    assert trace.begin_ == []
    assert trace.batches_ == [ALL] * 12


class Scaled(nn.Module):
    """A criterion with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, predicted, target):
        return nn.functional.cross_entropy(predicted * self.scale, target)


class TwoModules(NeuralNetClassifier):
    def initialize_module(self):
        super().initialize_module()
        self.second_ = nn.Linear(3, 3)
        return self

    def infer(self, x, **fit_params):
        return self.second_(super().infer(x, **fit_params))


def test_a_criterion_with_weights_is_not_governed_and_counts_as_trainable():
    net = iris_net(CallbackSetUnfreeze(select_none()), criterion=Scaled, cls=NeuralNet, max_epochs=1).initialize()
    before = weights(net)
    net.partial_fit(X, torch.as_tensor(y))
    assert not moved(before, weights(net))
    assert net.criterion_.scale.item() != 1


def test_a_second_module_is_not_governed():
    net = iris_net(CallbackSetUnfreeze(select_none()), cls=TwoModules, max_epochs=1).initialize()
    before, second = weights(net), net.second_.weight.detach().clone()
    net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert not torch.equal(net.second_.weight, second)


@pytest.mark.parametrize(
    ("cls", "criterion", "target", "d_out"),
    [
        (NeuralNetClassifier, nn.CrossEntropyLoss, torch.as_tensor(y), 3),
        (NeuralNet, nn.CrossEntropyLoss, torch.as_tensor(y), 3),
        (NeuralNetRegressor, nn.MSELoss, torch.as_tensor(X[:, :1]), 1),
        (NeuralNetBinaryClassifier, nn.BCEWithLogitsLoss, torch.as_tensor((y == 1).astype("float32")), 1),
    ],
)
def test_every_net_of_skorch_follows_the_schedule(cls, criterion, target, d_out):
    trace = Trace()
    iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace, cls=cls, criterion=criterion, module__d_out=d_out).fit(
        X, target
    )
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_two_callbacks_train_what_neither_holds():
    trace = Trace()
    a = CallbackSetUnfreeze(select_prefix("3", "6"))
    b = CallbackSetUnfreeze(select_prefix("0", "6"), {"epoch": [3], "weights": [select_prefix("3")]})
    iris_net(("b", b), ("a", a), trace).fit(X, y)
    assert trace.batches_ == [HEAD] * 6 + [ALL[2:]] * 6


class TrainsAnother(Callback):
    """Trains a second net in the middle of the first one."""

    def __init__(self, other, hook):
        self.other = other
        self.hook = hook

    def on_batch_end(self, net, training=None, **kwargs):
        if training and self.hook == "on_batch_end" and len(net.history) == 2:
            self.other.fit(X, y)

    def on_epoch_end(self, net, **kwargs):
        if self.hook == "on_epoch_end" and len(net.history) == 1:
            self.other.fit(X, y)


@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("loaded", [[], ["0.bias"]])
def test_one_callback_serves_a_second_net_in_the_middle_of_a_first(hook, loaded):
    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [3], "weights": [select_all()]})
    unfreeze.load_state_dict({"trainable": loaded})
    first, second = Trace(), Trace()
    net = iris_net(unfreeze, TrainsAnother(iris_net(unfreeze, second), hook), first).fit(X, y)
    assert first.batches_ == [[*loaded, *HEAD]] * 6 + [ALL] * 6
    assert second.batches_[-12:] == [HEAD] * 6 + [ALL] * 6
    net.partial_fit(X, y)
    assert first.batches_[-1] == ALL


def test_one_callback_serves_two_nets_after_each_other():
    unfreeze = CallbackSetUnfreeze(select_last(1), LATER)
    first, second = Trace(), Trace()
    one = iris_net(unfreeze, first, max_epochs=2).fit(X, y)
    iris_net(unfreeze, second).fit(X, y)
    one.partial_fit(X, y)
    assert first.batches_ == second.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


class Breaks(Callback):
    """Ends training by an error."""

    def on_batch_end(self, net, training=None, **kwargs):
        raise ZeroDivisionError


class TrainsAnotherInVain(TrainsAnother):
    def on_batch_end(self, net, training=None, **kwargs):
        with pytest.raises(ZeroDivisionError):
            self.other.fit(X, y)


@pytest.mark.slow
def test_one_callback_serves_a_second_net_that_breaks_at_every_batch_of_the_first():
    unfreeze, trace = CallbackSetUnfreeze(select_last(1), LATER), Trace()
    iris_net(unfreeze, TrainsAnotherInVain(iris_net(unfreeze, Breaks()), None), trace).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_a_net_that_broke_can_train_again():
    trace = Trace()
    net = iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), LATER)), ("breaks", Breaks()), ("trace", trace))
    with pytest.raises(ZeroDivisionError):
        net.fit(X, y)
    net.set_params(callbacks__breaks=None).fit(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6


def test_training_without_a_begin_works_too():
    trace = Trace()
    net = iris_net(CallbackSetUnfreeze(select_last(1), LATER), trace).initialize()
    net.fit_loop(X, y)
    assert trace.batches_ == [HEAD] * 3 + [ALL[2:]] * 3 + [ALL] * 6
    net.history.new_epoch()
    net.run_single_epoch(net.get_iterator(net.get_dataset(X, y), training=True), True, "train", net.train_step)
    assert trace.batches_[12:] == [ALL] * 3


class KeepsCopies(Callback):
    """Pickles the net after each batch of the second epoch."""

    def __init__(self):
        self.copies_ = []

    def on_batch_end(self, net, training=None, **kwargs):
        if training and len(net.history) == 2:
            self.copies_.append(pickle.dumps(net))


def test_a_copy_that_is_made_while_training_trains_on_its_own():
    keeps = KeepsCopies()
    iris_net(("unfreeze", CallbackSetUnfreeze(select_last(1), LATER)), ("trace", Trace()), keeps, max_epochs=2).fit(
        X, y
    )
    again = pickle.loads(keeps.copies_[1])
    again.partial_fit(X, y)
    assert dict(again.callbacks_)["trace"].batches_[5:] == [ALL] * 6


def test_a_net_without_a_module_is_refused():
    class Other(NeuralNetClassifier):
        def initialize_module(self):
            self.net_ = MLP(4, 3)
            return self

    with pytest.raises(TypeError, match="governs the parameters of `module_`, which Other lacks"):
        iris_net(CallbackSetUnfreeze(select_all()), cls=Other, module=nn.Module).fit(X, y)


def test_the_engine_is_gone_after_training_and_from_copies():
    keeps = KeepsCopies()
    unfreeze = CallbackSetUnfreeze(select_last(1), LATER)
    iris_net(("unfreeze", unfreeze), keeps, max_epochs=2).fit(X, y)
    assert unfreeze.engine_ is None
    assert dict(pickle.loads(keeps.copies_[0]).callbacks_)["unfreeze"].engine_ is None


def test_all_freezing_callbacks_of_a_net_share_one_engine():
    class Looks(Callback):
        def on_batch_begin(self, net, **kwargs):
            engines.append({id(callback.engine_) for _, callback in net.callbacks_ if hasattr(callback, "engine_")})

    engines = []
    both = [t_clbk("unfreeze", starting_weights=select_all()), t_clbk("freezer", names="0.bias")]
    iris_net(*both, Looks(), max_epochs=1).fit(X, y)
    assert [len(of_batch) for of_batch in engines] == [1] * 3


class Loop:
    """A host that is none of skorch: a network and its optimizer in a loop by hand."""

    def __init__(self):
        self.network = MLP(4, 3, neurons=(3, 3), p=0.0)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.epochs = []

    def optimizers(self):
        yield "lr", self.optimizer

    def learnable(self):
        return self.network.parameters()

    def record(self, key, value):
        self.epochs[-1][key] = value

    def recorded(self, key):
        return self.epochs[-1].get(key)

    def last_recorded(self, key, part):
        entries = [entry for row in self.epochs for entry in row.get(key, ()) if part in entry]
        return entries[-1][part] if entries else None

    def record_rate(self, name, rate):
        self.epochs[-1].setdefault(name, []).append(rate)

    def flags_changed(self):
        pass

    def drop_epoch(self):
        self.epochs.pop()

    def train(self, holder, n_epochs, n_batches):
        holder.resolve(self.network)
        engine = FreezingEngine(self, [holder], Moment())
        engine.begin()
        for epoch in range(1, n_epochs + 1):
            self.epochs.append({})
            firsts = tuple(1 + n_batches * i for i in range(epoch))
            engine.begin_epoch(moment := Moment(epoch, engine.batch, firsts))
            for _ in range(n_batches):
                engine.batch += 1
                if engine.batch >= engine.due:
                    engine.begin_batch(moment)
                yield trainable_names(self.network)
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.network(torch.as_tensor(X)), torch.as_tensor(y)).backward()
                self.optimizer.step()
        engine.end()


def test_another_host_than_skorch_can_drive_it():
    loop = Loop()
    table = [
        {"epoch": [2], "weights": [select_prefix("3")], "lr_mult": [0.5]},
        {"batch": [6], "weights": [select_all()]},
    ]
    before = {name: tensor.detach().clone() for name, tensor in loop.network.named_parameters()}
    seen = list(loop.train(CallbackSetUnfreeze(select_last(1), table), 3, 3))
    assert seen == [HEAD] * 3 + [ALL[2:]] * 2 + [ALL] * 4
    assert [row["n_trainable"] for row in loop.epochs] == [12, 24, 39]
    assert [row["event_unfreeze"] for row in loop.epochs] == [False, True, False]
    assert [row["event_unfrozen"] for row in loop.epochs] == [
        None,
        "+ 3.weight, 3.bias, + 0.weight, 0.bias at batch 6",
        None,
    ]
    assert loop.epochs[1]["lr_0_x0.5"] == [0.05] * 3
    assert moved(before, dict(loop.network.named_parameters())) == set(ALL)


class Replaces(Callback):
    """Puts a new tensor in the place of the head's weight, which no optimizer holds."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 1:
            net.module_[6].weight = nn.Parameter(net.module_[6].weight.detach().clone())


def test_a_tensor_that_is_replaced_and_given_to_no_optimizer_is_warned_of_once():
    with pytest.warns(UserWarning, match=r"no optimizer holds them: 6.weight; give") as said:
        iris_net(CallbackSetUnfreeze(select_last(1)), Replaces(), audited=False).fit(X, y)
    assert len(said) == 1


class Leaves(Callback):
    """Takes a callback out of the net at the end of the first epoch."""

    def __init__(self, name):
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 1:
            net.callbacks_ = [item for item in net.callbacks_ if item[0] != self.name]


@pytest.mark.parametrize("name", ["freezer", "unfreeze"])
def test_a_callback_that_leaves_holds_nothing_and_the_others_go_on(name):
    freezer = t_clbk("freezer", name_starts_with="0.")
    unfreeze = t_clbk("unfreeze", starting_weights=select_last(1), unfreeze={"epoch": [3], "weights": [select_all()]})
    trace = Trace()
    iris_net(freezer, unfreeze, Leaves(name), trace, max_epochs=3, audited=False).fit(X, y)
    later = {"freezer": [HEAD] * 3 + [ALL] * 3, "unfreeze": [ALL[2:]] * 6}
    assert trace.batches_ == [HEAD] * 3 + later[name]


def test_an_event_is_a_change_of_tensors_not_of_what_one_callback_holds():
    both = [t_clbk("freezer", name_starts_with="0."), t_clbk("unfreeze", starting_weights=select_last(1))]
    both[1].callback.unfreeze = {"epoch": [2], "weights": [select_prefix("0")]}
    net = iris_net(*both, max_epochs=3).fit(X, y)
    assert net.history[:, "event_unfreeze"] == [False] * 3


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.bias = self.first.bias

    def forward(self, x):
        return self.head(self.second(self.first(x)))


def test_two_callbacks_that_hold_one_name_each_of_a_tied_tensor_freeze_it_together():
    both = [t_clbk("freezer", names="first.bias"), ("other", Freezer("second.bias", until_epoch=1))]
    with pytest.warns(UserWarning, match="share weights"):
        net = iris_net(*both, module=TiedBias, max_epochs=2).fit(X, y)
    assert net.history[:, ("n_trainable", "event_unfreeze")] == [(47, False), (51, True)]


def test_a_tied_tensor_that_was_frozen_by_hand_stays_frozen_if_one_of_its_names_is_governed():
    module = TiedBias()
    module.first.bias.requires_grad = False
    trace = Trace()
    with pytest.warns(UserWarning, match="share weights|required no gradient"):
        iris_net(Freezer("second.bias", until_epoch=1), trace, module=module, max_epochs=2, audited=False).fit(X, y)
    assert all("first.bias" not in names for names in trace.batches_)


class OptimizerOfAnotherName(NeuralNetClassifier):
    def initialize_optimizer(self, *args, **kwargs):
        self.opt_g_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
        return self

    def train_step(self, batch, **fit_params):
        self.opt_g_.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.opt_g_.step()
        return step


def test_an_optimizer_of_another_name_is_followed_between_two_batches():
    class Replaces(Callback):
        def on_batch_end(self, net, training=None, **kwargs):
            if len(net.history[-1]["batches"]) == 1:
                net.opt_g_ = torch.optim.SGD(net.module_.parameters(), lr=0.1)

    table = {"epoch": [1], "weights": [select_prefix("0")], "lr_mult": [0.5]}
    unfreeze = CallbackSetUnfreeze(select_last(1), table)
    net = iris_net(unfreeze, Replaces(), cls=OptimizerOfAnotherName, max_epochs=1, audited=False).fit(X, y)
    assert [row["lr_opt_g_0_x0.5"] for row in net.history[0, "batches"]] == [0.05] * 3
