"""How a plan shows itself: in a terminal, and in a notebook."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from torch import nn

from mlr3torch_py import (
    MLP,
    Freezer,
    Plateau,
    chain_thaw,
    freeze_plan,
    gradual_unfreezing,
    select_all,
    select_grep,
    select_last,
    select_name,
    select_prefix,
    t_clbk,
)
from tests.helpers import Nested, X, iris_net, y

mpl.use("agg")
NETWORK = MLP(4, 3, neurons=(8, 8))


def plan_of(network=NETWORK, starting_weights=None, unfreeze=None, schedule=None, **params):
    args = {"schedule": schedule} if schedule else {"starting_weights": starting_weights, "unfreeze": unfreeze}
    return freeze_plan(network, callbacks=[t_clbk("unfreeze", **args)], **params)


class Page(HTMLParser):
    """The words of a page, its tooltips, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tips, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.tips if "title" in self.open else self.words).append(data)


def shown(plan):
    return Page(plan._repr_html_().replace("\N{NO-BREAK SPACE}", " "))


def rows_of(plan):
    """The cells of the table in a notebook."""
    table = plan._repr_html_().partition("<table")[2].partition("</table>")[0].replace("\N{NO-BREAK SPACE}", " ")
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[1:]]
    return cells[0], cells[1:]


def test_a_plan_prints_what_each_phase_releases_and_freezes():
    chained = {"epoch": [2, 2], "weights": [select_prefix("3"), select_last(1)], "action": ["unfreeze", "freeze"]}
    text = str(plan_of(starting_weights=select_last(1), unfreeze=chained))
    assert {"1 + 6.weight, 6.bias", "2 + 3.weight, 3.bias", "2 - 6.weight, 6.bias"} <= {*text.splitlines()}


def test_the_prompt_shows_what_print_shows():
    plan = plan_of(schedule=gradual_unfreezing())
    assert repr(plan) == str(plan)


