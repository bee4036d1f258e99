"""plot_network: a picture of the modules of a network, with their sizes and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from torch import nn

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.forecast.freeze_plan import freeze_plan
from mlr3torch_py.forecast.ink import FROZEN, INK, TRAINABLE, for_any_theme
from mlr3torch_py.forecast.module_rows import ModuleRow, module_rows
from mlr3torch_py.forecast.picture import MOST_ROWS, check_axes, pyplot, share_colours, share_legend
from mlr3torch_py.forecast.probe import network_of, split_pipeline
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.freezing.holder import freezing_callbacks
from mlr3torch_py.names import percent
from mlr3torch_py.network.parameters import trainable_names
from mlr3torch_py.network.randomness import kept_random_states
from mlr3torch_py.protocols import NetOfUser, PipelineOfUser
from mlr3torch_py.values import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_network"]


@short_traceback
def plot_network(
    net: nn.Module | NetOfUser | PipelineOfUser,
    X: Any = None,
    y: Any = None,
    *,
    epoch: int | None = None,
    batches_per_epoch: int | None = None,
    depth: int | None = None,
    module: str = "module",
    ax: Axes | None = None,
) -> Axes:
    """Draw the tree of a network, with the size of each module and what is frozen in grey.

    Each module is a row, with a bar as long as its number of weights. The bar is blue for the trainable part, and the
    names of modules that train at least in part are bold. Modules without parameters are left out.

    Parameters
    ----------
    net : skorch.NeuralNet, torch.nn.Module or sklearn.pipeline.Pipeline
        A net, initialized or not, a network, or a pipeline that ends in a net. It is not modified.
    X, y : array-like, optional
        The training data, if the callbacks of the net count batches and `epoch` is given.
    epoch : int, optional
        The epoch that is drawn, by the plan of the net, as its last batch has it. By default a network is drawn as it
        is now, and a net that was not trained yet as the first batch will have it.
    batches_per_epoch : int, optional
        The number of batches in an epoch, in place of the data.
    depth : int, optional
        How many levels of modules to draw, from 1; by default as many as fit into 40 rows.
    module : str
        The module of the net that is drawn, such as "discriminator" for its attribute ``discriminator_``, by the plan
        of the callbacks that govern it.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if missing.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or rows count batches and their number is unknown.
    ImportError
        If matplotlib is missing; the message has the line that installs it.

    See Also
    --------
    network_summary : The same as text, with output shapes.
    freeze_plan : All phases of a training; its ``plot()`` draws them.

    Examples
    --------
    >>> from mlr3torch_py import gradual_unfreezing, t_clbk
    >>> net = iris_net(module__neurons=(8,), callbacks=[t_clbk("unfreeze", schedule=gradual_unfreezing(every=2))])
    >>> ax = plot_network(net)
    >>> [label.get_text().strip() for label in ax.get_yticklabels()]
    ['MLP', '├─ 0: Linear', '└─ 3: Linear']
    >>> [text.get_text().strip() for text in ax.texts]
    ['67 (40% trainable)', '40', '27']
    """
    if depth is not None:
        depth = check_whole("depth", depth, "levels")
    if epoch is not None:
        epoch = check_whole("epoch", epoch, "epochs")
    ax, given = check_axes(ax), split_pipeline(net)[1]
    if isinstance(given, nn.Module):
        if epoch is not None:
            raise ValueError("`epoch` is given for a network, which has no schedule; give a net with its callbacks")
        return _draw(_nodes(network_of(given, module), frozenset(trainable_names(given)), depth), ax)
    if isinstance(given, type) or not hasattr(given, "initialized_"):
        raise TypeError(f"`net` is {shown(given)}; give a net of skorch, or a torch.nn.Module")
    with kept_random_states():
        ready: Any = given if given.initialized_ else clone(given).initialize()
    network = network_of(ready, module)
    trainable = frozenset(trainable_names(network))
    if epoch is not None:
        plan = freeze_plan(net, X, y, max(epoch, ready.max_epochs), batches_per_epoch, module=module)
        trainable = [phase for phase in plan.phases if phase.epoch <= epoch][-1].trainable
    elif not ready.history and freezing_callbacks(ready, module):
        plan = freeze_plan(net, batches_per_epoch=1, module=module)  # the first phase is the same for any number
        trainable = plan.phases[0].trainable
    return _draw(_nodes(network, trainable, depth), ax, "" if epoch is None else f"epoch {epoch}")


def _nodes(module: nn.Module, trainable: Set[str], depth: int | None) -> list[ModuleRow]:
    """List the modules with parameters down to a depth."""
    nodes = [one for one in module_rows(module, trainable) if one.names or not one.path]
    depth = _depth(nodes) if depth is None else depth
    return [node for node in nodes if node.depth <= depth]


def _share(node: ModuleRow) -> float:
    return node.n_trainable / node.n_weights if node.n_weights else 0.0


def _size(node: ModuleRow) -> str:
    part = f" ({percent(_share(node))} trainable)" if 0 < _share(node) < 1 else ""
    return f"{node.n_weights:,}{part}"


def _depth(nodes: Sequence[ModuleRow]) -> int:
    """Return the greatest depth that fits into a picture."""
    depths = range(1, 1 + max(node.depth for node in nodes))
    return max((d for d in depths if sum(node.depth <= d for node in nodes) <= MOST_ROWS), default=1)


def _draw(nodes: Sequence[ModuleRow], ax: Axes | None, title: str = "") -> Axes:
    plt = pyplot()
    from matplotlib.patches import Rectangle

    is_own, n = ax is None, len(nodes)
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 0.8 + 0.22 * max(n, 4)), layout="constrained")
    whole, colours, width = nodes[0].n_weights or 1, share_colours(), max(len(_size(node)) for node in nodes)
    for row, node in enumerate(nodes):
        length = node.n_weights / whole
        for x, part, colour in (
            (-0.08, 0.05, colours(_share(node))),
            (0, length, FROZEN),
            (0, length * _share(node), TRAINABLE),
        ):
            ax.add_patch(Rectangle((x, row - 0.35), part, 0.7, facecolor=colour, edgecolor=INK, linewidth=0.5))
        ax.text(1.03, row, _size(node).ljust(width), family="monospace", fontsize="small", va="center")
    lines = _tree(nodes)
    ax.set_yticks(range(n), labels=[line.ljust(max(map(len, lines))) for line in lines])
    for label, node in zip(ax.get_yticklabels(), nodes, strict=True):
        label.set(family="monospace", fontsize="small", fontweight="bold" if _share(node) else "normal")
    ax.set(xlim=(-0.09, 1.01), ylim=(n - 0.5, -0.5), xticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(title)
    handles = share_legend(is_mixed=any(0 < _share(node) < 1 for node in nodes))
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    if is_own:
        for_any_theme(ax.figure)  # type: ignore[arg-type] # the figure was made here
    return ax


def _tree(nodes: Sequence[ModuleRow]) -> list[str]:
    """Write the modules as lines of a tree."""
    lines: list[str] = []
    open_levels: set[int] = set()
    for node in reversed(nodes):  # from below, since a level continues if a row below has it
        open_levels = {level for level in open_levels if level <= node.depth}
        bars = "".join("│  " if level in open_levels else "   " for level in range(1, node.depth))
        corner = ("├─ " if node.depth in open_levels else "└─ ") if node.depth else ""
        lines.append(bars + corner + node.label)
        open_levels.add(node.depth)
    return lines[::-1]
