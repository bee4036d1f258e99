"""Whether a folder lies on a network file system, where Linux tells it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["network_file_system"]

_MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = frozenset(
    {
        *("afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2"),
        *("smb2", "smb3", "smbfs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"),
        "fuse.sshfs",
    }
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def network_file_system(folder: Path, mounts: str | None = None) -> str:
    r"""Return the type of the network file system that a folder lies on.

    Parameters
    ----------
    folder : Path
        Without symbolic links.
    mounts : str, optional
        What is mounted, as Linux writes it; by default what is mounted now.

    Returns
    -------
    str
        Empty if it lies on another file system, or nobody knows.

    Examples
    --------
    >>> mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/volumes /volumes nfs4 rw 0 0\n"
    >>> network_file_system(Path("/volumes/ada/features"), mounts)
    'nfs4'
    >>> network_file_system(Path("/var/tmp/features"), mounts)
    ''
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""
    depth, found = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(_ESCAPED.sub(_character, fields[1]))
        if folder.is_relative_to(point) and len(point.parts) >= depth:  # what is mounted last covers what was there
            depth, found = len(point.parts), fields[2]
    return found if found in _NETWORK else ""


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
