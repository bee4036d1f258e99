"""Which parameters were trainable in which epoch: recorded while a net trains, as a table and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from skorch.callbacks import Callback

from mlr3torch_py.parameters import named_parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Timeline"]

_COLOURS = ("#d9d9d9", "#0072b2")  # light grey and dark blue differ in lightness, so for colour-blind readers too


class Timeline(Callback):  # type: ignore[misc]
    """A skorch callback that records, at the end of each epoch, which parameters are trainable.

    Put it behind the freezing callbacks.

    See Also
    --------
    CallbackSetUnfreeze

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from mlr3torch_py import MLP, select_last, t_clbk
    >>> X, y = load_iris(return_X_y=True)
    >>> timeline = Timeline()
    >>> net = NeuralNetClassifier(
    ...     MLP, module__d_in=4, module__d_out=3, module__neurons=8, max_epochs=2, verbose=0,
    ...     callbacks=[t_clbk("unfreeze", starting_weights=select_last(1)), timeline],
    ... ).fit(X.astype("float32"), y)
    >>> timeline.to_frame()
                 1      2
    0.weight  False  False
    0.bias    False  False
    3.weight   True   True
    3.bias     True   True
    """

    trainable_: dict[int, dict[str, bool]]

    def initialize(self) -> Timeline:
        """Forget what was recorded.

        Returns
        -------
        Timeline
        """
        self.trainable_ = {}
        return self

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Record what is trainable."""
        tensors = named_parameters(net.module_)
        self.trainable_[len(net.history)] = {name: tensor.requires_grad for name, tensor in tensors.items()}

    def to_frame(self) -> pd.DataFrame:
        """Return what was recorded.

        Returns
        -------
        pandas.DataFrame
            One row per parameter, in the order of the network, one column per epoch, True where it was trainable.
        """
        return pd.DataFrame(self.trainable_)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what was recorded: parameters down, epochs across.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure if missing.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is missing; the message has the line that installs it.
        """
        try:
            import matplotlib.pyplot as plt
            from matplotlib.colors import ListedColormap
            from matplotlib.patches import Patch
        except ImportError as error:
            raise ImportError("drawing needs matplotlib: pip install 'mlr3torch_py[plot]'") from error
        frame = self.to_frame()
        if ax is None:
            _, ax = plt.subplots(figsize=(2.5 + 0.6 * frame.shape[1], 1.5 + 0.3 * frame.shape[0]), layout="constrained")
        ax.pcolormesh(frame.to_numpy(), cmap=ListedColormap(_COLOURS), vmin=0, vmax=1, edgecolors="white", linewidth=2)
        ax.set_xticks([column + 0.5 for column in range(frame.shape[1])], labels=map(str, frame.columns))
        ax.set_yticks([row + 0.5 for row in range(frame.shape[0])], labels=list(frame.index))
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("epoch")
        ax.legend(
            handles=[
                Patch(color=colour, label=label)
                for colour, label in zip(_COLOURS, ("frozen", "trainable"), strict=True)
            ],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
        )
        return ax
