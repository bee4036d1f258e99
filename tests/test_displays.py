"""What callbacks, selectors and the dictionary look like at the prompt and in a notebook."""

import re

import pytest
import sklearn
from sklearn.utils import estimator_html_repr
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    mlr3torch_callbacks,
    select_all,
    select_grep,
    select_last,
    select_prefix,
    t_clbk,
    torch_callback,
)
from tests.callbacks.test_progress_notebook import words_of
from tests.helpers import Nested, iris_net


@pytest.mark.parametrize(
    "call",
    [
        "t_clbk('unfreeze')",
        "t_clbk('unfreeze', starting_weights=select_last(1), unfreeze={'epoch': [2], 'weights': [select_all()]})",
        "t_clbk('freezer', id='encoder', weight=3.0, names='0.bias')",
        "t_clbk('progress', digits=3)",
    ],
)
def test_a_callback_reads_as_its_call(call):
    scope = {"t_clbk": t_clbk, "select_last": select_last, "select_all": select_all}
    assert repr(eval(call, scope)) == call


def test_a_callback_from_functions_reads_as_a_pair():
    def leave(self):
        return self.ctx

    assert repr(torch_callback("mine", on_exit=leave)) == "TorchCallback('mine', CallbackSetMine())"


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 7), reason="its diagrams have no parameters"
)
def test_the_diagram_of_scikit_learn_has_the_calls():
    diagram = estimator_html_repr(iris_net(t_clbk("unfreeze", starting_weights=select_last(1)), audited=False))
    assert "callbacks=[t_clbk(" in diagram or "[t_clbk(" in diagram


def test_a_callback_in_a_notebook_has_a_description_and_all_parameters():
    words = words_of(t_clbk("early_stopping", patience=3)._repr_html_())
    assert words[:2] == [
        "t_clbk('early_stopping', patience=3)",
        "Stop training when a score has not improved for some epochs.",
    ]
    assert {"min_delta", "0.0", "default", "monitor", "'valid_loss'"} <= set(words)


def test_the_dictionary_in_a_notebook_has_all_keys_with_parameters_and_descriptions():
    words = words_of(mlr3torch_callbacks._repr_html_())
    assert set(mlr3torch_callbacks) <= set(words)
    assert any(word.startswith("starting_weights, unfreeze=None") for word in words)
    assert all(words[words.index(key) + 1].endswith(".") for key in mlr3torch_callbacks)


NASTY = "<script>&"


def test_everything_is_escaped():
    for html in (
        CallbackSetUnfreeze(select_grep(NASTY))._repr_html_(),
        t_clbk("early_stopping", monitor=NASTY)._repr_html_(),
        select_grep(NASTY)._repr_html_(),
        (~select_grep(NASTY)).show(nn.Linear(1, 1))._repr_html_(),
    ):
        assert "<script" not in html
        assert any(NASTY in word for word in words_of(html))


def test_a_selector_ticks_what_it_selects():
    shown = select_prefix("encoder.1.fc1").show(Nested(6))
    assert str(shown).splitlines() == [
        "select_prefix('encoder.1.fc1'): 2 of 40 parameters, 20 of 323 weights",
        "[ ] embed  (2 parameters, 20 weights)",
        "[~] encoder",
        "  [ ] 0  (6 parameters, 48 weights)",
        "  [~] 1",
        "    [ ] norm  (2 parameters, 8 weights)",
        "    [x] fc1  (2 parameters, 20 weights)",
        "    [ ] fc2  (2 parameters, 20 weights)",
        "  [ ] {2..5}  (24 parameters, 192 weights)",
        "[ ] head  (2 parameters, 15 weights)",
    ]
    assert words_of(shown._repr_html_()) == [str(shown)]


def test_every_parameter_is_in_exactly_one_line():
    network = Nested(3)
    shown = str(select_grep("bias").show(network))
    counts = [int(n) for n in re.findall(r"\((\d+) parameters", shown)]
    assert sum(counts) + shown.count(" weights)") - len(counts) == len(list(network.parameters()))
