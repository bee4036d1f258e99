import math

import numpy as np
import pandas as pd
import pytest

from mlr3torch_py import Plateau, select_all, select_none, select_prefix
from mlr3torch_py.schedule.table import read_table
from mlr3torch_py.select.check import check_select


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": [1], "batch": [1], "weights": [select_all()]}, "both `epoch` and `batch`: drop one"),
        ({"weights": [select_all()]}, r"neither `epoch` nor `batch`, but \['weights'\]: add one"),
        (
            pd.DataFrame({"epoch": [2], "weights": [select_all()]}).set_index("epoch"),
            r"`unfreeze` has 'epoch' in its index; give table.reset_index\(\)",
        ),
        ({"epoch": [1]}, r"columns \['epoch'\] and no `weights`"),
        ({"epoch": [1.5], "weights": [select_all()]}, "row 0 has epoch 1.5; give a whole number"),
        ({"epoch": [math.inf], "weights": [select_all()]}, "row 0 has epoch inf; give a whole number"),
        ({"epoch": [1, -1], "weights": [select_all()] * 2}, "row 1 has epoch -1; epochs count from 1"),
        ({"batch": [-2], "weights": [select_all()]}, "row 0 has batch -2; batches count from 1"),
        ({"epoch": [2, 3, 2], "weights": [select_all()] * 3}, r"rows 0 and 2 both have epoch 2; .* `\|`"),
        ({"epoch": [1, None], "weights": [select_all()] * 2}, "row 1 has no epoch; drop the row or fill in"),
        ({"epoch": [math.nan], "weights": [select_all()]}, "row 0 has no epoch"),
        ({"batch": ["a"], "weights": [select_all()]}, r"row 0 has batch 'a' \(str\); give a whole number"),
        ({"epoch": [True], "weights": [select_all()]}, r"row 0 has epoch True \(bool\)"),
        (
            {"epoch": [1], "weights": ["0.weight"]},
            r"row 0, column `weights`, is '0.weight' .*select_name\('0.weight'\)",
        ),
        ({"epoch": [1], "weights": [["a", "b"]]}, r"write select_name\(\['a', 'b'\]\)"),
        ({"epoch": [1], "weights": [select_all]}, r"call it: select_all\(...\)"),
        ({"epoch": [1], "weights": [type(select_all())]}, r"call it: All\(...\)"),
        ({"epoch": [1], "weights": [None]}, "must be a selector: such as"),
        ({"epoch": 1, "weights": select_all()}, "give every column a list of the same length"),
        ({"epoch": [1, 2], "weights": [select_all()]}, "give every column a list of the same length"),
        ({"epoch": iter([1]), "weights": [select_all()]}, "the column 'epoch' is .* read only once; give a list"),
        ({"epoch": [1], "weights": map(select_prefix, "a")}, "the column 'weights' is <map .* read only once"),
        ({"epoch": [10**400], "weights": [select_all()]}, "row 0 has epoch 1000.*; give a whole number"),
        (
            {"epoch": [1], "weights": [select_all()], "action": ["freze"]},
            "row 0 has the action 'freze'; did you mean 'freeze'",
        ),
        (
            {"epoch": [1], "weights": [select_all()], "when": ["plateau"]},
            "column `when`, is 'plateau'; it must be a Plateau",
        ),
        ({"epoch": [1], "weights": [select_all()], "when": [Plateau()]}, "has epoch 1 and the condition Plateau"),
        ({"epoch": [None], "weights": [select_all()], "when": [None]}, "row 0 has no epoch"),
        ({"epoch": [1], "weights": [select_all()], "lr_mult": ["x"]}, "row 0, column `lr_mult`, is 'x'; give a factor"),
        (
            {"epoch": [1], "weights": [select_all()], "lr_mult": [0]},
            "row 0, column `lr_mult`, is 0; give a factor .* above 0",
        ),
        (
            {"epoch": [1], "weights": [select_all()], "action": ["freeze"], "lr_mult": [0.1]},
            "row 0 has the lr_mult 0.1, but freezes; give the factor in a row that unfreezes",
        ),
        ([{"epoch": [1], "weights": [select_all()]}] * 2, "rows 0 and 1 both have epoch 1"),
        ("", r"`unfreeze` is ''"),
        (1, r"`unfreeze` is 1 \(int\); it must be a pandas DataFrame"),
        ([1], r"`unfreeze` is 1 \(int\)"),
        ("epoch", "`unfreeze` is 'epoch'"),
        (
            pd.DataFrame([[1, 2, select_all()]], columns=["epoch", "epoch", "weights"]),
            "has the column `epoch` more than once; keep one",
        ),
    ],
)
def test_a_bad_table_is_refused_with_column_row_value_and_remedy(table, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read_table(table)


@pytest.mark.parametrize(
    "table",
    [
        {"epoch": [2], "weights": [select_all()]},
        {"epoch": (2.0,), "weights": (select_all(),), "note": ["kept"]},
        [{"epoch": 2, "weights": select_all()}],
        pd.DataFrame({"epoch": np.array([2], dtype="int8"), "weights": [select_all()]}, index=["x"]),
        pd.DataFrame({"epoch": pd.array([2], dtype="Int64"), "weights": [select_all()]}),
        pd.DataFrame({"epoch": np.array([2], dtype="float32"), "weights": [select_all()]}),
    ],
)
def test_a_table_comes_in_several_forms(table):
    (row,) = read_table(table)
    assert (row.unit, row.time, row.weights) == ("epoch", 2, select_all())


def test_tables_are_combined_in_a_list():
    epochs = pd.DataFrame({"epoch": [2, 2], "weights": [select_all()] * 2, "action": [None, "freeze"]})
    records = [{"batch": 7, "weights": select_none()}, {"batch": 9, "weights": select_none()}]
    columns = {"when": [Plateau()], "weights": [select_all()]}
    rows = read_table([epochs, records, None, columns])
    assert [(row.position, row.unit, row.time, row.action) for row in rows] == [
        (0, "epoch", 2, "unfreeze"),
        (1, "epoch", 2, "freeze"),
        (2, "batch", 7, "unfreeze"),
        (3, "batch", 9, "unfreeze"),
        (4, "epoch", Plateau(), "unfreeze"),
    ]


def test_a_condition_may_stand_in_a_table_beside_times():
    table = {"epoch": [3, None], "when": [None, Plateau(patience=2)], "weights": [select_all()] * 2}
    assert [row.time for row in read_table(table)] == [3, Plateau(patience=2)]
    assert [row.time for row in read_table(pd.DataFrame(table))] == [3, Plateau(patience=2)]


@pytest.mark.parametrize("table", [None, pd.DataFrame(), {}, [], {"epoch": [], "weights": []}])
def test_a_table_may_be_empty(table):
    assert read_table(table) == ()


def test_a_selector_is_taken_as_it_is():
    select = select_none()
    assert check_select("starting_weights", select) is select


@pytest.mark.parametrize(("wrong", "meant"), [("lr_mul", "lr_mult"), ("acton", "action"), ("weigths", "weights")])
def test_a_misspelt_column_is_an_error(wrong, meant):
    table = {"epoch": [2], "weights": [select_all()], "lr_mult": [None], "action": ["unfreeze"], "note": ["mine"]}
    table[wrong] = table.pop(meant)
    with pytest.raises(ValueError, match=f"`unfreeze` has the column '{wrong}'; did you mean '{meant}'?"):
        read_table(table)
