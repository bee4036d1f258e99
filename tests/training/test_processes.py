"""Deciding on the main process for all, in two processes and in one."""

import pytest
from torch import distributed

from mlr3torch_py.training.processes import from_main_process, is_main_process, on_main_process
from tests.parallel import in_processes

pytestmark = pytest.mark.slow


def fail():
    raise ValueError(f"on rank {distributed.get_rank()}")


def decide():
    rank = distributed.get_rank()
    try:
        on_main_process(fail)
        message = None
    except ValueError as error:
        message = str(error)
    return rank, is_main_process(), from_main_process(rank), on_main_process(distributed.get_rank), message


def test_the_result_or_error_of_the_main_process_reaches_all(tmp_path):
    main, other = in_processes(tmp_path, decide)
    assert main == (0, True, 0, 0, "on rank 0")
    assert other == (1, False, 0, 0, "on rank 0")


def decide_alone():
    return is_main_process(), from_main_process(3), on_main_process(lambda: 4)


def test_a_single_process_decides_for_itself(tmp_path):
    assert in_processes(tmp_path, decide_alone, n_ranks=1) == [(True, 3, 4)]
    assert decide_alone() == (True, 3, 4)
