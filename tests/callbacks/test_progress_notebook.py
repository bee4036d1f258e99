"""The table that a notebook shows, as it is saved."""

import os
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbclient import NotebookClient

from mlr3torch_py.callbacks.progress_html import table_html
from mlr3torch_py.callbacks.progress_state import Epoch, ProgressState

pytestmark = pytest.mark.slow

START = """
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from mlr3torch_py import *
from tests.helpers import Nested, X, iris_net, y
class CtrlC(Callback):
    def on_batch_end(self, net, training=None, **kwargs):
        if training and len(net.history) == 3 and not hasattr(self, "done_"):
            self.done_ = True
            raise KeyboardInterrupt
net = iris_net(t_clbk("progress", plot=True), t_clbk("unfreeze", starting_weights=select_prefix("head"),
    unfreeze={"epoch": [2], "weights": [select_prefix("encoder")]}), CtrlC(), module=Nested,
    max_epochs=4, verbose=1, train_split=ValidSplit(3))
"""


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.words = []

    def handle_data(self, data):
        self.words.append(data)


def words_of(html):
    parser = Text()
    parser.feed(html)
    parser.close()
    return parser.words


@pytest.fixture(scope="module")
def cells():
    sources = [START, "net.fit(X, y);", "net.partial_fit(X, y);"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    errors = "error,ignore:There is no current event loop"  # asyncio of Python 3.12.1 warns of what the kernel does
    NotebookClient(notebook, timeout=120).execute(
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": errors}
    )
    return notebook.cells


def test_what_is_saved_is_one_table_and_nothing_else(cells):
    for cell in cells[1:]:
        assert [output.output_type for output in cell.outputs] == ["display_data"]
        assert "<progress" not in cell.outputs[0].data["text/html"]
        assert cell.outputs[0].data["text/html"].count("<table") == 1


def test_the_table_has_a_row_for_each_epoch_with_what_was_unfrozen_by_block(cells):
    words = words_of(cells[1].outputs[0].data["text/html"])
    assert words[:7] == ["epoch", "train.loss", "valid.acc", "valid.loss", "lr", "trainable", "time"]
    assert "unfroze encoder (6 tensors)" in words
    rows = cells[1].outputs[0].data["text/html"].split("<tr>")[2:]
    assert [words_of(row)[0] for row in rows] == ["1", "2"]
    assert any(re.fullmatch(r"Trained for 2 epochs \(\d+\.\d s\): interrupted in epoch 3", word) for word in words)


def test_it_says_where_it_was_resumed(cells):
    words = words_of(cells[2].outputs[0].data["text/html"])
    assert "Training: continued after epoch 3" in words


def test_the_losses_are_drawn_beneath(cells):
    assert cells[1].outputs[0].data["text/html"].count("<polyline") == 2


def test_the_text_beside_the_table_has_the_lines_of_a_terminal(cells):
    lines = cells[1].outputs[0].data["text/plain"].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Epoch 1/4", "Epoch 2/4", lines[-1].partition(":")[0]]


def test_html_is_escaped():
    epoch = Epoch(1, {"<b>": "1"}, "0.1", "", "1.0 s", "unfroze <i>&")
    state = ProgressState(total_epochs=3, epochs=[epoch], notes=["<u>"], number=1, n_batches=1, of_batches=4)
    for is_live in (True, False):
        words = words_of(table_html(state, is_live=is_live, plot=False))
        assert {"<b>", "unfroze <i>&", "<u>"} <= set(words)


def test_a_bar_shows_batches_and_the_time_left_while_training_lasts():
    state = ProgressState(total_epochs=3, number=2, n_batches=1, of_batches=4)
    html = table_html(state, is_live=True, plot=False)
    assert '<progress value="1" max="4"' in html
    assert re.search(r"Epoch 2/3, train batch 1/4, \d+ s left", html)
