"""Event files of TensorBoard, read back by TensorBoard's own reader."""

import subprocess
import sys

import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EpochScoring
from skorch.dataset import ValidSplit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlr3torch_py import CallbackSetTB, CallbackSetUnfreeze, Freezer, select_all, select_last, select_prefix, t_clbk
from tests.checkpoint.runs import CrashError, Crashes, Folders
from tests.freezing.turns import REAL, gan
from tests.helpers import Stops, X, iris_net, y


def tb(path, log_train_loss=True):
    return t_clbk("tb", path=path, log_train_loss=log_train_loss)


def read(folder):
    """Map the tags to their (step, value) pairs."""
    accumulator = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def texts(folder, tag):
    accumulator = EventAccumulator(str(folder)).Reload()
    events = accumulator.Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def about(value):
    return pytest.approx(value, rel=1e-5)


def batch_losses(net):
    return [entry["train_loss"] for row in net.history for entry in row["batches"] if "train_loss" in entry]


def numbered(values, first=1):
    return list(enumerate(values, start=first))


def test_a_governed_module_has_tags_of_its_own(tmp_path):
    freezer = Freezer(name_starts_with="0.", until_epoch=2, module="discriminator")
    gan(freezer, tb(tmp_path)).fit(REAL)
    assert read(tmp_path)["n_trainable/discriminator"] == numbered([5, 5, 25, 25])
    assert texts(tmp_path, "events/discriminator") == [(3, "`+ 0.weight, 0.bias`")]


def test_scores_losses_rates_and_the_number_of_trainable_weights_are_written(tmp_path):
    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [3], "weights": [select_all()]})
    net = iris_net(unfreeze, tb(tmp_path), train_split=ValidSplit(3)).fit(X, y)
    scores = {f"{name}/{part}": numbered(net.history[:, f"{part}_{name}"]) for part, name in SCORES}
    in_r = {f"{part}.{name}": numbered(net.history[:, f"{part}_{name}"]) for part, name in SCORES}
    others = {"n_trainable": numbered([12, 12, 39, 39]), "lr/0": numbered([about(0.1)] * 4)}
    assert read(tmp_path) == scores | in_r | others
    losses = numbered(batch_losses(net))
    assert read(tmp_path / "batches") == {
        "loss/batch": losses,
        "last_loss": losses,
        "lr/batch_0": numbered([about(0.1)] * len(losses)),
    }


SCORES = [("train", "loss"), ("valid", "loss"), ("valid", "acc")]


def test_a_score_without_a_prefix_is_written(tmp_path):
    net = iris_net(EpochScoring("f1_macro", lower_is_better=False), tb(tmp_path), train_split=ValidSplit(3)).fit(X, y)
    assert read(tmp_path)["f1_macro/valid"] == numbered(map(about, net.history[:, "f1_macro"]))


def test_the_tags_of_r_may_be_left_out(tmp_path):
    iris_net(t_clbk("tb", path=tmp_path, log_train_loss=True, r_tags=False)).fit(X, y)
    assert set(read(tmp_path)) == {"loss/train", "n_trainable", "lr/0"}
    assert set(read(tmp_path / "batches")) == {"loss/batch", "lr/batch_0"}


def test_the_losses_are_not_written_unless_asked_for(tmp_path):
    iris_net(tb(tmp_path, log_train_loss=False)).fit(X, y)
    assert set(read(tmp_path)) == {"loss/train", "train.loss", "n_trainable", "lr/0"}
    assert not (tmp_path / "batches").exists()


def test_every_event_is_a_text_with_names(tmp_path):
    unfreeze = CallbackSetUnfreeze(select_last(1), {"batch": [4, 8], "weights": [select_prefix("3"), select_all()]})
    iris_net(unfreeze, tb(tmp_path)).fit(X, y)
    assert texts(tmp_path, "events") == [
        (2, "`+ 3.weight, 3.bias at batch 4`"),
        (3, "`+ 0.weight, 0.bias at batch 8`"),
    ]


def test_the_event_of_an_interrupted_epoch_is_written(tmp_path):
    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_all()]})
    net = iris_net(unfreeze, tb(tmp_path), ("stop", Stops(KeyboardInterrupt(), 4))).fit(X, y)
    assert texts(tmp_path, "events") == [(2, "`+ 0.weight, 0.bias, 3.weight, 3.bias`")]
    assert len(read(tmp_path)["train.loss"]) == 1
    net.partial_fit(X, y)
    assert [step for step, _ in texts(tmp_path, "events")] == [2]


