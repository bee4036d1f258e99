import os
import random
import signal
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests import killed
from tests.checkpoint.runs import final
from tests.helpers import X, y

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX, to kill processes by SIGKILL"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, processes):
    """Runs that were never stopped: their final state, and how many calls they take.

    Each has a process of its own, as those that are killed have, since what was done before changes the number.
    """
    scripts = list(killed.scripts())
    with ProcessPoolExecutor(2, processes, max_tasks_per_child=1) as pool:
        return dict(
            zip(scripts, pool.map(whole, [tmp_path_factory.mktemp("whole") for _ in scripts], scripts), strict=True)
        )


def whole(folder, script):
    nets, killer = killed.train(folder, script)
    assert all(len(net.history) >= 3 for net in nets.values())
    return finals(nets), killer.counts


def finals(nets):
    return {folder.name if folder.name in "ab" else "": final(folder, net) for folder, net in nets.items()}


def test_two_runs_that_are_not_stopped_are_equal(uninterrupted, tmp_path):
    """Otherwise the comparisons below prove nothing."""
    for script, (expected, _) in uninterrupted.items():
        assert finals(killed.run(tmp_path / script, script)) == expected


@pytest.mark.parametrize("n", range(int(os.environ.get("KILLS", "22"))))
def test_a_run_that_is_killed_at_any_moment_and_resumed_equals_one_that_never_stopped(
    n, uninterrupted, processes, tmp_path
):
    script = list(uninterrupted)[n % len(uninterrupted)]
    expected, counts = uninterrupted[script]
    kind = "writes" if n % 3 == 2 else "calls"
    last = counts[kind] if kind == "writes" else counts[kind] * 9 // 10  # since it varies a little
    process = processes.Process(target=killed.train, args=(tmp_path, script, (kind, random.Random(n).randint(1, last))))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is skipped", category=UserWarning)
        nets = killed.run(tmp_path, script)
    assert finals(nets) == expected


@pytest.mark.parametrize("job", [job for job in killed.jobs() if job != "batches"])  # one cycle is of one length
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_stops_early_and_continues_with_more_epochs_equals_one(job, stop, uninterrupted, tmp_path):
    killed.net_of(tmp_path, job, max_epochs=stop).fit(X, y)
    assert {"": final(tmp_path, killed.net_of(tmp_path, job).fit(X, y))} == uninterrupted[job][0]
