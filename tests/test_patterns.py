import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlr3torch_py import select_prefix
from mlr3torch_py.patterns import cover, expanded, patterns, summarized
from tests.select.strategies import NAMES

parts = st.sampled_from(["0", "1", "2", "10", "01", "layer", "layer1", "layer2", "{x}", "a,b", "x"])
paths = st.lists(st.lists(parts, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True)


@given(paths)
def test_patterns_stand_for_the_paths_in_their_order(given):
    assert [path for pattern in patterns(given) for path in expanded(pattern)] == given


@given(paths.map(lambda found: select_prefix(*found)))
def test_a_selector_of_many_paths_prints_as_code_that_makes_it(select):
    assert eval(repr(select), {"select_prefix": select_prefix}) == select


def test_a_selector_of_many_paths_prints_by_their_pattern():
    assert repr(select_prefix(*(f"encoder.layer.{i}" for i in range(18)))) == "select_prefix('encoder.layer.{0..17}')"
    assert repr(select_prefix("a", "b", "c")) == "select_prefix('a', 'b', 'c')"
    with pytest.raises(ValueError, match="`prefixes`: .* more than 100,000 paths"):
        select_prefix("{0..99999999}")


@pytest.mark.parametrize("entry", ["5..0", "0..", "..5", "a..c"])
def test_what_is_no_range_is_refused(entry):
    with pytest.raises(ValueError, match=f"`prefixes`: '{re.escape(entry)}' is no range; give two whole numbers"):
        select_prefix(f"layer.{{{entry}}}")
    with pytest.raises(ValueError, match="is no range"):
        select_prefix(f"layer.{{a,{entry}}}")


@pytest.mark.slow
@given(st.sets(st.sampled_from(NAMES)))
def test_a_cover_holds_the_names_and_no_others(names):
    found = cover(names, NAMES)
    assert {name for name in NAMES if any(f"{name}.".startswith(f"{path}.") for path in found)} == names


def test_few_parameters_are_shown_by_name_and_many_by_their_modules():
    known = [f"layers.{i}.{name}" for i in range(4) for name in ("weight", "bias")]
    assert summarized(known[:4], known) == "layers.0.weight, layers.0.bias, layers.1.weight, layers.1.bias"
    assert summarized(known[:6], known) == "layers.{0..2} (6 tensors)"
    assert summarized(known[::2], known, most=2) == "layers.{0..3}.weight (4 tensors)"
    assert summarized([], known) == ""
