"""What was frozen at a checkpoint, and by whom, is so again when the run is resumed."""

import pytest
from skorch.callbacks import Callback
from torch import nn

from mlr3torch_py import gradual_unfreezing, select_all, select_last, select_trainable, t_clbk, trainable_names
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, reseal, resumed_equals_whole
from tests.helpers import X, iris_net, y


class Fixed(nn.Sequential):
    """Has a weight that required no gradient before any callback acted."""

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self[0].weight.requires_grad_(False)


def unfixed():
    return Fixed().requires_grad_()


def table(weights, epoch=3):
    return {"starting_weights": select_last(1), "unfreeze": {"epoch": [epoch], "weights": [weights]}}


def net_of(*more, module=unfixed, **arguments):
    arguments = arguments or table(select_all() & select_trainable())

    def net(folder, *last):
        callbacks = t_clbk("unfreeze", **arguments), *more, checkpoint(folder, resume=True), *last
        return iris_net(*callbacks, module=module, max_epochs=5, audited=False)

    return net


@pytest.mark.parametrize("crash", [2, 3, 4])
@pytest.mark.parametrize(
    "arguments",
    [
        table(select_all() & select_trainable()),
        table(select_trainable()) | {"starting_weights": select_last(1) & select_trainable()},
        {"schedule": gradual_unfreezing(every=2, among=select_trainable())},
    ],
)
def test_what_a_schedule_had_frozen_is_not_taken_for_frozen_before(arguments, crash, tmp_path):
    assert resumed_equals_whole(tmp_path, net_of(module=Fixed, **arguments), crash=crash)


def test_older_checkpoints_do_not_say_who_froze_what(tmp_path):
    net = net_of(module=Fixed)
    with pytest.raises(CrashError):
        net(tmp_path, Crashes(3)).fit(X, y)
    for key in ("frozen_by_us", "frozen_before_us"):
        reseal(tmp_path / "state2.json", lambda state, key=key: state.pop(key))
    assert net(tmp_path).fit(X, y).history[:, "n_trainable"] == [27, 27, 107, 107, 107]


class ByHand(Callback):
    """Sets a flag in the second epoch."""

    def __init__(self, path, trainable):
        self.path = path
        self.trainable = trainable

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            net.module_.get_parameter(self.path).requires_grad_(self.trainable)


@pytest.mark.parametrize("crash", [3, 4, 5])
@pytest.mark.parametrize(
    ("by_hand", "arguments"),
    [
        (ByHand("4.bias", False), table(select_all(), 5)),  # held by none
        (ByHand("2.bias", False), table(select_all(), 4)),  # held until epoch 4
        (ByHand("2.bias", True), table(select_all(), 4)),
        (ByHand("0.weight", True), {"module": Fixed, **table(select_trainable(), 4)}),  # frozen before any callback
        (ByHand("4.weight", False), {"schedule": gradual_unfreezing(every=2, among=select_trainable())}),
    ],
)
def test_flags_changed_by_hand_in_training_are_kept(by_hand, arguments, crash, tmp_path):
    assert resumed_equals_whole(tmp_path, net_of(by_hand, **arguments), crash=crash)


def test_a_finished_run_has_the_flags_changed_by_hand(tmp_path):
    net = net_of(ByHand("4.bias", False))
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight"]
    assert trainable_names(net(tmp_path).fit(X, y)) == names
    assert trainable_names(net(tmp_path).fit(X, y)) == names


class Interrupts(Callback):
    """Stops the first of two trainings in its second epoch, as Ctrl-C does."""

    has_stopped_ = False

    def on_batch_begin(self, net, training=None, **kwargs):
        if len(net.history) == 2 and not self.has_stopped_:
            self.has_stopped_ = True
            raise KeyboardInterrupt


def test_a_cell_that_is_run_again_after_ctrl_c_warns_of_nothing(tmp_path):
    net = net_of(Interrupts(), **table(select_all()))(tmp_path).fit(X, y)
    assert len(net.history) == 2
    assert net.fit(X, y).history[:, "n_trainable"] == [27, 27, 139, 139, 139]
