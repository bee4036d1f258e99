import hashlib
import os
import pickle
import tempfile
import threading
from pathlib import Path

import pytest

from mlr3torch_py import torch_callback
from mlr3torch_py.checkpoint import sealed_files
from mlr3torch_py.checkpoint.sealed_files import SealedFiles, json_writer
from tests.checkpoint.runs import CrashError, Crashes, checkpoint, files, run
from tests.helpers import X, iris_net, moved, weights, y

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX, to limit what a process may write")


def text(content):
    return lambda file, _: file.write(content)


def fails(error):
    def write(file, hashes):
        file.write(b"half")
        raise error

    return write


def all_files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_set_is_written_with_the_hashes_of_its_files(tmp_path):
    folder = SealedFiles(tmp_path)
    folder.write({"a.txt": text(b"a"), "b.txt": text(b"b"), "all.json": json_writer(dict)})
    digests = {name: hashlib.sha256(name[:1].encode()).hexdigest() for name in ("a.txt", "b.txt")}
    assert folder.read_json("all.json") == digests
    assert folder.hash("a.txt") == digests["a.txt"]
    assert folder.check_hash("a.txt", digests["a.txt"]).read_bytes() == b"a"
    assert sorted(folder.names()) == ["a.txt", "all.json", "b.txt"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError("no space left"), OSError),
        (RuntimeError("unexpected pos"), OSError),
        (TypeError("not to be kept"), TypeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=repr,
)
@pytest.mark.parametrize("has_older", [False, True])
def test_all_files_or_none(error, raised, has_older, tmp_path):
    folder = SealedFiles(tmp_path)
    if has_older:
        folder.write({"a.txt": text(b"old"), "all.json": json_writer(dict)})
    before = all_files(tmp_path)
    with pytest.raises(raised) as caught:
        folder.write({"a.txt": text(b"new"), "b.txt": fails(error), "all.json": json_writer(dict)})
    assert all_files(tmp_path) == before
    if raised is OSError:
        assert str(caught.value).startswith(f"`path`: a.txt, b.txt, all.json cannot be written to {tmp_path} ({error})")


def test_a_set_that_is_replaced_in_part_has_no_seal(tmp_path):
    """Otherwise it would vouch for a mixture of two sets."""
    folder = SealedFiles(tmp_path)
    folder.write({"a.txt": text(b"old"), "b.txt": text(b"old"), "all.json": json_writer(dict)})
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").mkdir()  # no file can take its place
    with pytest.raises(OSError, match="cannot be written"):
        folder.write({"a.txt": text(b"new"), "b.txt": text(b"new"), "all.json": json_writer(dict)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_change_of_a_file_is_noticed(tmp_path):
    folder = SealedFiles(tmp_path)
    folder.write({"a.txt": text(b"old"), "all.json": json_writer(lambda _: {"rate": 0.1})})
    expected = folder.hash("a.txt")
    (tmp_path / "a.txt").write_text("new")
    with pytest.raises(ValueError, match="a.txt has changed since it was written; restore the original file, or del"):
        folder.check_hash("a.txt", expected)
    (tmp_path / "all.json").write_text((tmp_path / "all.json").read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="all.json has changed since it was written"):
        folder.read_json("all.json")


def test_the_lock_does_not_travel_with_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_files, "LOCK_TIMEOUT", 0)
    folder = SealedFiles(tmp_path / "new" / "folder")
    folder.lock()
    folder.lock()
    copied = pickle.loads(pickle.dumps(folder))
    copied.release()
    with pytest.raises(RuntimeError, match="another run is writing"):
        copied.lock()
    folder.release()
    copied.lock()
    copied.release()


def in_another(processes, function, *arguments):
    """Run a function in another process, and return the message of its error."""
    messages = processes.SimpleQueue()
    child = processes.Process(target=tell_error, args=(messages, function, arguments))
    child.start()
    child.join()
    return messages.get()


def tell_error(messages, function, arguments):
    try:
        function(*arguments)
    except Exception as error:
        messages.put(f"{type(error).__name__}: {error}")
    else:
        messages.put("no error")


def disk_is_full(folder):
    """Stand for a full disk: files may have 2,000 bytes, which is too little for this network."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    run(folder, 3, resume=True)


@POSIX
@pytest.mark.slow
def test_a_full_disk_is_an_error_that_leaves_older_checkpoints_intact(processes, tmp_path):
    run(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    message = in_another(processes, disk_is_full, tmp_path)
    assert f"OSError: `path`: network2.pt, optimizer2.pt, state2.json cannot be written to {tmp_path} (" in message
    assert before == {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")] == []
    assert len(run(tmp_path, 3, resume=True).history) == 3


def as_nobody(folder):
    net = iris_net(checkpoint(folder)).initialize()
    if os.geteuid() == 0:
        os.seteuid(65534)
    net.partial_fit(X, y)


@POSIX
@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(processes):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        message = in_another(processes, as_nobody, folder)
        assert message.startswith(f"OSError: `path`: nothing can be written to {folder}: ")
        assert files(folder) == []


def trains_slowly(folder, began):
    def tell(self):
        began.set()
        threading.Event().wait()

    iris_net(checkpoint(folder), torch_callback("tell", on_epoch_end=tell)).fit(X, y)


@pytest.mark.slow
def test_two_runs_into_one_folder_are_refused_until_the_first_is_dead(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_files, "LOCK_TIMEOUT", 0)
    began = processes.Event()
    child = processes.Process(target=trains_slowly, args=(tmp_path, began))
    child.start()
    began.wait()
    net = iris_net(checkpoint(tmp_path, resume=True)).initialize()
    before = weights(net)
    with pytest.raises(RuntimeError, match="`path`: another run is writing to .*; give each run a folder of its own"):
        net.partial_fit(X, y)
    assert not moved(before, weights(net))
    child.kill()
    child.join()
    assert len(net.partial_fit(X, y).history) == 4


def test_two_runs_of_one_process_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_files, "LOCK_TIMEOUT", 0)
    refused = []

    def begin_another(self):
        with pytest.raises(RuntimeError, match="another run is writing"):
            run(tmp_path, 1, resume=True)
        refused.append(True)

    run(tmp_path, 2, torch_callback("other", on_epoch_end=begin_another))
    assert refused == [True, True]
    assert len(run(tmp_path, 3, resume=True).history) == 3


def test_the_folder_is_free_again_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_files, "LOCK_TIMEOUT", 0)
    with pytest.raises(CrashError):
        run(tmp_path, 3, Crashes(2))
    with pytest.raises(ValueError, match="`max_epochs`"):
        run(tmp_path, 0, resume=True)
    assert len(run(tmp_path, 3, resume=True).history) == 3


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".network1.pt.tmp").write_text("half")
    run(tmp_path, 1)
    assert list(tmp_path.glob(".*.tmp")) == []
