import random
import signal
import warnings

import pytest

from tests import killed
from tests.checkpoint.runs import final
from tests.helpers import X, y

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Runs that were never stopped: their final state, and the calls at which they can be killed."""
    done = {}
    for job in killed.jobs():
        folder = tmp_path_factory.mktemp("whole")
        net, killer = killed.train(folder, job)
        assert len(net.history) >= 3
        done[job] = final(folder, net), killer
    return done


def test_two_runs_that_are_not_stopped_are_equal(uninterrupted, tmp_path):
    """Otherwise the comparisons below prove nothing."""
    for job, (expected, _) in uninterrupted.items():
        assert final(tmp_path / job, killed.net_of(tmp_path / job, job).fit(X, y)) == expected


@pytest.mark.parametrize("n", range(20))
def test_a_run_that_is_killed_at_any_moment_and_resumed_equals_one_that_never_stopped(
    n, uninterrupted, processes, tmp_path
):
    job = list(uninterrupted)[n % len(uninterrupted)]
    expected, killer = uninterrupted[job]
    draw = random.Random(n)
    kill_at = draw.choice(killer.in_writing) if n >= 14 else draw.randrange(killer.calls)
    process = processes.Process(target=killed.train, args=(tmp_path, job, kill_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is skipped", category=UserWarning)
        net = killed.net_of(tmp_path, job).fit(X, y)
    assert final(tmp_path, net) == expected


@pytest.mark.parametrize("job", [job for job in killed.jobs() if job != "batches"])  # one cycle is of one length
@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_stops_early_and_continues_with_more_epochs_equals_one(job, stop, uninterrupted, tmp_path):
    killed.net_of(tmp_path, job, max_epochs=stop).fit(X, y)
    assert final(tmp_path, killed.net_of(tmp_path, job).fit(X, y)) == uninterrupted[job][0]
