"""Selectors and tables as plain data, and everything built from YAML by hydra."""

import json

import pandas as pd
import pytest
from hydra.utils import instantiate
from hypothesis import given
from omegaconf import OmegaConf
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    Plateau,
    from_dict,
    select_all,
    select_first,
    select_last,
    select_name,
    select_prefix,
    select_type,
    to_dict,
)
from mlr3torch_py.schedule.table import read_table
from tests.helpers import Block, Trace, X, golden, iris_net, selector, y
from tests.select.strategies import selects


@given(selects)
def test_a_selector_goes_through_json_and_back(select):
    assert from_dict(json.loads(json.dumps(to_dict(select)))) == select


@pytest.mark.parametrize(
    "select", [select_type(nn.LayerNorm, nn.Linear), select_first(2), select_last(1) - select_all()]
)
def test_a_selector_of_places_goes_through_json_and_back(select):
    assert from_dict(json.loads(json.dumps(to_dict(select)))) == select


def test_the_form_is_that_of_the_recorded_cases():
    for case in golden("select")["cases"]:
        assert from_dict(case["select"]) == selector(case["select"])
        assert to_dict(selector(case["select"])) == case["select"]


PLATEAU = Plateau("valid_acc", patience=2, min_delta=0.1, lower_is_better=False, no_later_than=9)


@pytest.mark.parametrize(
    "table",
    [
        {"epoch": [2, 5], "weights": [select_name("a"), select_all()]},
        pd.DataFrame({"batch": [2], "weights": [select_prefix("a")], "action": ["freeze"]}),
        {"when": [PLATEAU], "weights": [select_all()]},
        {"epoch": [3, None], "when": [None, PLATEAU], "weights": [select_all()] * 2},
        [{"epoch": [3], "weights": [select_all()]}, {"batch": [3], "weights": [select_all()]}],
        None,
    ],
)
def test_a_table_goes_through_json_and_back(table):
    again = from_dict(json.loads(json.dumps(to_dict(table))))
    assert read_table(again) == read_table(table)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "`data` is 3"),
        ({"fn": "name", "names": ["a"]}, "`data` is .*unexpected keyword argument 'names'"),
        ({"fn": "invert"}, "`data` is .* lacks or misnames 'select'"),
        ({"fn": "type", "module_types": ["Linaer"]}, "`data` is .* lacks or misnames .*Linaer"),
        ({"fn": "nmae"}, r"`fn` is 'nmae'; did you mean 'name'\? .* first import the module that defines it"),
        ({"fn": "grep", "pattern": 3}, "`data` is .*: `pattern` is 3; give a string"),
        ({"fn": "|", "parts": [{"fn": "all"}, {"fn": "grep"}]}, "`data` is {'fn': 'grep'}, which lacks .*'pattern'"),
        ({"monitor": "x", "patiense": 3}, "`data` is .* 'patiense'; did you mean 'patience'"),
        ({"epoch": [1], "weights": ["all"]}, r"row 0, column `weights`, is 'all' .*select_name\('all'\)"),
        ({"epoch": [-1], "weights": [{"fn": "all"}]}, "row 0 has epoch -1"),
    ],
)
def test_wrong_data_is_refused(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_dict(data)


def test_records_and_single_names_are_read():
    assert from_dict({"fn": "prefix", "prefixes": "encoder"}) == select_prefix("encoder")
    records = [{"epoch": 2, "weights": {"fn": "all"}}, {"epoch": 3, "weights": {"fn": "all"}, "action": "freeze"}]
    assert [(row.time, row.action) for row in read_table(from_dict(records))] == [(2, "unfreeze"), (3, "freeze")]


def test_a_config_file_is_read(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text(AS_COLUMNS)
    assert repr(instantiate(OmegaConf.load(path))).startswith("CallbackSetUnfreeze(starting_weights=select_invert(")


def test_a_type_of_the_user_cannot_be_written():
    with pytest.raises(ValueError, match=r"select_type\(tests.helpers.Block\) names a type that is not in torch.nn"):
        to_dict(select_type(Block))


AS_COLUMNS = """
_target_: mlr3torch_py.CallbackSetUnfreeze
starting_weights:
  _target_: mlr3torch_py.select_invert
  select:
    _target_: mlr3torch_py.select_name
    param_names: ["0.weight", "0.bias", "3.weight"]
unfreeze:
  epoch: [2, 3]
  weights:
    - {_target_: mlr3torch_py.select_prefix, _args_: ["3"]}
    - {_target_: mlr3torch_py.select_all}
"""
AS_RECORDS = """
_target_: mlr3torch_py.t_clbk
key: unfreeze
starting_weights: {_target_: mlr3torch_py.select_grep, pattern: "^6|^3.bias"}
unfreeze:
  - {epoch: 2, weights: {_target_: mlr3torch_py.select_prefix, _args_: ["3"]}}
  - {epoch: 3, weights: {_target_: mlr3torch_py.select_all}, action: unfreeze}
"""
AS_PLAIN_DATA = """
_target_: mlr3torch_py.CallbackSetUnfreeze
starting_weights:
  _target_: mlr3torch_py.from_dict
  data: {fn: "|", parts: [{fn: last, n: 1}, {fn: name, param_names: ["3.bias"]}]}
unfreeze:
  _target_: mlr3torch_py.from_dict
  data:
    epoch: [2, 3]
    weights: [{fn: prefix, prefixes: ["3"]}, {fn: all}]
"""


@pytest.mark.parametrize("text", [AS_COLUMNS, AS_RECORDS, AS_PLAIN_DATA])
@pytest.mark.parametrize("convert", ["none", "all"])
def test_a_callback_is_built_from_yaml(text, convert):
    trace = Trace()
    iris_net(instantiate(OmegaConf.create(text), _convert_=convert), trace, batch_size=150, max_epochs=3).fit(X, y)
    assert [len(names) for names in trace.batches_] == [3, 4, 6]


def test_a_whole_net_is_built_from_yaml():
    text = """
    _target_: skorch.NeuralNetClassifier
    module: {_target_: hydra.utils.get_class, path: mlr3torch_py.MLP}
    module__d_in: 4
    module__d_out: 3
    module__neurons: [3, 3]
    criterion: {_target_: hydra.utils.get_class, path: torch.nn.CrossEntropyLoss}
    max_epochs: 3
    train_split: null
    verbose: 0
    callbacks:
      - {_target_: mlr3torch_py.Freezer, name_starts_with: ["0."], until_epoch: 2}
    """
    net = instantiate(OmegaConf.create(text), _convert_="all").fit(X, y)
    assert net.history[:, "n_trainable"] == [24, 24, 39]


def test_conditions_and_combined_tables_are_built_from_yaml():
    text = """
    - - {batch: 4, weights: {_target_: mlr3torch_py.select_all}}
    - - when: {_target_: mlr3torch_py.Plateau, monitor: train_loss, patience: 2}
        weights: {_target_: mlr3torch_py.select_last, n: 1}
        action: freeze
    """
    rows = read_table(instantiate({"table": OmegaConf.create(text)})["table"])
    assert [(row.unit, row.time, row.action) for row in rows] == [
        ("batch", 4, "unfreeze"),
        ("epoch", Plateau("train_loss", patience=2), "freeze"),
    ]
    assert CallbackSetUnfreeze(select_all(), instantiate(OmegaConf.create(text))).check_params() is None
