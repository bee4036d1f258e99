"""Pictures of a history, on the time axis of the plan."""

import os
import pickle

import matplotlib as mpl
import nbformat
import pytest
from matplotlib import pyplot
from matplotlib.text import Annotation
from nbclient import NotebookClient
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from mlr3torch_py import (
    CallbackSetUnfreeze,
    freeze_plan,
    plot_history,
    select_all,
    select_last,
    select_prefix,
    t_clbk,
)
from tests.helpers import Nested, Stops, X, iris_net, y

mpl.use("Agg")
VALID = ValidSplit(3, stratified=True)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def in_two_epochs():
    return CallbackSetUnfreeze(select_last(1), {"epoch": [2, 4], "weights": [select_prefix("3"), select_all()]})


def marks(ax):
    return [line.get_xdata()[0] for line in ax.get_lines() if len(set(line.get_xdata())) == 1]


def texts(ax):
    return [one.get_text() for one in ax.texts if isinstance(one, Annotation)]


def steps(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_losses_stand_in_the_middle_of_their_epoch_and_events_where_they_took_effect():
    net = iris_net(in_two_epochs(), train_split=VALID).fit(X, y)
    losses, share = plot_history(net, ()).axes
    assert [line.get_label() for line in losses.get_lines()][:2] == ["train loss", "valid loss"]
    assert steps(losses.get_lines()[0]) == list(zip([1.5, 2.5, 3.5, 4.5], net.history[:, "train_loss"], strict=True))
    assert marks(losses) == marks(share) == [2, 4]
    assert texts(losses) == ["+ 3.weight, 3.bias", "+ 0.weight, 0.bias"]
    few, some = 12 / 39, 24 / 39
    assert steps(share.get_lines()[0]) == [
        *[(1, few), (2, few), (2, some), (3, some)],
        *[(3, some), (4, some), (4, 1), (5, 1)],
    ]
    assert share.yaxis.get_major_formatter()(0.5, 0) == "50%"


def test_without_events_and_validation_there_is_one_line():
    net = iris_net(CallbackSetUnfreeze(select_all())).fit(X, y)
    assert len(plot_history(net).axes[0].get_lines()) == 1


def test_a_plan_and_a_history_lie_over_each_other():
    unfreeze = CallbackSetUnfreeze(select_last(1), {"batch": [5], "weights": [select_all()]})
    net = iris_net(unfreeze, max_epochs=3)
    plan = freeze_plan(net, X, y).plot()
    losses, share = plot_history(net.fit(X, y)).axes
    assert plan.get_xlim() == losses.get_xlim() == share.get_xlim()
    assert list(plan.get_xticks()) == list(share.get_xticks())
    edges = plan.collections[0].get_coordinates()[0, :, 0]
    assert marks(losses) == pytest.approx([edges[1]])
    assert edges[1] == pytest.approx(2 + 1 / 3)


def test_a_plan_is_drawn_below_with_epochs_that_are_still_to_come():
    net = iris_net(in_two_epochs(), max_epochs=3).fit(X, y)
    losses, share, planned = plot_history(net, plan=freeze_plan(net, X, y, max_epochs=6)).axes
    assert losses.get_xlim() == share.get_xlim() == planned.get_xlim() == (1, 7)
    assert planned.get_yticklabels()[0].get_text() == "0.weight"
    assert share.get_lines()[0].get_xdata()[-1] == 4


def test_names_may_be_left_out_and_do_not_cover_each_other():
    often = CallbackSetUnfreeze(select_last(1), {"batch": [5, 6], "weights": [select_prefix("3"), select_all()]})
    net = iris_net(often, batch_size=2, max_epochs=2, audited=False).fit(X, y)
    losses = plot_history(net).axes[0]
    assert len(marks(losses)) == 2
    assert texts(losses) == ["+ 3.weight, 3.bias"]
    assert texts(plot_history(net, names=False).axes[0]) == []


def test_a_large_block_is_named_by_its_path():
    unfreeze = CallbackSetUnfreeze(select_prefix("head"), {"epoch": [2], "weights": [select_prefix("encoder")]})
    net = iris_net(unfreeze, module=Nested, module__blocks=3, max_epochs=2).fit(X, y)
    assert texts(plot_history(net).axes[0]) == ["+ encoder (18 tensors)"]


def test_further_scores_and_the_rates_have_panels_of_their_own():
    table = {"epoch": [2], "weights": [select_prefix("3")], "lr_mult": [0.5]}
    unfreeze, decay = CallbackSetUnfreeze(select_last(1), table), t_clbk("lr_step", step_size=1, gamma=0.1)
    net = iris_net(unfreeze, decay, train_split=VALID, max_epochs=2).fit(X, y)
    _, scores, rates, _ = plot_history(net).axes
    assert scores.get_ylabel() == "acc"
    assert list(scores.get_lines()[0].get_ydata()) == net.history[:, "valid_acc"]
    drawn = {line.get_label(): steps(line) for line in rates.get_lines() if len(set(line.get_xdata())) > 1}
    assert drawn.keys() == {"lr_0", "lr_0_x0.5"}
    assert [x for x, _ in drawn["lr_0_x0.5"]] == [1, 1.5, 2, 2.5, 3]
    assert [rate for _, rate in drawn["lr_0_x0.5"]] == pytest.approx([0.05] * 2 + [0.005] * 3)
    assert len(plot_history(net, rates=False).axes) == 3


def test_each_score_has_a_panel_for_training_and_validation():
    scorings = [EpochScoring("f1_macro", name="train_f1", on_train=True), EpochScoring("f1_macro", name="valid_f1")]
    net = iris_net(in_two_epochs(), *scorings, train_split=VALID).fit(X, y)
    panels = {ax.get_ylabel(): ax for ax in plot_history(net, plan=freeze_plan(net, X, y)).axes}
    assert list(panels)[:4] == ["loss", "acc", "f1", "trainable"]
    assert [line.get_label() for line in panels["f1"].get_lines()][:2] == ["train f1", "valid f1"]
    chosen = [ax.get_ylabel() for ax in plot_history(net, metrics=["valid_acc"]).axes]
    assert chosen == ["loss", "acc", "trainable"]


def test_the_rate_of_a_scheduler_is_drawn_without_factors():
    net = iris_net(in_two_epochs(), t_clbk("lr_step", step_size=2, gamma=0.1)).fit(X, y)
    rates = plot_history(net).axes[1]
    ends = steps(rates.get_lines()[0])
    assert (rates.get_lines()[0].get_label(), ends[0], ends[-1]) == ("lr", (1, 0.1), (5, pytest.approx(0.01)))


def test_a_history_of_an_earlier_version_is_drawn_without_names():
    net = iris_net(in_two_epochs()).fit(X, y)
    for row in net.history:
        row.pop("trainable_from_batch_count", None)
        del row["event_unfrozen"]
    losses, share = plot_history(net).axes
    assert (marks(losses), texts(losses)) == ([2, 4], [])
    assert [value for _, value in steps(share.get_lines()[0])][::2] == [12 / 39, 24 / 39, 24 / 39, 1]


def test_a_tied_weight_counts_once_in_the_share_and_has_one_name():
    class Tied(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
            self[1].weight = self[0].weight

    unfreeze = CallbackSetUnfreeze(select_last(1), {"epoch": [2], "weights": [select_all()]})
    net = iris_net(unfreeze, module=Tied, max_epochs=2).fit(X, y)
    losses, share = plot_history(net).axes
    assert share.get_lines()[0].get_ydata()[-1] == 1
    assert texts(losses) == ["+ 0.weight"]


def test_a_net_without_a_history_cannot_be_drawn():
    with pytest.raises(ValueError, match="`net` has no history"):
        plot_history(iris_net().fit(X, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": "valid_ac"}, "`metrics` has 'valid_ac', which no epoch has; did you mean 'valid_acc'"),
        ({"metrics": 3}, "`metrics` is 3; give names of scores"),
        ({"rates": 1}, "`rates` is 1; give True or False"),
        ({"plan": "0.weight"}, "`plan` is '0.weight'; give what freeze_plan returned"),
        ({"names": None}, "`names` is None; give True or False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    net = iris_net(in_two_epochs(), train_split=VALID, max_epochs=1).fit(X, y)
    with pytest.raises((TypeError, ValueError), match=message):
        plot_history(net, **arguments)


def test_an_event_of_an_interrupted_epoch_is_marked():
    net = iris_net(in_two_epochs(), Stops(KeyboardInterrupt, 4), batch_size=50, max_epochs=5).fit(X, y)
    assert "train_loss" not in net.history[1]
    net.partial_fit(X, y)
    assert marks(plot_history(net).axes[0])[0] == 2


def test_losses_are_drawn_into_given_axes():
    net = iris_net(in_two_epochs(), train_split=VALID).fit(X, y)
    figure, ax = pyplot.subplots()
    assert plot_history(net, ax=ax) is ax
    assert figure.axes == [ax]
    assert marks(ax) == [2, 4]
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_a_figure_can_be_pickled():
    net = iris_net(in_two_epochs(), train_split=VALID).fit(X, y)
    assert len(pickle.loads(pickle.dumps(plot_history(net))).axes) == 3


def test_pictures_have_no_ground_and_ink_for_light_and_dark_themes():
    net = iris_net(in_two_epochs(), train_split=VALID)
    plan = freeze_plan(net, X, y)
    for figure in (plot_history(net.fit(X, y), "valid_acc", plan=plan), plan.plot().figure):
        grounds = [figure.get_facecolor(), *(ax.get_facecolor() for ax in figure.axes)]
        assert all(ground[3] == 0 for ground in grounds)
        for ax in figure.axes:
            texts = [*ax.texts, ax.xaxis.label, ax.yaxis.label, *ax.get_yticklabels(), *ax.get_xticklabels()]
            assert all(0.3 < min(mpl.colors.to_rgb(text.get_color())) < 0.7 for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("last", ["plot_history(net)", "plot_history(net);", "figure = plot_history(net)"])
def test_a_notebook_shows_it_once(last):
    source = f"""
from tests.helpers import X, iris_net, y
from mlr3torch_py import *
net = iris_net(t_clbk("unfreeze", starting_weights=select_all()), max_epochs=1).fit(X, y)
{last}"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    NotebookClient(notebook, timeout=120).execute(env={**environment, "PYTHONPATH": os.getcwd()})
    assert sum("image/png" in output.get("data", {}) for output in notebook.cells[0].outputs) == 1
