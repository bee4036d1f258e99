"""Values as messages show them."""

import pandas as pd

from mlr3torch_py import select_all
from mlr3torch_py.values import shown


class Broken:
    def __repr__(self):
        raise RuntimeError


def test_anything_is_shown_on_part_of_a_line():
    nested = select_all()
    for _ in range(5000):
        nested = ~nested
    for value in (
        "x" * 1000,
        10**5000,
        pd.DataFrame({"a": [1]}),
        Broken(),
        nested,
        [[[[[[[1]]]]]]],
        {i: i for i in range(99)},
    ):
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)