def test_rates_are_those_with_which_an_epoch_has_trained(tmp_path):
    """A scheduler sets the rate of the next batch, or the next epoch, before the callback writes."""
    schedulers = [t_clbk("lr_step", step_size=1, gamma=0.1), t_clbk("lr_one_cycle", max_lr=0.4, weight=-1)]
    for i, scheduler in enumerate(schedulers):
        net = iris_net(scheduler, tb(tmp_path / str(i)), max_epochs=3).fit(X, y)
        entries = [entry for row in net.history for entry in row["batches"]]
        used = [about(entry.get("event_lr", 0.1 ** (1 + j // 3))) for j, entry in enumerate(entries)]
        assert read(tmp_path / str(i))["lr/0"] == numbered(used[2::3])
        assert read(tmp_path / str(i) / "batches")["lr/batch_0"] == numbered(used)


def test_parts_of_a_group_with_factors_have_rates_of_their_own(tmp_path):
    table = {"epoch": [2], "weights": [select_prefix("3")], "lr_mult": [0.5]}
    iris_net(CallbackSetUnfreeze(select_last(1), table), tb(tmp_path), optimizer__momentum=0.9, max_epochs=2).fit(X, y)
    written = read(tmp_path)
    assert written["lr/0"] == numbered([about(0.1)] * 2)
    assert written["lr/0_x0.5"] == numbered([about(0.05)] * 2)
    assert "lr/batch_0_x0.5" in read(tmp_path / "batches")


def test_further_optimizers_and_rates_that_are_tensors_are_written(tmp_path):
    class TwoOptimizers(NeuralNetClassifier):
        def initialize_optimizer(self, *args, **kwargs):
            self.optimizer_ = torch.optim.SGD(self.module_[0].parameters(), lr=0.1)
            self.other_ = torch.optim.Adam(self.module_[3].parameters(), lr=torch.tensor(0.2))
            return self

    iris_net(tb(tmp_path), cls=TwoOptimizers, max_epochs=1, audited=False).fit(X, y)
    written = read(tmp_path)
    assert (written["lr/0"], written["lr/other_0"]) == ([(1, about(0.1))], [(1, about(0.2))])


def test_a_path_is_enough_and_the_folder_is_public(tmp_path):
    writes = t_clbk("tb", path=lambda: tmp_path / "chosen")
    assert writes.callback.path_ is None
    iris_net(writes, max_epochs=1).fit(X, y)
    assert writes.callback.path_ == tmp_path / "chosen"
    assert not (tmp_path / "chosen" / "batches").exists()


def test_partial_fit_continues_in_the_same_folder(tmp_path):
    net = iris_net(tb(tmp_path), max_epochs=2).fit(X, y)
    net.partial_fit(X, y)
    assert read(tmp_path)["train.loss"] == numbered(net.history[:, "train_loss"])
    assert read(tmp_path / "batches")["last_loss"] == numbered(batch_losses(net))


@pytest.mark.sample(4)
@pytest.mark.parametrize("crash", [1, 3, 4])
def test_a_resumed_run_continues_in_the_same_folder_without_duplicate_steps(crash, tmp_path):
    def net_of(*more):
        keep = t_clbk("checkpoint", path=tmp_path / "kept", freq=2, resume=True)
        return iris_net(keep, tb(tmp_path / "tb"), *more)

    with pytest.raises(CrashError):
        net_of(Stops(CrashError, 3 * crash - 1)).fit(X, y)
    for lost in (tmp_path / "kept").glob("*[13].*"):
        lost.unlink()  # as SIGKILL would leave it, with epochs 1 and 3 not kept
    net = net_of().fit(X, y)
    assert read(tmp_path / "tb")["train.loss"] == numbered(net.history[:, "train_loss"])
    steps = [step for step, _ in read(tmp_path / "tb" / "batches")["last_loss"]]
    assert steps == list(range(1, 13))


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="`path`: .* holds notes.txt; give an empty folder"):
        iris_net(tb(tmp_path)).fit(X, y)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "other",
    [
        lambda path: t_clbk("checkpoint", path=path, freq=1),
        lambda path: t_clbk("checkpoint", path=path / "checkpoints", freq=1),
        lambda path: ("checkpoint", Checkpoint(None, dirname=str(path))),
        lambda path: ("checkpoint", CallbackSetTB(lambda: path / "more")),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_folder_of_another_callback_is_refused_before_the_first_step(other, order, tmp_path):
    net = iris_net(*[("tb", CallbackSetTB(tmp_path / "tb")), other(tmp_path / "tb")][::order], max_epochs=1)
    with pytest.raises(ValueError, match="`path`: '(checkpoint|tb)' would write into .*tb.*; give each callback"):
        net.fit(X, y)
    assert len(net.history) == 0
    net = iris_net(("tb", CallbackSetTB(tmp_path / "tb2")), other(tmp_path / "other"), max_epochs=1)
    assert len(net.fit(X, y).history) == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="`path`: the folder .* cannot be made: .*; give another one"):
        iris_net(tb(tmp_path / "file" / "folder")).fit(X, y)


def test_a_new_run_into_the_folder_of_another_is_refused(tmp_path):
    iris_net(tb(tmp_path)).fit(X, y)
    before = read(tmp_path)
    with pytest.raises(FileExistsError, match="`path`: .* holds another run; give an empty folder, or a func"):
        iris_net(tb(tmp_path)).fit(X, y)
    assert read(tmp_path) == before


@pytest.mark.slow
def test_every_fit_of_a_grid_search_has_its_own_folder(tmp_path):
    net = iris_net(tb(Folders(tmp_path)), max_epochs=2)
    GridSearchCV(net, {"lr": [0.1, 0.2]}, n_jobs=2, cv=2).fit(X, y)
    assert [len(read(folder)["train.loss"]) for folder in tmp_path.iterdir()] == [2] * 5


def test_files_are_closed_when_training_raises(tmp_path):
    callback = tb(tmp_path)
    with pytest.raises(CrashError):
        iris_net(callback, Crashes(3)).fit(X, y)
    assert callback.callback.by_epoch_ is None
    assert len(read(tmp_path)["train.loss"]) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"path": 3}, "`path` is 3"), ({"log_train_loss": 1}, "`log_train"), ({"r_tags": 1}, "`r_tags`")],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(TypeError, match=error):
        t_clbk("tb", **arguments)


@pytest.mark.slow
def test_without_tensorboard_the_remedy_is_named(tmp_path):
    """In a process of its own, since an import cannot be undone."""
    program = f"""
import sys
sys.modules["tensorboard"] = None
from tests.helpers import X, iris_net, y
from mlr3torch_py import t_clbk
iris_net(t_clbk("tb", path={str(tmp_path / "new")!r}, log_train_loss=False)).fit(X, y)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "CallbackSetTB needs tensorboard; install it with `pip install 'mlr3torch_py[tensorboard]'`" in done.stderr
    assert not (tmp_path / "new").exists()
