"""Stores whose process is killed, whose disk is full, or that another process fills."""

import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from mlr3torch_py.cache.storage import disk as module
from mlr3torch_py.cache.storage.disk import Disk, opened

pytest.importorskip("lmdb")

# The module alone, since importing torch takes seconds.
FILL = """
import hashlib, resource, sys, types
from pathlib import Path
room = Path(sys.argv[1]).parent
rooms = {"mlr3torch_py": room.parents[1], "mlr3torch_py.cache": room.parent, "mlr3torch_py.cache.storage": room}
for name, folder in rooms.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
from mlr3torch_py.cache.storage import disk
assert "torch" not in sys.modules
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
one = disk.Disk(Path(sys.argv[2]), 2**26)
print("open", flush=True)
for i in range(10**9):
    keys = [f"{i % 50}-{j}".encode() for j in range(100)]
    why = one.put({key: hashlib.sha256(key).digest() * 20 for key in keys})
    if why:
        print(why, flush=True)
        break
    if i % 7 == 0:
        one.delete(keys[::2])
"""


def filling(folder, limit=0):
    command = [sys.executable, "-c", FILL, str(Path(module.__file__)), str(folder), str(limit)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    return process


def check(disk):
    keys = disk.keys(b"")
    assert all(value == sha256(key).digest() * 20 for key, value in zip(keys, disk.get(keys), strict=True))
    return len(keys)


def killed(folder, n):
    """Kill two processes that fill a store, n times; each time all that is there is right, and more can be written."""
    n_rows = []
    for i in range(n):
        processes = [filling(folder) for _ in range(2)]
        time.sleep(0.02 + 0.013 * (i % 10))  # at other moments of their writing
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        disk = Disk(Path(folder), 2**26)
        n_rows.append(check(disk))
        assert not disk.put({b"more": sha256(b"more").digest() * 20})
        disk.close()
    return n_rows


def test_a_store_whose_writers_were_killed_opens_and_holds_nothing_wrong(tmp_path):
    assert max(killed(tmp_path, 3)) > 100


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits")
def test_a_full_disk_ends_the_filling_and_leaves_what_is_there(tmp_path):
    process = filling(tmp_path, 300_000)
    why = process.stdout.readline()
    assert process.wait() == 0
    process.stdout.close()
    assert why
    assert check(opened(tmp_path, 2**26)) >= 50


def test_a_file_that_another_process_lets_grow_is_read_and_written(tmp_path):
    ours = opened(tmp_path, 2**20)
    assert not ours.put({b"ours": b"1"})
    process = filling(tmp_path)
    deadline = time.monotonic() + 20
    while ours.n_bytes < 2**21 and time.monotonic() < deadline:
        ours.get([b"ours"])
    process.kill()
    process.wait()
    process.stdout.close()
    assert ours.get([b"ours", b"1-1"])[0] == b"1"
    assert ours.get([b"other"]) == [None]


def test_a_folder_is_opened_once_in_a_process_and_again_when_it_was_replaced(tmp_path):
    one = opened(tmp_path / "rows", 2**20)
    assert opened(tmp_path / "rows", 2**21) is one
    one.path.unlink()
    other = opened(tmp_path / "rows", 2**20)
    assert other is not one
    assert other.sizes(b"") == []


def test_rows_can_be_deleted_from_a_full_store(tmp_path):
    disk = opened(tmp_path, 2**16)
    values = {f"{i}".encode(): b"x" * 1000 for i in range(100)}
    assert "takes the 65,536 bytes" in disk.put(values)
    disk.delete(disk.keys(b""))
    assert disk.keys(b"") == []


def test_a_store_of_which_a_part_is_missing_is_refused(tmp_path):
    disk = Disk(tmp_path, 2**24)
    disk.put({f"{i}".encode(): b"x" * 9000 for i in range(100)})
    disk.close()
    os.truncate(disk.path, disk.path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"is damaged: [\d,]+ bytes or more are missing .* delete it or name another"):
        Disk(tmp_path, 2**24)
