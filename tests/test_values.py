"""Values as messages show them."""

import enum

import pandas as pd
import pytest

from mlr3torch_py import (
    MLP,
    Freezer,
    Plateau,
    select_all,
    select_glob,
    select_grep,
    select_name,
    select_prefix,
    t_clbk,
    torch_callback,
)
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


class Text(str, enum.Enum):  # noqa: UP042  # a StrEnum has str() right
    HEAD = "3"
    WEIGHT = "3.weight"
    ID = "spy"


@pytest.mark.parametrize("select", [select_name, select_prefix, select_glob, select_grep])
def test_a_member_of_an_enum_of_strings_is_its_value(select):
    selector = select(Text.WEIGHT)
    assert selector.expand(MLP(4, 3, neurons=(8,))) == ["3.weight"]
    assert repr(selector) == repr(select("3.weight"))


def test_a_member_of_an_enum_of_strings_is_a_name():
    assert repr(Plateau(Text.WEIGHT)) == repr(Plateau("3.weight"))
    assert repr(torch_callback(Text.ID)) == repr(torch_callback("spy"))
    assert t_clbk("history", id=Text.ID).id == "spy"
    (plan,) = Freezer(name_starts_with=Text.HEAD).make_plans(MLP(4, 3, neurons=(8,)))
    assert set(plan.names) == {"3.weight", "3.bias"}
