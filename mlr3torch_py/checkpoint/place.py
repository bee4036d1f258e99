"""Find where a call of ``fit`` continues: the run, the call and the checkpoint in a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlr3torch_py.arguments import check_path
from mlr3torch_py.checkpoint.contents import Checkpoint
from mlr3torch_py.checkpoint.folder import CheckpointFolder, id_of
from mlr3torch_py.protocols import History, Net
from mlr3torch_py.training.clock import rows_of
from mlr3torch_py.values import plain
from mlr3torch_py.warn import warn

__all__ = ["Place", "Start", "ends_before"]


class Start(NamedTuple):
    """What a call of ``fit`` starts from.

    Parameters
    ----------
    run_id : str
    call : mapping
        Its number ``n`` within the run, and the number of epochs before it, ``begin``; None if the latter is not known
        until all callbacks have begun.
    run : mapping, optional
        The facts of the run, if it has been started before.
    checkpoint : Checkpoint, optional
        What is to be restored.
    epochs_before : int
        The number of epochs from which those of the call count.
    is_over : bool
        Whether the call was followed by another one, so that nothing of it is left to train.
    """

    run_id: str
    call: Mapping[str, Any]
    run: Mapping[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    epochs_before: int = 0
    is_over: bool = False


class Place:
    """A folder that a net is about to train into.

    Parameters
    ----------
    folder : CheckpointFolder
    resume : bool, str or os.PathLike
        As the callback has it.
    before : mapping, optional
        The call that this net has made last, if it was into this folder.
    epochs : int
        The number of epochs that the call asks for.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        resume: bool | str | os.PathLike[str],
        before: Mapping[str, Any] | None,
        epochs: int,
    ) -> None:
        self._folder = folder
        self._resume = plain(resume)
        self._before = before
        self._epochs = epochs

    def open(self, net: Net) -> Start:
        """Lock the folder, and find what to continue."""
        self._folder.files.lock()
        n_epochs = len(net.history)
        if n_epochs and self._before is not None:
            return self._next_call(net, self._before)
        resume = self._resume
        source = self._folder if isinstance(resume, bool) else CheckpointFolder(check_path("resume", resume))
        newest = None if resume is False else source.newest()
        if resume is False or (n_epochs and not _continues(source, newest, net.history)):
            if newest is not None:
                raise FileExistsError(
                    f"`resume`: {source.path} holds the checkpoints of another run than the history of the net, whose "
                    f"{n_epochs} epochs LoadInitState or load_params may have loaded; leave these out to resume the "
                    "run, or give resume=False and an empty folder"
                )
            self._folder.clear_for_new_run()
            return Start(_new_id(), {"n": 1, "begin": None})
        if source.path != self._folder.path:
            self._folder.clear_for_new_run()
            if newest is None:
                raise FileNotFoundError(
                    f"`resume`: {source.path} holds no complete checkpoint; give a folder that does"
                )
        run = source.read_run()
        if newest is not None and run is None:
            warn(
                f"{source.path} lacks run.json, so a random validation split cannot be drawn again; restore the file, "
                "or give a split without random numbers"
            )
        return self._first_call(net, source, newest, run)

    def _first_call(self, net: Net, source: CheckpointFolder, newest: int | None, run: Any) -> Start:
        run_id = _new_id() if run is None else id_of(run)
        begin = None if run is None else run.get("begin", 0)
        if newest is None:
            return Start(run_id, {"n": 1, "begin": begin}, run, epochs_before=begin or 0)
        end = _end_of_call(source, newest, 1)
        call = None if end is None else source.call_of(end)
        is_replayed = end != newest and call is not None and call.get("until") == call["begin"] + self._epochs
        checkpoint = self._read(source, end if is_replayed and end is not None else newest)
        if run is None:
            run_id = checkpoint.state.get("run", run_id)
        return Start(
            run_id, checkpoint.state.get("call", {"n": 1, "begin": 0}), run, checkpoint, begin or 0, is_replayed
        )

    def _next_call(self, net: Net, before: Mapping[str, Any]) -> Start:
        begin = len(net.history)
        call = {"n": before["n"] + 1, "begin": begin}
        run = self._folder.read_run()
        run_id = id_of(run) if run is not None else _new_id()
        newest = None if self._resume is False else self._folder.newest()
        if newest is None or newest <= begin:
            self._folder.check_none_after(begin)
            return Start(run_id, call)
        end = _end_of_call(self._folder, newest, call["n"])
        kept = None if end is None else self._folder.call_of(end)
        if end is None or kept is None or (kept["n"], kept["begin"]) != (call["n"], begin):
            self._folder.check_none_after(begin)
            return Start(run_id, call)
        checkpoint = self._read(self._folder, end)
        is_over = end != newest and kept.get("until") == begin + self._epochs
        return Start(run_id, kept, run, checkpoint, begin, is_over)

    def _read(self, source: CheckpointFolder, epoch: int) -> Checkpoint:
        checkpoint = source.read(epoch)
        if source.path == self._folder.path:
            self._folder.rows = source.rows
        return checkpoint


def _end_of_call(folder: CheckpointFolder, newest: int, n: int) -> int | None:
    """Return the last epoch of the nth call, given the newest of all; None if its checkpoint is gone."""
    epoch = newest
    while (call := folder.call_of(epoch)) is not None and call["n"] > n:
        epoch = call["begin"]
    return epoch if call is not None and call["n"] == n else None


def ends_before(folder: CheckpointFolder, call: Mapping[str, Any]) -> set[int]:
    """Return the last epochs of all calls before one, by which a later script finds its way."""
    ends: set[int] = set()
    epoch = call["begin"]
    while epoch and epoch not in ends and (before := folder.call_of(epoch)) is not None:
        ends.add(epoch)
        epoch = before["begin"]
    return ends


def _continues(folder: CheckpointFolder, newest: int | None, history: History) -> bool:
    """Whether a history is what the run in a folder began with, or is part of that of its newest checkpoint."""
    run = folder.read_run()
    if run is not None and run.get("begin", 0) == len(history):
        return True
    if newest is None or newest < len(history):
        return False
    kept = folder.read(newest).contents()["history"]
    return all(map(_is_same_row, kept, rows_of(history)))


def _is_same_row(kept: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether two rows of a history are of one epoch, of which one may have been written before all was recorded."""
    there = _numbers(kept)
    return all(there.get(key, text) == text for key, text in _numbers(row).items())


def _numbers(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: repr(plain(value)) for key, value in row.items() if isinstance(plain(value), int | float)}


def _new_id() -> str:
    return uuid.uuid4().hex
