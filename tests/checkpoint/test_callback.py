import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    mlr3torch_callbacks,
    select_all,
    select_last,
    select_prefix,
    t_clbk,
    torch_callback,
)
from mlr3torch_py.checkpoint import folder as checkpoint_folder
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests.checkpoint.runs import CrashError, Crashes, Folders, checkpoint, files, run
from tests.helpers import Trace, X, golden, iris_net, moved, selector, table, weights, y

GOLDEN = golden("checkpoint")


def in_r(names):
    return sorted(name.replace(".rds", ".json") for name in names)


# As R has it


@pytest.mark.parametrize("case", GOLDEN["files"], ids=lambda case: f"{case['epochs']} by {case['freq']}")
def test_there_are_the_files_of_r(case, tmp_path):
    run(tmp_path, case["epochs"], freq=case["freq"])
    assert files(tmp_path) == in_r(case["files"])


def changes(trace, first_batch):
    return [
        {"epoch": epoch, "batch_in_epoch": (batch - 1) % 3 + 1, "global_batch": batch, "trainable": names}
        for i, (batch, epoch, names) in enumerate(
            zip(range(first_batch, 1 + 10**6), trace.epochs_, trace.batches_, strict=False)
        )
        if i == 0 or names != trace.batches_[i - 1]
    ]


@pytest.mark.usefixtures("no_schedule_warnings")
@pytest.mark.parametrize("case", GOLDEN["resume"])
def test_after_a_crash_the_same_weights_train_as_in_r(case, tmp_path):
    crash, traces = case["crash_at_begin_of_epoch"], {}
    for name in ("interrupted", "resumed"):
        traces[name] = Trace()
        unfreeze = CallbackSetUnfreeze(selector(case["starting_weights"]), table(case["unfreeze"]))
        crashes = [Crashes(crash)] if name == "interrupted" else []
        net = iris_net(
            ("unfreeze", unfreeze),
            traces[name],
            *crashes,
            checkpoint(tmp_path, resume=True),
            max_epochs=case["epochs"],
            batch_size=case["batch_size"],
        )
        if crashes:
            with pytest.raises(CrashError, match=case[name]["error"]):
                net.fit(X, y)
        else:
            net.fit(X, y)
        first = 1 if crashes else 3 * (crash - 1) + 1
        assert changes(traces[name], first) == case[name]["changes"]
        assert first + len(traces[name].batches_) - 1 == case[name]["last_global_batch"]
    before, after = traces["interrupted"].batches_, traces["resumed"].batches_
    whole = Trace()
    whole.batches_, whole.epochs_ = before + after, traces["interrupted"].epochs_ + traces["resumed"].epochs_
    assert changes(whole, 1) == case["uninterrupted"]["changes"]


SITUATIONS = {case["id"]: case for case in GOLDEN["situations"]}


def check_epochs(situation, net, path):
    case = SITUATIONS[situation]
    assert len(net.history) == case["epochs_after"]
    if "files" in case:
        assert files(path) == in_r(case["files"])


def test_a_finished_run_trains_nothing_and_is_a_fitted_net(tmp_path):
    first = run(tmp_path, 3)
    net = run(tmp_path, 3, resume=True)
    check_epochs("already_finished", net, tmp_path)
    assert not moved(weights(first), weights(net))
    assert (net.predict(X) == first.predict(X)).all()


def test_fewer_epochs_than_there_are_is_an_error(tmp_path):
    run(tmp_path, 3)
    with pytest.raises(ValueError, match="`max_epochs` is 2, but the checkpoint is of epoch 3"):
        run(tmp_path, 2, resume=True)


def test_more_epochs_continue_the_run(tmp_path):
    run(tmp_path, 3)
    check_epochs("continue", run(tmp_path, 5, resume=True), tmp_path)


def test_resuming_from_a_folder_without_checkpoints_starts_from_scratch(tmp_path):
    check_epochs("empty_resume", run(tmp_path / "new", 2, resume=True), tmp_path)
    check_epochs("empty_resume", run(tmp_path / "other", 2, resume=tmp_path / "other"), tmp_path)


