import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch

from mlr3torch_py import t_clbk
from mlr3torch_py.checkpoint.contents import Checkpoint
from mlr3torch_py.checkpoint.folder import CheckpointFolder
from tests.checkpoint.runs import Evil, bits, checkpoint, files, net_of_format_1, reseal, run, seal_of, unpack_format_1
from tests.helpers import X, iris_net, moved, weights, y


def test_a_large_state_that_stays_the_same_is_written_once(tmp_path):
    folder, rows = CheckpointFolder(tmp_path), {"cache": {"rows": torch.ones(3)}}
    for epoch in (1, 2):
        folder.write(Checkpoint.of(epoch, {"rows": rows}, {}).copied())
    folder.write(Checkpoint.of(3, {"rows": {"cache": {"rows": torch.ones(4)}}}, {}))
    folder.write(Checkpoint.of(4, {}, {}))
    assert [name for name in files(tmp_path) if name.startswith("rows")] == ["rows-1.pt", "rows-3.pt"]
    assert [len(folder.read(epoch).parts["rows"]["cache"]["rows"]) for epoch in (1, 2, 3)] == [3, 3, 4]
    assert "rows" not in folder.read(4).parts


def test_a_checkpoint_can_be_sent_to_another_process():
    checkpoint = Checkpoint.of(1, {"rows": {"cache": {"rows": torch.ones(3)}}}, {"best": 0.5})
    assert bits(pickle.loads(pickle.dumps(checkpoint)).parts) == bits(checkpoint.parts)


def test_a_fresh_run_into_a_used_folder_is_refused(tmp_path):
    run(tmp_path, 3)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(FileExistsError, match="`path`: .* holds the checkpoints of another run; pass `resume=True` to"):
        run(tmp_path, 5)
    assert before == {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_foreign_files_is_refused(resume, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="`path`: .* holds thesis.txt, but no .*; give an empty folder"):
        run(tmp_path, 1, resume=resume)
    assert files(tmp_path) == ["thesis.txt"]


def test_resuming_from_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="`resume`: there is no folder .*/no"):
        run(tmp_path / "new", 2, resume=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="`resume`: .*/empty holds no complete checkpoint"):
        run(tmp_path / "new", 2, resume=tmp_path / "empty")


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="`path`: .*file is a file; give a folder"):
        run(tmp_path / "file", 1)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_its_place(path):
    path.unlink()
    path.mkdir()