@pytest.mark.parametrize("schedule", [chain_thaw(), gradual_unfreezing(lr_decay=1.1)])
def test_a_long_plan_prints_its_first_and_last_phases(schedule):
    plan = plan_of(Nested(50), schedule=schedule)
    text = str(plan)
    assert len(text) < 2000
    numbers = [int(line.split()[0]) for line in text.splitlines() if line[0].isdigit() and "%" in line]
    assert {1, 2, 3, len(plan.phases)} <= {*numbers}
    assert f"... {len(plan.phases) - len(numbers)} more phases" in text
    assert text.splitlines()[2 + len(numbers) // 2] == "..."


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_the_text_is_as_wide_as_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = {"when": [Plateau(patience=2)], "weights": [select_all()], "lr_mult": [0.1], "warmup": [7]}
    net = iris_net(t_clbk("unfreeze", starting_weights=select_last(1), unfreeze=table), t_clbk("frozen_cache"))
    lines = str(freeze_plan(net, X, y, measure=True)).splitlines()
    assert max(map(len, lines)) <= columns
    assert "frozen_prefix" in lines[0] or columns < 80


def test_a_table_is_not_wrapped_where_it_is_as_wide_as_the_terminal(monkeypatch):
    plan = plan_of(Nested(2), schedule=gradual_unfreezing(lr_decay=2.6))
    monkeypatch.setenv("COLUMNS", "200")
    header = str(plan).splitlines()[0]
    monkeypatch.setenv("COLUMNS", str(len(header)))
    assert str(plan).splitlines()[0] == header
    monkeypatch.setenv("COLUMNS", str(len(header) - 1))
    assert " total" not in str(plan).splitlines()[0]


def test_a_large_block_is_shown_by_its_module_and_a_small_one_by_its_tensors():
    plan = plan_of(Nested(2), schedule=gradual_unfreezing())
    assert {"1 + head.weight, head.bias", "2 + encoder.1 (6 tensors)"} <= {*str(plan).splitlines()}
    assert [row[2] for row in rows_of(plan)[1]][:2] == ["+ head.weight, head.bias", "+ encoder.1 (6 tensors)"]


def test_a_share_that_is_neither_nothing_nor_all_does_not_look_like_it():
    tiny = nn.Sequential(nn.Linear(3000, 300), nn.Linear(300, 2))
    plan = plan_of(tiny, schedule=gradual_unfreezing())
    assert [row[3:5] for row in rows_of(plan)[1]] == [["602", "0.1%"], ["900,902", "100%"]]
    assert "0.1%" in str(plan)
    assert "99.9998%" in str(freeze_plan(tiny, callbacks=[Freezer(names="1.bias")]))


def test_a_notebook_shows_a_strip_of_the_blocks_with_names_sizes_and_rates_as_tooltips():
    page = shown(plan_of(schedule=gradual_unfreezing(every=2, lr_decay=2.0)))
    assert {"0", "3", "6"} <= {*page.words}
    assert "3: 72 weights" in page.tips
    assert "3, epoch 1 to 2\nfrozen: 3.weight (64), 3.bias (8)" in page.tips
    assert "3, epoch 3 to 5\ntrainable: 3.weight (64), 3.bias (8)\nlr_mult 0.5" in page.tips
    assert "x0.5" in page.words


def test_the_table_of_a_notebook_has_epochs_and_factors():
    head, rows = rows_of(plan_of(schedule=gradual_unfreezing(every=2, lr_decay=2.0)))
    assert head == ["phase", "epoch", "releases (+), freezes (-)", "trainable", "share", "lr_mult"]
    assert [row[:2] for row in rows] == [["1", "1 to 2"], ["2", "3 to 4"], ["3", "5"]]
    assert rows[1][2:] == ["+ 3.weight, 3.bias\nlr_mult 0.5: 3.weight, 3.bias", "99", "71%", "0.5 to 1"]


def test_a_phase_that_begins_in_an_epoch_says_at_which_batch():
    table = {"batch": [31], "weights": [select_all()], "warmup": [25]}
    plan = plan_of(starting_weights=select_last(1), unfreeze=table, max_epochs=4, batches_per_epoch=20)
    assert [row[1] for row in rows_of(plan)[1]] == ["1 to 2", "2 to 4, from batch 11"]
    assert any("warmup over 25 batches" in tip for tip in shown(plan).tips)


def test_a_strip_says_that_a_warm_up_goes_on_in_a_later_phase_and_draws_it_whole():
    table = {"epoch": [2, 3], "weights": [select_prefix("3")] * 2, "warmup": [40, 0], "lr_mult": [0.5, 0.25]}
    table |= {"lr_mult_from": ["row", "row"]}
    plan = plan_of(starting_weights=select_last(1), unfreeze=table, max_epochs=8, batches_per_epoch=10)
    tips = [tip.splitlines()[0::3] for tip in shown(plan).tips if "warmup" in tip]
    over = "warmup over 40 batches"
    assert tips == [["3, epoch 2", over], ["3, epoch 3 to 8", f"{over} since batch 11"]]
    html = plan._repr_html_()
    ((width, height),) = re.findall(r'l([\d.]+) ([-\d.]+)" stroke="#fff"', html)
    epoch = re.search(r'<title>3, epoch 2\n.*?<rect x=\S+ y=\S+ width="([\d.]+)"', html, re.DOTALL)
    assert (float(width), float(height)) == (pytest.approx(4 * (float(epoch[1]) + 1), abs=0.3), -16)


def test_rows_that_wait_and_rows_that_never_come_are_marked():
    table = {
        "when": [Plateau("valid_loss", no_later_than=3), Plateau("valid_acc")],
        "weights": [select_prefix("3"), select_all()],
    }
    plan = plan_of(starting_weights=select_last(1), unfreeze=table, max_epochs=4)
    assert [row[:3] for row in rows_of(plan)[1]][2:] == [
        ["waits", "for a plateau of valid_loss, until epoch 3", "+ 3.weight, 3.bias"],
        ["waits", "for a plateau of valid_acc", "+ {0,3,6} (6 tensors)"],
    ]
    assert "waits for a plateau of valid_acc" in "".join(shown(plan).tips)
    late = plan_of(starting_weights=select_last(1), unfreeze={"epoch": [9], "weights": [select_all()]}, max_epochs=4)
    assert rows_of(late)[1][-1][:2] == ["never", "epoch 9 is after the last one"]
    assert "epoch 9 never comes" in "".join(shown(late).tips)


def test_a_block_that_trains_in_part_is_shown_by_its_parameters():
    words = shown(plan_of(starting_weights=select_name(["0.bias", "6.weight", "6.bias"]))).words
    assert {"0.weight", "0.bias", "3", "6"} <= {*words}
    assert "in part" not in [word.strip() for word in words]


def test_a_strip_of_a_deep_network_stays_small():
    page = shown(plan_of(Nested(100), schedule=gradual_unfreezing()))
    assert "encoder.{2..4}" in page.words
    assert len(page.tips) < 400


def test_a_network_without_parameters_is_shown_and_drawn():
    plan = plan_of(nn.Sequential(nn.ReLU()), starting_weights=select_all())
    assert shown(plan).tips == []
    assert plan.plot().get_yticklabels() == []
    pyplot.close("all")


def test_everything_in_a_notebook_is_escaped():
    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>&", nn.Linear(1, 1))
            self.head = nn.Linear(1, 1)

    table = {"when": [Plateau("<i>")], "weights": [select_grep(r"(?<!1)3\.") | select_all()]}
    plan = replace(plan_of(Sly(), starting_weights=select_last(1), unfreeze=table), notes=("a <u> c",))
    page = shown(plan)
    assert {"<b>&", "a <u> c", "for a plateau of <i>"} <= {*page.words}
    assert "<b>&: 2 weights" in page.tips