def test_a_checkpoint_that_lacks_a_file_is_skipped_with_a_warning(tmp_path):
    run(tmp_path, 3)
    (tmp_path / "optimizer3.pt").unlink()
    with pytest.warns(UserWarning, match="the checkpoint of epoch 3 lacks optimizer3.pt and is skipped; restore"):
        net = run(tmp_path, 4, resume=True)
    check_epochs("half_written", net, tmp_path)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"freq": 0}, "`freq` is 0; give a whole number of epochs, at least 1"),
        ({"freq": True}, "`freq` is True"),
        ({"freq": 1.5}, "`freq` is 1.5"),
        ({"path": 3}, "`path` is 3"),
        ({"resume": None}, "`resume` is None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        t_clbk("checkpoint", **arguments)


def test_path_and_freq_are_required():
    frame = mlr3torch_callbacks.to_frame().set_index("key")
    assert frame.loc["checkpoint", "required"] == ["path", "freq"]
    assert frame.loc["checkpoint", "weight"] == np.inf
    with pytest.raises(ValueError, match="`freq` of CallbackSetCheckpoint was never set"):
        iris_net(t_clbk("checkpoint", path="x")).fit(X, y)
    assert not Path("x").exists()


def test_a_stateful_callback_after_the_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`callbacks`: the checkpoint callback, .* runs before 'history' and"):
        run(tmp_path, 1, t_clbk("history", weight=np.inf))
    assert not (tmp_path / "run.json").exists()
    iris_net(t_clbk("history", weight=np.inf), checkpoint(tmp_path)).fit(X, y)


def test_a_home_folder_and_a_function_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/kept", 1)
    assert "network1.pt" in files(tmp_path / "kept")
    with pytest.raises(TypeError, match="`path` is None; give a function that returns a folder"):
        run(lambda: None, 1)


# Where nets are used


def test_fit_and_partial_fit_continue_in_their_own_folder(tmp_path):
    made = []

    def folder():
        made.append(tmp_path / str(len(made)))
        return made[-1]

    net = run(folder, 2)
    net.partial_fit(X, y)
    assert len(made) == 1
    assert "network4.pt" in files(made[0])
    net.fit(X, y)
    assert len(made) == 2
    assert files(made[1])[:2] == ["network1.pt", "network2.pt"]


def test_the_folder_that_a_function_has_chosen_is_public(tmp_path):
    saves = checkpoint(Folders(tmp_path))
    assert saves.callback.path_ is None
    iris_net(saves, max_epochs=1).fit(X, y)
    assert saves.callback.path_.parent == tmp_path
    assert "network1.pt" in files(saves.callback.path_)


def test_a_checkpoint_of_another_version_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "__version__", "9.8.7")
    run(tmp_path, 1)
    assert json.loads((tmp_path / "state1.json").read_text())["version"] == "9.8.7"
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="epoch 1 was written by mlr3torch_py 9.8.7, this is .*==9.8.7") as said:
        net = run(tmp_path, 2, resume=True)
    assert (len(net.history), len(said)) == (2, 1)
    run(tmp_path, 3, resume=True)


def test_a_callback_without_a_state_is_left_out_of_the_files(tmp_path):
    run(tmp_path, 1, torch_callback("stateless", weight=math.inf), t_clbk("history"))
    assert list(json.loads((tmp_path / "state1.json").read_text())["callbacks"])[-1] == "history"


def test_a_pickled_net_continues_in_its_folder(tmp_path):
    net = pickle.loads(pickle.dumps(run(tmp_path, 2)))
    net.partial_fit(X, y)
    assert "network4.pt" in files(tmp_path)
    old = pickle.loads(pickle.dumps(net))
    net.partial_fit(X, y)
    with pytest.raises(FileExistsError, match="holds the checkpoint of epoch 6, but the net is at epoch 4"):
        old.partial_fit(X, y)


def test_a_net_that_is_pickled_while_it_trains_takes_no_checkpoint_along(tmp_path):
    def save(self):
        copies.append(pickle.loads(pickle.dumps(self.ctx.callbacks["checkpoint"])))

    copies = []
    run(tmp_path, 2, torch_callback("save", on_exit=save), freq=9)
    assert copies[0].session_ is None
    assert copies[0].folder_.path == tmp_path


def test_an_old_copy_of_a_net_does_not_overwrite_what_came_later(tmp_path):
    net = run(tmp_path, 1)
    old = pickle.dumps(net)
    net.partial_fit(X, y)
    with pytest.raises(FileExistsError, match="holds the checkpoint of epoch 2, but the net is at epoch 1"):
        pickle.loads(old).partial_fit(X, y)


@pytest.mark.slow
def test_every_fit_of_a_grid_search_has_its_own_folder(tmp_path):
    net = iris_net(checkpoint(Folders(tmp_path)), max_epochs=2)
    pipeline = make_pipeline(StandardScaler(), net)
    grid = {"neuralnetclassifier__lr": [0.1, 0.2]}
    search = GridSearchCV(pipeline, grid, n_jobs=2, cv=2).fit(X, y)
    assert len(list(tmp_path.iterdir())) == 5
    assert all("network2.pt" in files(folder) for folder in tmp_path.iterdir())
    assert search.best_estimator_.score(X, y) > 0


def test_one_folder_for_many_fits_is_refused(tmp_path):
    net = iris_net(checkpoint(tmp_path), max_epochs=1)
    clone(net).fit(X, y)
    with pytest.raises(FileExistsError, match="another run"):
        clone(net).fit(X, y)