def hostile(folder, name, content):
    """Replace a file of tensors, with a right hash."""
    torch.save(content, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    reseal(folder / "state2.json", lambda state: state["files"][name].update(sha256=digest))


CHANGED = "has changed since it was written"
DAMAGES = {
    "a flipped bit in the network": (lambda d: flip(d / "network2.pt"), f"network2.pt {CHANGED}"),
    "half an optimizer": (
        lambda d: os.truncate(d / "optimizer2.pt", 99),
        f"optimizer2.pt {CHANGED}",
    ),
    "half a state": (lambda d: os.truncate(d / "state2.json", 99), "state2.json cannot be read"),
    "an empty state": (lambda d: os.truncate(d / "state2.json", 0), "state2.json cannot be read"),
    "another rate": (
        lambda d: (d / "state2.json").write_text((d / "state2.json").read_text().replace("0.1", "0.2")),
        f"state2.json {CHANGED}",
    ),
    "a list": (lambda d: (d / "state2.json").write_text("[]"), "state2.json cannot be read"),
    "a newer format": (
        lambda d: reseal(d / "state2.json", lambda content: content.update(format=3)),
        "state2.json has format 3, this version of mlr3torch_py reads 2; update it",
    ),
    "a state nested too deep": (
        lambda d: (d / "state2.json").write_text("[" * 100_000 + "]" * 100_000),
        "state2.json cannot be read",
    ),
    "a state that is a folder": (lambda d: in_its_place(d / "state2.json"), "state2.json cannot be read"),
    "a network that is a folder": (lambda d: in_its_place(d / "network2.pt"), "network2.pt cannot be read"),
    "a run that is a folder": (lambda d: in_its_place(d / "run.json"), "run.json cannot be read"),
    "a history that is a folder": (lambda d: in_its_place(d / ".history.jsonl"), "history.jsonl cannot be read"),
    "a missing history": (lambda d: (d / ".history.jsonl").unlink(), "history.jsonl is missing; restore it, or"),
    "another row": (lambda d: flip(d / ".history.jsonl"), f"history.jsonl {CHANGED}"),
    **{
        f"no {key}": (lambda d, key=key: reseal(d / "state2.json", lambda c: c.pop(key)), "state2.json cannot be read")
        for key in ("files", "classes", "callbacks", "random", "history", "trainable", "random_of_call", "epoch")
    },
    "a renamed network": (lambda d: (d / "network1.pt").replace(d / "network2.pt"), f"network2.pt {CHANGED}"),
    "a hostile optimizer": (lambda d: hostile(d, "optimizer2.pt", Evil()), "optimizer2.pt cannot be read"),
    "an optimizer without groups": (lambda d: hostile(d, "optimizer2.pt", {"state": {}}), "optimizer2.pt cannot be"),
    "a list for a network": (lambda d: hostile(d, "network2.pt", [1]), "network2.pt cannot be read"),
    "no data in the run": (lambda d: reseal(d / "run.json", lambda c: c.pop("data")), "run.json cannot be read"),
    "half a run": (lambda d: os.truncate(d / "run.json", 99), "run.json cannot be read"),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_error_and_no_step_back(damage, tmp_path):
    act, message = DAMAGES[damage]
    run(tmp_path, 2, t_clbk("lr_step", step_size=1, gamma=0.1))
    act(tmp_path)
    net = iris_net(checkpoint(tmp_path, resume=True), t_clbk("lr_step", step_size=1)).initialize()
    before = weights(net)
    with pytest.raises(ValueError, match=message):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    assert len(net.history) == 0


def test_loading_runs_no_code_from_the_file(tmp_path, capsys):
    run(tmp_path, 1)
    torch.save({"0.weight": Evil()}, tmp_path / "network1.pt")
    digest = hashlib.sha256((tmp_path / "network1.pt").read_bytes()).hexdigest()
    reseal(tmp_path / "state1.json", lambda content: content["files"]["network1.pt"].update(sha256=digest))
    with pytest.raises(
        ValueError, match="network1.pt cannot be read without running code, since .*; delete state1.json to resume"
    ):
        run(tmp_path, 2, resume=True)
    assert "evil" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_written_does_not_grow_with_epochs_times_batches(tmp_path):
    iris_net(checkpoint(tmp_path), max_epochs=6, batch_size=2).fit(X, y)
    sizes = [(tmp_path / f"state{n}.json").stat().st_size for n in range(1, 7)]
    growth = np.diff(sizes)
    assert max(growth) < 100
    history = CheckpointFolder(tmp_path).read(6).contents()["history"]
    assert [len(row["batches"]) for row in history] == [0] * 5 + [75]
    assert [row["train_batch_count"] for row in history] == [75] * 6


def test_skorch_can_load_the_files(tmp_path):
    net = run(tmp_path, 2)
    again = iris_net().initialize()
    again.load_params(f_params=tmp_path / "network2.pt", f_optimizer=tmp_path / "optimizer2.pt")
    assert not moved(weights(net), weights(again))


def test_a_foreign_run_json_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="run.json cannot be read"):
        run(tmp_path, 1)
    assert (tmp_path / "run.json").read_text() == '{"mine": 1}'


def test_a_folder_without_run_json_resumes_with_a_warning(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "run.json").unlink()
    with pytest.warns(UserWarning, match="lacks run.json, so a random .*; restore the file"):
        net = run(tmp_path, 3, resume=True)
    assert len(net.history) == 3
    assert "run.json" in files(tmp_path)


# What older and newer versions have in common


def test_a_folder_of_format_1_is_resumed_with_all_that_it_holds(tmp_path):
    unpack_format_1(tmp_path)
    assert CheckpointFolder(tmp_path).newest() == 2
    parts = CheckpointFolder(tmp_path).read(2).parts
    net = net_of_format_1(tmp_path, max_epochs=2).fit(X, y)
    assert bits(net.module_.state_dict()) == bits(dict(parts["module"]))
    assert bits(net.optimizer_.state_dict()) == bits(dict(parts["optimizer"]))
    assert net.history[:, "train_loss"] == [2.174398183822632, 1.8956443071365356]
    assert dict(net.callbacks_)["early_stopping"].state_dict()["best_score"] == 1.8956443071365356
    net = net_of_format_1(tmp_path, max_epochs=3).fit(X, y)
    assert net.history[-1, "train_loss"] == pytest.approx(2.1765546798706055)  # what the older version gets


def layout(content):
    """Return the keys of a file of JSON, without `version` and those inside the states of callbacks."""
    files = {name: list(entry) for name, entry in content.get("files", {}).items()}
    callbacks = {name: list(entry) for name, entry in content.get("callbacks", {}).items()}
    return set(content) - {"version"}, files, callbacks, list(content.get("data", {}))


def test_what_is_written_has_the_layout_of_format_1_and_more(tmp_path):
    unpack_format_1(tmp_path)
    net_of_format_1(tmp_path / "new", max_epochs=2).fit(X, y)
    assert set(files(tmp_path / "new")) > set(files(tmp_path)) - {"new"}
    for name in ("run.json", "state2.json"):
        old, new = (json.loads((folder / name).read_text()) for folder in (tmp_path, tmp_path / "new"))
        keys, *inside = layout(new)
        keys_before, *inside_before = layout(old)
        assert keys > keys_before
        assert inside[:2] == inside_before[:2]
        assert (old["format"], new["format"]) == (1, 2)
        assert new.pop("sha256") == seal_of(new)
    for name, entry in new["files"].items():
        assert entry["sha256"] == hashlib.sha256((tmp_path / "new" / name).read_bytes()).hexdigest()
        old, new = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, tmp_path / "new"))
        assert old.keys() == new.keys()


def test_names_of_parts_that_differ_by_case_alone_have_files_of_their_own(tmp_path):
    folder = CheckpointFolder(tmp_path)
    parts = {"module": {"a": torch.ones(1)}, "enc": {"a": torch.zeros(1)}, "Enc": {"a": torch.ones(2)}}
    folder.write(Checkpoint.of(1, parts, {"best": 0.5}))
    names = files(tmp_path)
    assert len(names) == len({name.lower() for name in names}) == 4
    read = folder.read(1).parts
    assert {name: part["a"].tolist() for name, part in read.items()} == {"module": [1], "enc": [0], "Enc": [1, 1]}
    folder.keep_only(set())
    assert files(tmp_path) == []


def test_a_checkpoint_that_cannot_be_removed_is_named_and_removed_later(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        folder.write(Checkpoint.of(epoch, {"module": {"a": torch.ones(1)}}, {"best": 0.5}))
    (tmp_path / "network1.pt").unlink()
    (tmp_path / "network1.pt").mkdir()  # which cannot be removed as a file
    with pytest.warns(UserWarning, match="epoch 1 stays until the next one is written"):
        folder.keep_only({2})
    assert folder.epochs() == [2]
    (tmp_path / "network1.pt").rmdir()
    (tmp_path / "network1.pt").touch()
    folder.keep_only({2})
    assert files(tmp_path) == ["network2.pt", "state2.json"]
