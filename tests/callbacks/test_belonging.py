"""What callbacks keep between calls belongs to one net and one history, in all situations, for all callbacks."""

import functools
import pickle

import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, SequentialLR

from mlr3torch_py import as_lr_scheduler, select_all, select_last, t_clbk, trainable_names
from tests.callbacks.test_lr_scheduler import Rates
from tests.helpers import Score, X, copies, iris_net, moved, weights, y

SCORES = [0.5, 0.4, 0.6, 0.6, 0.3, 0.7, 0.7, 0.8]


class IsSecond(Callback):
    """Marks epoch 2 as the one to load."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("is_second", len(net.history) == 2)


def half(epoch):
    return 0.5**epoch


def third(epoch):
    return 3.0**-epoch


def warm_up(optimizer, gamma=0.5):
    return SequentialLR(optimizer, [ConstantLR(optimizer, 0.1, 3), ExponentialLR(optimizer, gamma)], [2])


# torch 2.8 warns of what its own SequentialLR does.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")

SCHEDULERS = [
    t_clbk("lr_step", step_size=2),
    t_clbk("lr_lambda", lr_lambda=half),
    t_clbk("lr_multiplicative", lr_lambda=half),
    t_clbk("lr_cosine_annealing", T_max=8),
    t_clbk("lr_one_cycle", max_lr=0.5, epochs=8),
    t_clbk("lr_reduce_on_plateau", monitor="score", patience=0, factor=0.5),
    as_lr_scheduler(ExponentialLR, gamma=0.9, step_on_epoch=False),
    as_lr_scheduler(warm_up),
]
KINDS = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.id)


def scheduled(*schedulers, more=(), scores=SCORES, **params):
    own = [("score", Score(scores)), *schedulers, ("rates", Rates()), *more]
    params = {"optimizer__momentum": 0.9, "batch_size": 50} | params
    return iris_net(*own, audited=False, **params)


def rates_in(net, n_epochs):
    """The rates of the batches in the last epochs."""
    return pytest.approx(dict(net.callbacks_)["rates"].batches_[-3 * n_epochs :], rel=1e-6)


@functools.cache
def rates_of_eight(*schedulers):
    net = scheduled(*copies(schedulers, 1)[0], max_epochs=8).fit(X, y)
    return dict(net.callbacks_)["rates"].batches_


def rates_of_whole(*schedulers, first, last):
    """The rates of the batches in some epochs of a run without a stop."""
    return rates_of_eight(*schedulers)[3 * (first - 1) : 3 * last]


@pytest.mark.sample(7)
@KINDS
@pytest.mark.parametrize("files", ["all", "params and history"])
@pytest.mark.parametrize("when", ["load_best", "load_params", "load_params after a pickle"])
def test_a_scheduler_follows_a_history_that_was_taken_back(scheduler, when, files, tmp_path):
    if when.endswith("pickle") and scheduler.id in ("lr_lambda", "lr_multiplicative"):
        pytest.skip("covered by the others")
    only = {} if files == "all" else {"f_optimizer": None}
    keep = Checkpoint(monitor="is_second", dirname=tmp_path, load_best=when == "load_best", **only)
    net = scheduled(copies(scheduler, 1)[0], more=[IsSecond(), ("keep", keep)], max_epochs=5).fit(X, y)
    if when.endswith("pickle"):
        net = pickle.loads(pickle.dumps(net))
    if when != "load_best":
        net.load_params(checkpoint=dict(net.callbacks_)["keep"])
    assert len(net.history) == 2
    net.set_params(max_epochs=3).partial_fit(X, y)
    assert rates_of_whole(scheduler, first=3, last=5) == rates_in(net, 3)
    first = len(net.history) + 1  # skorch's Checkpoint has taken it back once more, if it loads the best
    net.partial_fit(X, y)
    assert rates_of_whole(scheduler, first=first, last=first + 2) == rates_in(net, 3)


@KINDS
def test_a_scheduler_follows_a_history_that_was_kept_before_it_recorded_its_rate(scheduler, tmp_path):
    def stopped_after(n_epochs):
        keep = Checkpoint(monitor=None, dirname=tmp_path)
        net = scheduled(copies(scheduler, 1)[0], max_epochs=n_epochs)
        net.callbacks[1:1] = [("keep", keep), ("load", LoadInitState(keep))]
        return net.fit(X, y)

    stopped_after(2)
    for n_epochs in (2, 3):
        net = stopped_after(n_epochs)
        last = len(net.history)
        assert rates_of_whole(scheduler, first=last - n_epochs + 1, last=last) == rates_in(net, n_epochs)
    assert all("event_lr" in row for row in net.history)


@KINDS
def test_a_scheduler_of_two_nets_in_turn_follows_each(scheduler):
    shared = copies(scheduler, 1)[0]
    a, b = scheduled(shared, max_epochs=2), scheduled(shared, max_epochs=3)
    a.fit(X, y)
    b.fit(X, y)
    a.partial_fit(X, y)
    assert rates_of_whole(scheduler, first=3, last=4) == rates_in(a, 2)
    b.partial_fit(X, y)
    assert rates_of_whole(scheduler, first=4, last=6) == rates_in(b, 3)


@pytest.mark.sample(5)
@KINDS
@pytest.mark.parametrize("files", [["params", "history"], ["params", "history", "optimizer"]], ids=len)
def test_a_new_scheduler_continues_a_history_that_was_loaded(scheduler, files, tmp_path):
    names = {f"f_{name}": tmp_path / name for name in files}
    scheduled(copies(scheduler, 1)[0], max_epochs=3).fit(X, y).save_params(**names)
    new = scheduled(copies(scheduler, 1)[0], max_epochs=2).initialize()
    new.load_params(**names)
    new.partial_fit(X, y)
    assert rates_of_whole(scheduler, first=4, last=5) == rates_in(new, 2)


def test_two_schedulers_continue_a_history_that_was_loaded(tmp_path):
    both = t_clbk("lr_step", step_size=2), as_lr_scheduler(ExponentialLR, gamma=0.5)
    names = {"f_params": tmp_path / "params", "f_history": tmp_path / "history"}
    scheduled(*copies(both, 1)[0], max_epochs=3).fit(X, y).save_params(**names)
    new = scheduled(*copies(both, 1)[0], max_epochs=2).initialize()
    new.load_params(**names)
    new.partial_fit(X, y)
    assert rates_of_whole(*both, first=4, last=5) == rates_in(new, 2)


def test_a_schedule_that_is_not_that_of_the_history_starts_with_a_warning():
    net = scheduled(("lr", t_clbk("lr_step", step_size=1).callback), max_epochs=2).fit(X, y)
    net.set_params(callbacks__lr=t_clbk("lr_lambda", lr_lambda=third).callback, max_epochs=3)
    with pytest.warns(UserWarning, match="its first step at epoch 3, .* it gives 0.0333333 for epoch 2, where"):
        net.partial_fit(X, y)
    assert rates_in(net, 3) == [rate for rate in (0.1, 0.1 / 3, 0.1 / 9) for _ in range(3)]


ARGUMENTS = {
    "lr_step": ({"step_size": 1, "gamma": 0.5}, {"gamma": 0.1}, [0.025, 0.0025]),
    "lr_lambda": ({"lr_lambda": half}, {"lr_lambda": third}, [0.025, 0.1 / 27]),
    "lr_cosine_annealing": ({"T_max": 4}, {"T_max": 3}, [0.05, 0.0]),
    "lr_one_cycle": ({"max_lr": 0.5, "total_steps": 24}, {"max_lr": 5.0}, None),
    "lr_reduce_on_plateau": ({"monitor": "score", "patience": 0, "factor": 0.5}, {"patience": 9}, [0.1, 0.1]),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("resumed", [False, True], ids=["partial_fit", "checkpoint"])
@pytest.mark.parametrize("key", ARGUMENTS)
def test_new_arguments_of_a_scheduler_count_from_then_on(key, resumed, tmp_path):
    old, new, expected = ARGUMENTS[key]
    keep = t_clbk("checkpoint", path=tmp_path, freq=1, resume=True)
    net = scheduled(t_clbk(key, **old), more=copies([keep], 1)[0], max_epochs=2).fit(X, y)
    if resumed:
        net = scheduled(t_clbk(key, **(old | new)), more=[keep], max_epochs=4)
        with pytest.warns(UserWarning, match="resumed with other settings"):
            net.fit(X, y)
    else:
        net.set_params(**{f"callbacks__{key}__{name}": value for name, value in new.items()}).partial_fit(X, y)
    if expected is None:
        whole = rates_of_whole(t_clbk(key, **(old | new)), first=3, last=4)
        assert rates_in(net, 2).expected[1:] == pytest.approx(whole[1:])
    else:
        assert rates_in(net, 2) == [rate for rate in expected for _ in range(3)]


def test_new_arguments_count_in_a_scheduler_that_is_made_of_others():
    net = scheduled(as_lr_scheduler(warm_up), max_epochs=4).fit(X, y)
    net.set_params(callbacks__lr_warm_up__gamma=0.1, max_epochs=2).partial_fit(X, y)
    assert rates_in(net, 2) == [0.025] * 3 + [0.0025] * 3


def test_a_plateau_of_another_score_counts_that_score():
    net = scheduled(t_clbk("lr_reduce_on_plateau", monitor="score", patience=2, factor=0.5), max_epochs=3)
    net.set_params(callbacks=[*net.callbacks, ("rising", Rising())]).fit(X, y)
    net.set_params(callbacks__lr_reduce_on_plateau__monitor="rising", max_epochs=2).partial_fit(X, y)
    assert rates_in(net, 2) == [0.1] * 3 + [0.05] * 3


class Rising(Callback):
    name = "rising"
    lower_is_better = True

    def on_epoch_end(self, net, **kwargs):
        net.history.record("rising", float(len(net.history)))


def stopping(**params):
    return t_clbk("early_stopping", **{"monitor": "score", "patience": 9, "restore_best_weights": True} | params)


class Keeps(Callback):
    """Keeps the weights of every epoch."""

    def __init__(self):
        self.kept_ = []

    def on_epoch_end(self, net, **kwargs):
        self.kept_.append(weights(net))


def stopped(*more, one=None, scores=SCORES, **params):
    one = stopping() if one is None else one
    params = {"batch_size": 150} | params
    return iris_net(("score", Score(scores)), one, ("keeps", Keeps()), *more, audited=False, **params)


def epoch_held(net):
    """The epochs whose weights a net holds."""
    return [i for i, kept in enumerate(dict(net.callbacks_)["keeps"].kept_, 1) if not moved(kept, weights(net))]


@pytest.mark.parametrize("optimizer", [True, False])
def test_weights_of_epochs_that_were_taken_back_are_not_restored(optimizer, tmp_path):
    keep = Checkpoint(monitor="is_second", dirname=tmp_path, **({} if optimizer else {"f_optimizer": None}))
    net = stopped(IsSecond(), ("keep", keep), max_epochs=5).fit(X, y)
    assert epoch_held(net) == [5]
    net.load_params(checkpoint=keep)
    with pytest.warns(UserWarning, match="the best epoch is 2, whose weights were not kept: .* that were taken back"):
        net.set_params(max_epochs=1).partial_fit(X, y)
    assert 6 in epoch_held(net)  # the sixth that was trained, which is epoch 3 of the new branch
    assert dict(net.callbacks_)["early_stopping"].best_epoch == 2


def test_weights_that_load_best_takes_back_are_not_restored_at_the_end(tmp_path):
    keep = Checkpoint(monitor="is_second", dirname=tmp_path, load_best=True)
    with pytest.warns(UserWarning, match="the best epoch is 2, whose weights were not kept"):
        net = stopped(IsSecond(), keep, max_epochs=5).fit(X, y)
    assert (len(net.history), epoch_held(net)) == (2, [2])


def test_weights_of_an_epoch_that_is_still_there_are_restored(tmp_path):
    keep = Checkpoint(monitor="is_third", dirname=tmp_path)

    class IsThird(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("is_third", len(net.history) == 3)

    net = stopped(IsThird(), ("keep", keep), scores=[0.5, 0.1, *SCORES[2:]], max_epochs=5).fit(X, y)
    net.load_params(checkpoint=keep)
    net.set_params(max_epochs=2).partial_fit(X, y)
    assert (len(net.history), epoch_held(net)) == (5, [2])


def test_early_stopping_of_two_nets_in_turn_restores_the_weights_of_its_own():
    shared = stopping()
    a, b = (stopped(one=shared, max_epochs=2) for _ in range(2))
    a.fit(X, y)
    b.fit(X, y)
    with pytest.warns(UserWarning, match="the best epoch is 2, whose weights were not kept: .* of another net"):
        a.partial_fit(X, y)
    assert epoch_held(a) == [4]
    assert shared.callback.best_epoch == 2


@pytest.mark.parametrize(
    ("arguments", "best", "held"),
    [({"monitor": "rising"}, 1, [4]), ({"min_delta": 0.15}, 1, [4]), ({"patience": 3}, 2, [2])],
)
def test_early_stopping_with_other_arguments_counts_with_those(arguments, best, held):
    net = stopped(("rising", Rising()), max_epochs=2).fit(X, y)
    net.set_params(**{f"callbacks__early_stopping__{name}": value for name, value in arguments.items()})
    if held == [4]:
        with pytest.warns(UserWarning, match="epoch is 1, whose weights .* those kept are of epoch 2,"):
            net.partial_fit(X, y)
    else:
        net.partial_fit(X, y)
    assert (dict(net.callbacks_)["early_stopping"].best_epoch, epoch_held(net)) == (best, held)


def test_restoring_that_is_switched_on_later_says_that_the_weights_are_missing():
    net = stopped(one=stopping(restore_best_weights=False), max_epochs=3).fit(X, y)
    net.set_params(callbacks__early_stopping__restore_best_weights=True)
    with pytest.warns(UserWarning, match="the best epoch is 2, whose weights were not kept; so none are restored"):
        net.partial_fit(X, y)


def test_early_stopping_with_a_history_that_was_loaded_says_that_weights_are_missing(tmp_path):
    files = {"f_params": tmp_path / "params", "f_history": tmp_path / "history"}
    stopped(max_epochs=2).fit(X, y).save_params(**files)
    new = stopped(max_epochs=2).initialize()
    new.load_params(**files)
    with pytest.warns(UserWarning, match="the best epoch is 2, whose weights were not kept; so none are restored"):
        new.partial_fit(X, y)
    assert dict(new.callbacks_)["early_stopping"].best_epoch == 2
    new.partial_fit(X, y)  # epoch 5 is better
    assert (dict(new.callbacks_)["early_stopping"].best_epoch, epoch_held(new)) == (5, [3])


def test_weights_of_another_network_are_not_restored():
    net = stopped(max_epochs=2).fit(X, y)
    net.set_params(module__neurons=(5,))
    with pytest.warns(
        UserWarning, match="the best epoch is 2, whose weights do not fit the net, .* another module_.0.b"
    ):
        net.partial_fit(X, y)


class Encoder(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)


class Parts(NeuralNet):
    """A net with two modules, of any names, and a criterion with weights."""

    names = ("module_", "head_")

    def initialize_module(self):
        for name in self.names:
            setattr(self, name, Encoder())
        return self

    def infer(self, x, **kwargs):
        return getattr(self, self.names[1])(getattr(self, self.names[0])(x))


class WithoutModule(Parts):
    names = ("encoder_", "decoder_")


class Scaled(nn.MSELoss):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, y_pred, y_true):
        return self.scale * super().forward(y_pred, y_true)


@pytest.mark.parametrize("cls", [Parts, WithoutModule])
def test_the_best_weights_are_those_of_all_modules_and_criteria(cls):
    class KeepsAll(Callback):
        def on_epoch_end(self, net, **kwargs):
            states.append(all_of(net))

    def all_of(net):
        parts = [getattr(net, name) for name in (*cls.names, "criterion_")]
        return {f"{i}.{key}": value.clone() for i, part in enumerate(parts) for key, value in part.state_dict().items()}

    states, data = [], torch.randn(12, 3)
    more = {"criterion": Scaled, "max_epochs": 4, "lr": 0.1, "verbose": 0, "train_split": None}
    net = cls(Encoder, callbacks=[("score", Score(SCORES)), stopping(), KeepsAll()], **more).fit(data, data)
    assert [i for i, kept in enumerate(states, 1) if not moved(kept, all_of(net))] == [2]
    assert (dict(net.callbacks_)["early_stopping"].best_weights_ is None) == (cls is WithoutModule)
    state = pickle.loads(pickle.dumps(dict(net.callbacks_)["early_stopping"].state_dict()))
    again = cls(Encoder, callbacks=[("score", Score(SCORES)), ("stopping", stopping().callback), KeepsAll()], **more)
    again.initialize()
    again.history = net.history
    dict(again.callbacks_)["stopping"].load_state_dict(state)
    again.partial_fit(data, data)
    best = dict(again.callbacks_)["stopping"].best_epoch
    assert (best, moved(states[4], all_of(again))) == (5, set())


def test_a_state_of_an_earlier_version_restores_the_weights_of_its_epoch():
    net = stopped(max_epochs=4).fit(X, y)
    state = dict(net.callbacks_)["early_stopping"].state_dict()
    old = {name: state[name] for name in ("monitor", "best_epoch", "best_score", "epochs_since", "best_weights")}
    second = stopping(patience=3).callback
    second.load_state_dict(old)
    net.set_params(callbacks__early_stopping=second, max_epochs=1)
    with pytest.warns(UserWarning, match="`score` had stopped improving"):
        net.set_params(callbacks__early_stopping__patience=2).partial_fit(X, y)
    assert epoch_held(net) == [2]


def tb(folders):
    return t_clbk("tb", path=folders, log_train_loss=False)


def kept(folders):
    return t_clbk("checkpoint", path=folders, freq=1)


class NewFolders:
    def __init__(self, root):
        self.root = root

    def __call__(self):
        folder = self.root / str(len(list(self.root.iterdir())))
        folder.mkdir()
        return folder


@pytest.mark.parametrize("make", [tb, kept])
def test_two_nets_in_turn_write_into_no_folder_of_the_other(make, tmp_path):
    shared = make(NewFolders(tmp_path))
    a, b = (iris_net(shared, max_epochs=1, batch_size=150, audited=False) for _ in range(2))
    a.fit(X, y)
    b.fit(X, y)
    of_b = sorted(file.name for file in (tmp_path / "1").iterdir())
    a.partial_fit(X, y)
    assert sorted(file.name for file in (tmp_path / "1").iterdir()) == of_b
    assert shared.callback.path_ == tmp_path / "2"


@pytest.mark.parametrize("loads", ["at the end", "later"])
@pytest.mark.parametrize("make", [tb, kept])
def test_a_history_that_was_taken_back(make, loads, tmp_path):
    (tmp_path / "own").mkdir()
    callback = make(NewFolders(tmp_path / "own"))
    keep = Checkpoint(monitor="is_second", dirname=tmp_path / "skorch", load_best=loads == "at the end")
    more = IsSecond(), ("keep", keep)
    net = iris_net(*more, callback, max_epochs=4, batch_size=150, audited=False).fit(X, y)
    if loads == "later":
        net.load_params(checkpoint=keep)
    net.set_params(max_epochs=1).partial_fit(X, y)
    is_same = callback.callback.path_ == tmp_path / "own" / "0"
    assert is_same == (make is tb)  # TensorBoard drops the later steps; checkpoints belong to one course of a run
    assert len(net.history) == (2 if loads == "at the end" else 3)


def test_checkpoints_into_a_given_folder_are_refused_for_a_history_that_was_taken_back(tmp_path):
    keep = Checkpoint(monitor="is_second", dirname=tmp_path / "skorch")
    net = iris_net(IsSecond(), ("keep", keep), kept(tmp_path / "own"), max_epochs=3, batch_size=150, audited=False)
    net.fit(X, y).load_params(checkpoint=keep)
    with pytest.raises(FileExistsError, match="holds the checkpoint of epoch 3, but the net is at epoch 2"):
        net.partial_fit(X, y)


ROWS = {"epoch": [4], "weights": [select_all()]}


def test_the_table_and_the_schedule_are_those_of_the_history(tmp_path):
    shared = t_clbk("history"), t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=ROWS)
    keep = Checkpoint(monitor="is_second", dirname=tmp_path)
    a = iris_net(IsSecond(), ("keep", keep), *shared, max_epochs=5, batch_size=150, audited=False).fit(X, y)
    b = iris_net(*shared, max_epochs=1, batch_size=150, audited=False).fit(X, y)
    a.load_params(checkpoint=keep)
    a.set_params(max_epochs=1).partial_fit(X, y)
    assert shared[0].callback.history["epoch"].tolist() == [1, 2, 3]
    assert trainable_names(a.module_) == ["6.weight", "6.bias"]
    b.partial_fit(X, y)
    assert shared[0].callback.history["epoch"].tolist() == [1, 2]
    a.partial_fit(X, y)
    assert len(trainable_names(a.module_)) == 6
