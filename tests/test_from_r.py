"""The table of names for those who come from R: each name is there, and none of R's is left out."""

import re
from pathlib import Path

import pytest
from sklearn.base import clone
from skorch.dataset import ValidSplit

import mlr3torch_py
from mlr3torch_py import CallbackSetUnfreeze, mlr3torch_callbacks, t_clbk, torch_callback
from tests.helpers import X, golden, iris_net, y

PAGE = (Path(__file__).parent.parent / "docs" / "from_r.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" |")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| in R")
]
HERE = [name for _, here, _ in ROWS for name in re.findall(r"`([^`]+)`", here)]
IN_R = " ".join(in_r for in_r, _, _ in ROWS)


@pytest.fixture(scope="module")
def names():
    """What the column "here" may name: see the head of the page."""
    found = {}

    def look(self):
        found.update({f"ctx_{name}": getattr(self.ctx, name) for name in CTX})

    made, stopping = t_clbk("unfreeze", starting_weights=mlr3torch_py.select_all()), t_clbk("early_stopping")
    net = iris_net(
        made, stopping, torch_callback("look", on_epoch_end=look), train_split=ValidSplit(3, stratified=True)
    )
    net.set_params(max_epochs=1).fit(X, y)
    public = {name: getattr(mlr3torch_py, name) for name in mlr3torch_py.__all__}
    others = {"made": made, "callback": stopping.callback, "net": net, "clone": clone}
    return net.get_params() | public | others | found


CTX = re.findall(r"\bctx\.(\w+)", " ".join(HERE))


def complaint(code, names):
    try:
        eval(re.sub(r"\bctx\.", "ctx_", code), dict(names))
    except (AttributeError, KeyError, NameError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", HERE)
def test_every_name_is_there(name, names):
    assert not complaint(name, names)


def test_a_name_that_is_not_there_is_noticed(names):
    assert "t_clbx" in complaint("t_clbx", names)
    assert "nobody" in complaint("callback.nobody", names)


def test_a_row_says_what_to_use_where_there_is_no_counterpart():
    for in_r, here, remark in ROWS:
        assert in_r
        assert remark or here != "none"
        assert here == "none" or "`" in here


@pytest.mark.parametrize("entry", golden("registry")["callbacks"], ids=lambda entry: entry["key"])
def test_no_callback_of_r_and_none_of_its_parameters_is_left_out(entry):
    (row,) = [in_r for in_r, _, _ in ROWS if in_r.split(":")[0] == f"`{entry['key']}`"]
    assert re.findall(r"`(\w+)`", row)[1:] == entry["params"]


def test_no_stage_and_no_method_of_r_is_left_out():
    for stage in golden("registry")["stages"]:
        assert f"`${stage}()`" in IN_R
    seed = ["state_dict", "load_state_dict", "print", "clone"]
    assert all(re.search(rf"`\${method}\(", IN_R) for method in seed)


def test_every_key_that_is_rs_is_in_the_table():
    ours = {"early_stopping", "freeze_audit", "freezer", "frozen_cache"}
    assert {key for key in mlr3torch_callbacks if f"`{key}`" in IN_R} == set(mlr3torch_callbacks) - ours


def test_the_stages_of_a_callback_are_listed_as_the_page_says():
    assert "begin" in CallbackSetUnfreeze(mlr3torch_py.select_all()).stages
