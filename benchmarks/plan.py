"""(h) A plan of 10,000 weights: asking it what is held, with many rows to come against few, by how many have come."""

from benchmarks.rounds import in_turns, per_call, row, table
from mlr3torch_py import select_name, select_none
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.steps import Moment
from mlr3torch_py.schedule.table import read_table

N_WEIGHTS = 10_000


def asking(n_come, n_to_come):
    """A way: asking a plan of rows with ten weights each, when some of them have come."""
    names = [f"{i}.weight" for i in range(N_WEIGHTS)]
    times = [*range(1, n_come + 1), *range(10**6, 10**6 + n_to_come)]
    rows = [select_name(names[i % (N_WEIGHTS // 10) * 10 :][:10]) for i in range(len(times))]
    plan = Plan.resolve(select_none(), read_table({"batch": times, "weights": rows}), names)
    return per_call(lambda: plan.held(Moment(epoch=1, batch=n_come)), 100)


def measure(come=(5, 50), few=10, many=950, rounds=21):
    ways = {(n_come, n): asking(n_come, n) for n_come in come for n in (few, many)}
    microseconds = in_turns(ways, rounds)
    return table(
        row(
            "h",
            f"{many:,} rows to come, {n_come:,} have come",
            f"{few:,} rows to come",
            microseconds[n_come, many],
            microseconds[n_come, few],
        )
        for n_come in come
    )
