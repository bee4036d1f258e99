"""Whether a folder lies on a network file system."""

from pathlib import Path

import pytest

from mlr3torch_py.cache.storage import disk, mounts
from mlr3torch_py.cache.storage.disk import opened
from mlr3torch_py.cache.storage.mounts import network_file_system

MOUNTS = r"""overlay / overlay rw,relatime,lowerdir=/a:/b 0 0
proc /proc proc rw 0 0
server:/export/volumes /volumes nfs4 rw,vers=4.2 0 0
/dev/nvme0n1p1 /volumes/ada/local ext4 rw 0 0
//server/share /mnt/my\040share cifs rw 0 0
ada@server: /mnt/remote fuse.sshfs rw 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw 0 0
/dev/sdb1 /data ext4 rw 0 0
server:/data /data nfs rw 0 0
not a line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/tmp/features", ""),
        ("/volumes/ada/features", "nfs4"),
        ("/volumes", "nfs4"),
        ("/volumess/ada", ""),
        ("/volumes/ada/local/features", ""),
        ("/mnt/my share/features", "cifs"),
        ("/mnt/remote", "fuse.sshfs"),
        ("/scratch/ada", "lustre"),
        ("/data/features", "nfs"),
    ],
)
def test_the_innermost_mount_tells(folder, kind):
    assert network_file_system(Path(folder), MOUNTS) == kind


def test_nothing_is_said_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr(mounts, "_MOUNTS", Path("/nowhere/mounts"))
    assert network_file_system(Path("/volumes/ada")) == ""
    assert network_file_system(Path("/volumes/ada"), "") == ""


def test_a_store_on_a_network_file_system_is_warned_of_once(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text(f"server:/export {tmp_path.resolve()} nfs rw 0 0\n")
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    monkeypatch.setattr(disk, "_warned_of", set())
    with pytest.warns(UserWarning, match=r"lies on a network file system \(nfs\).* local disk of each machine"):
        opened(tmp_path / "rows", 2**20)
    opened(tmp_path / "rows", 2**20)