class InterruptedOnce(nn.Linear):
    """Raises KeyboardInterrupt the nth time its state is saved."""

    def __init__(self, at):
        super().__init__(4, 3)
        self.at = at
        self.saved = 0

    def state_dict(self, *args, **kwargs):
        return Interrupting(super().state_dict(*args, **kwargs), self)


class Interrupting(dict):
    def __init__(self, state, module):
        super().__init__(state)
        self.module = module

    def __reduce__(self):
        self.module.saved += 1
        if self.module.saved == self.module.at:
            raise KeyboardInterrupt
        return OrderedDict, (list(self.items()),)


@pytest.mark.parametrize(("freq", "at", "kept"), [(1, 5, 2), (3, 5, 3)])
def test_ctrl_c_while_a_checkpoint_is_written_loses_no_epoch(freq, at, kept, tmp_path):
    net = iris_net(checkpoint(tmp_path, freq=freq), module=InterruptedOnce(at), max_epochs=3, audited=False)
    net.fit(X, y)
    assert CheckpointFolder(tmp_path).newest() == kept
    assert [file.name for file in tmp_path.glob(".*.tmp")] == []


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
@pytest.mark.parametrize("until", [1, 3])
def test_what_trains_after_a_resume_follows_the_schedule_as_it_is_now(until, tmp_path):
    run(tmp_path, 3, t_clbk("freezer", name_starts_with="0.", until_epoch=1))
    trace = Trace()
    net = run(tmp_path, 5, t_clbk("freezer", name_starts_with="0.", until_epoch=until), trace, resume=True)
    assert trace.batches_ == [list(weights(net))] * 2
    assert moved(trace.weights_[1], trace.weights_[2]) == set(weights(net))


OTHERS = {
    "later": ({"epoch": [5], "weights": [select_all()]}, [12, 39]),
    "less": ({"epoch": [2], "weights": [select_prefix("3")]}, [24, 24]),
    "frozen again": (
        {"epoch": [2, 3], "weights": [select_all(), select_prefix("0")], "action": ["unfreeze", "freeze"]},
        [24, 24],
    ),
    "none": (None, [12, 12]),
}


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
@pytest.mark.parametrize("what", OTHERS)
def test_a_table_that_was_changed_counts_from_a_resume_on_as_it_does_in_partial_fit(what, tmp_path):
    table, expected = OTHERS[what]
    first = ("unfreeze", CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_all()]}))
    run(tmp_path, 3, first)
    resumed = run(tmp_path, 5, ("unfreeze", CallbackSetUnfreeze(select_last(1), table)), resume=True)
    assert resumed.history[3:, "n_trainable"] == expected
    net = iris_net(first, max_epochs=3).fit(X, y)
    net.set_params(callbacks__unfreeze__unfreeze=table).partial_fit(X, y, epochs=2)
    assert net.history[3:, "n_trainable"] == expected


@pytest.mark.usefixtures("no_schedule_warnings")
def test_a_state_that_was_loaded_acts_in_a_resumed_run_since_it_was_loaded(tmp_path):
    table = {"epoch": [2], "weights": [select_prefix("0")], "action": ["freeze"]}

    def loaded():
        unfreeze = CallbackSetUnfreeze(select_last(1), table)
        unfreeze.load_state_dict({"trainable": ["0.bias", "3.bias"]})
        return unfreeze

    run(tmp_path, 3, loaded())
    trace = Trace()
    run(tmp_path, 4, loaded(), trace, resume=True)
    assert trace.batches_ == [["3.bias", "6.weight", "6.bias"]]


@pytest.mark.parametrize(
    ("one", "other"), [(("a", False), ("a", False)), (("a", True), ("b", True)), (("a", False), ("b", True))]
)
def test_two_checkpoints_of_a_net_of_which_one_resumes_or_that_share_a_folder_are_refused(one, other, tmp_path):
    pairs = enumerate([one, other], start=1)
    callbacks = [(f"checkpoint_{i}", checkpoint(tmp_path / name, resume=resume)[1]) for i, (name, resume) in pairs]
    with pytest.raises(ValueError, match="'checkpoint_1', 'checkpoint_2' are checkpoints of one net, and only one can"):
        iris_net(*callbacks, max_epochs=1).fit(X, y)
    assert list(tmp_path.iterdir()) == []


def test_two_checkpoints_with_folders_of_their_own_both_keep_the_training(tmp_path):
    callbacks = [(name, checkpoint(tmp_path / name, freq=i)[1]) for i, name in enumerate("ab", start=1)]
    iris_net(*callbacks, max_epochs=2).fit(X, y)
    assert [CheckpointFolder(tmp_path / name).epochs() for name in "ab"] == [[2, 1], [2]]
