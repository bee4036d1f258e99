"""check_resume: prove on a net of one's own that a stopped run can be resumed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pandas as pd
import torch
from sklearn.base import clone
from skorch import NeuralNet

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.checkpoint.rehearsal import STOPPED, Ending, Rehearsal
from mlr3torch_py.checkpoint.resume_report import ResumeReport
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.names import listed
from mlr3torch_py.network.copies import copyable
from mlr3torch_py.network.randomness import generators, kept_random_states, random_states
from mlr3torch_py.training.processes import are_several
from mlr3torch_py.values import shown

__all__ = ["check_resume"]

_CHILD: Final = (
    "import sys; sys.path[:] = {path!r}; from mlr3torch_py.checkpoint.rehearsal import main; main(*{argv!r})"
)
_ALONE: Final = "check the same net without a wrapper that shares its batches"
_LOST: Final = "a checkpoint cannot keep "


@short_traceback
def check_resume(net: Any, X: Any, y: Any = None, *, epochs: int = 2) -> ResumeReport:
    """Check that a net resumes from a checkpoint as if it had never stopped.

    A clone of the net is trained without a stop. Another one is stopped after each epoch, as by ``kill -9``, and
    resumed in a new process. If they differ, a third one is trained without a stop, to see whether the training repeats
    itself at all. The net, the random states and the folders of its callbacks stay as they are.

    Parameters
    ----------
    net : skorch.NeuralNet
        With or without a checkpoint callback.
    X, y : object
        The data, as ``fit`` takes them; a part of it is enough.
    epochs : int
        The number of epochs to train, at least 2; a net may stop early. Rows of a schedule that come later are not
        checked, and the report says so.

    Returns
    -------
    ResumeReport
        What is equal, what is not, and why that may be. It is true if everything is equal.

    Raises
    ------
    RuntimeError
        If a training fails; the message ends with its error.
    TypeError
        If the net or the data cannot be pickled.

    See Also
    --------
    CallbackSetCheckpoint : The callback that keeps the checkpoints.

    Examples
    --------
    >>> check_resume(iris_net(), X, y)  # doctest: +SKIP
    A run that is stopped after each epoch and resumed equals one that never stops.
    * weights: 2 of 2 equal, bit for bit
    ...
    """
    if not isinstance(net, NeuralNet):
        raise TypeError(f"`net` is {shown(net)}; give a net of skorch")
    if getattr(net, "accelerator", None) is not None:
        raise TypeError(
            "`net` has an accelerator, which no other process can take over; check the same net without AccelerateMixin"
        )
    if net.initialized_ and are_several(net):
        raise TypeError(f"`net` is trained by several processes, of which check_resume starts none; {_ALONE}")
    check_whole("epochs", epochs, "epochs", least=2)
    with kept_random_states(), TemporaryDirectory() as folder:
        job = Path(folder) / "job"
        job.write_bytes(_pickled(net, X, y, epochs))
        with _running(job, Path(folder) / "whole", epochs) as process:
            is_stopped, epoch = True, 0
            while is_stopped:  # until it has trained all epochs, or has ended early
                epoch += 1
                with _running(job, Path(folder) / "stopped", epoch) as stopped:
                    is_stopped = _wait(stopped) == STOPPED
            _wait(process)
        whole, resumed = _ending(Path(folder) / "whole"), _ending(Path(folder) / "stopped")
        if _without_durations(whole) == _without_durations(resumed):
            return _compare(whole, whole, resumed)
        with _running(job, Path(folder) / "again", epochs) as process:
            _wait(process)
        return _compare(whole, _ending(Path(folder) / "again"), resumed)


def _pickled(net: Any, X: Any, y: Any, epochs: int) -> bytes:
    try:
        import cloudpickle  # which also pickles the classes of a notebook
    except ImportError:
        from joblib.externals import cloudpickle
    try:
        with copyable(vars(net).values()):
            copied = clone(net, safe=False)
        job = Rehearsal(
            copied,
            X,
            y,
            epochs,
            random_states(generators()),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
        )
        return bytes(cloudpickle.dumps(job))
    except Exception as error:
        raise TypeError(
            f"`net`, `X` or `y` cannot be sent to a new process: {error}; give what can be pickled, such as functions "
            "and classes of a module"
        ) from error


@contextmanager
def _running(job: Path, folder: Path, stop_after: int) -> Iterator[subprocess.Popen[str]]:
    """Train in a process, which ends with the block."""
    folder.mkdir(exist_ok=True)
    code = _CHILD.format(path=sys.path, argv=[str(job), str(folder), str(stop_after)])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait(process: subprocess.Popen[str]) -> int:
    """Wait for a training, and return how its process has ended."""
    _, errors = process.communicate()
    if process.returncode not in (0, STOPPED):
        why = errors.strip().splitlines() or [f"exit code {process.returncode}"]
        remedy = _ALONE if "process group" in why[-1] else "fit the net itself until it trains"
        raise RuntimeError(f"`net`: a training of check_resume has failed: {why[-1]}; {remedy}\n{errors[-3000:]}")
    return process.returncode


def _ending(folder: Path) -> Ending:
    ending: Ending = pickle.loads((folder / "ending").read_bytes())
    return ending


def _without_durations(ending: Ending) -> dict[str, dict[str, str]]:
    return {
        part: {key: one for key, one in held.items() if not _is_duration(key)} for part, held in ending.parts.items()
    }


def _is_duration(key: str) -> bool:
    return key.endswith((": dur", ": cache_saved"))


def _compare(whole: Ending, again: Ending, stopped: Ending) -> ResumeReport:
    rows = []
    for part, values in whole.parts.items():
        names = [*values, *(name for name in stopped.parts[part] if name not in values)]
        changing = {name for name in names if values.get(name) != again.parts[part].get(name)}
        if part == "history":  # of which durations differ from run to run
            is_left_out = [_is_duration(name) or (name in changing and name.endswith("time")) for name in names]
            names = [name for name, is_out in zip(names, is_left_out, strict=True) if not is_out]
        different = [name for name in names if values.get(name) != stopped.parts[part].get(name)]
        cause = _cause(whole, again, stopped, is_repeatable=not changing.intersection(different)) if different else ""
        rows.append((part, len(names), not different, listed(different, most=3), cause))
    columns = ["part", "compared", "equal", "different", "likely_cause"]
    return ResumeReport(pd.DataFrame(rows, columns=columns), whole.pending_after)


def _cause(whole: Ending, again: Ending, stopped: Ending, *, is_repeatable: bool) -> str:
    """Say what may have made the difference."""
    lost = [text.partition(_LOST)[2] for text in stopped.said if _LOST in text]
    if lost:
        return f"{_LOST}{lost[0]}"
    if not is_repeatable:
        return "the training does not repeat itself even without a stop: seed it, or make it deterministic"
    paths = _lost_paths(whole, again, stopped)
    paths.sort(key=lambda path: (len(whole.elsewhere[path]) >= 32, len(path)))  # numbers before hashes
    if paths:
        values = (
            f"{path} ({stopped.elsewhere[path]} resumed, {whole.elsewhere[path]} without a stop)" for path in paths
        )
        return f"nothing keeps {listed(values, most=3)}: give its owner a state_dict(), or work it out from the history"
    return "something outside of the net, its callbacks and its data, such as a global variable or a file"


def _lost_paths(whole: Ending, again: Ending, stopped: Ending) -> list[str]:
    """List what differs at the end and differed when the run was resumed, before that could have consequences."""
    paths = [
        path
        for path, text in whole.elsewhere.items()
        if again.elsewhere.get(path) == text != stopped.elsewhere.get(path, text)
    ]
    for epoch, held in sorted(stopped.begun.items()):
        there, repeated = whole.begun.get(epoch, {}), again.begun.get(epoch, {})
        if lost := [path for path in paths if repeated.get(path) == there.get(path) != held.get(path)]:
            return lost
    return []
