"""Freezer: freeze parameters by their names for some epochs or steps, as Lighter's Freezer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import nn

from mlr3torch_py.arguments import check_list, check_names, check_whole
from mlr3torch_py.freezing.advice import partly_selected
from mlr3torch_py.freezing.holder import FreezingCallback
from mlr3torch_py.freezing.roles import Mode
from mlr3torch_py.names import listed, nearest
from mlr3torch_py.network.sharing import sharing_names
from mlr3torch_py.network.unwrap import named_parameters
from mlr3torch_py.schedule.plan import Plan
from mlr3torch_py.schedule.steps import Moment, Step
from mlr3torch_py.schedule.table import Row
from mlr3torch_py.select.functions import select_name

__all__ = ["Freezer", "Names"]

Names = str | Sequence[str] | None


class Freezer(FreezingCallback):
    """Freeze parameters by their names, for a number of epochs or training steps or for good.

    Parameters
    ----------
    names : str or list of str, optional
        Parameters to freeze.
    name_starts_with : str or list, optional
        Plain prefixes of the names of parameters to freeze: ``"layer1"`` matches ``layer10.weight`` as well. With
        `start_epoch` every entry is a group, and an entry may itself be a list of prefixes.
    except_names, except_name_starts_with : str or list of str, optional
        Parameters, and prefixes, that are not frozen.
    until_step, until_epoch : int, optional
        The number of training batches, and of epochs, for which the parameters are frozen. With both, the earlier one
        releases them; with neither they stay frozen; 0 never freezes.
    start_epoch, unfreeze_every_n_epochs : int, optional
        Group k of `name_starts_with`, counted from 0, is frozen for the first
        ``start_epoch + k * unfreeze_every_n_epochs`` epochs. `names` stay frozen until `until_step` or `until_epoch`,
        which release everything.
    frozen_mode : {"train", "eval"}
        With "eval", every module in a part of the network that is frozen as a whole, by this callback, is pinned in
        eval mode while it is; see `CallbackSetUnfreeze`.
    frozen_norm, frozen_dropout : {"train", "eval"}, optional
        The mode of normalisation layers with running statistics, and of all other modules, in these parts; as
        `frozen_mode` if missing.
    module : str
        The module of the net that is governed, as `CallbackSetUnfreeze` explains.

    Raises
    ------
    TypeError, ValueError
        When training begins, if there is nothing to freeze, an argument is wrong, or a name or prefix matches nothing.

    Warns
    -----
    UserWarning
        When training begins, if only some of the parameters that share weights are matched, and as
        `CallbackSetUnfreeze` does for parameters that were frozen before, that no optimizer holds, or that their own
        forward pass changes.

    See Also
    --------
    CallbackSetUnfreeze : Freeze everything but what is named, by a table.

    Notes
    -----
    Ported from the documentation of ``lighter.callbacks.Freezer``. Names are those of the module, without Lighter's
    leading ``model.``. Parameters that are not matched, or excepted, stay as they are, frozen or not. Several freezing
    callbacks compose: a parameter is trainable when none of them holds it. Steps and epochs count over the whole life
    of a net, so an interrupted training continues where it was.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP, trainable_names
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     module__neurons=8, max_epochs=2, verbose=0,
    ...     callbacks=[Freezer(name_starts_with="0.", except_names="0.bias", until_epoch=2)],
    ... ).fit(X.astype("float32"), y)
    >>> trainable_names(net.module_)
    ['0.bias', '3.weight', '3.bias']
    >>> net.partial_fit(X.astype("float32"), y).history[-1, "n_trainable"]
    67
    """

    label = "Freezer"

    def __init__(
        self,
        names: Names = None,
        name_starts_with: str | Sequence[str | Sequence[str]] | None = None,
        except_names: Names = None,
        except_name_starts_with: Names = None,
        until_step: int | None = None,
        until_epoch: int | None = None,
        start_epoch: int | None = None,
        unfreeze_every_n_epochs: int | None = None,
        *,
        frozen_mode: Mode = "train",
        frozen_norm: Mode | None = None,
        frozen_dropout: Mode | None = None,
        module: str = "module",
    ) -> None:
        self.names = names
        self.name_starts_with = name_starts_with
        self.except_names = except_names
        self.except_name_starts_with = except_name_starts_with
        self.until_step = until_step
        self.until_epoch = until_epoch
        self.start_epoch = start_epoch
        self.unfreeze_every_n_epochs = unfreeze_every_n_epochs
        self.frozen_mode: Mode = frozen_mode
        self.frozen_norm: Mode | None = frozen_norm
        self.frozen_dropout: Mode | None = frozen_dropout
        self.module = module

    def check_params(self) -> None:
        self.check_common()
        groups = self._groups()
        if not (self._names("names") or groups):
            raise ValueError("neither `names` nor `name_starts_with` is given; name at least one weight to freeze")
        for argument in ("except_names", "except_name_starts_with"):
            self._names(argument)
        for argument in ("until_step", "until_epoch", "start_epoch", "unfreeze_every_n_epochs"):
            self._whole(argument)
        if (self.start_epoch is None) != (self.unfreeze_every_n_epochs is None):
            given, lacking = ("start_epoch", "unfreeze_every_n_epochs")[:: -1 if self.start_epoch is None else 1]
            raise ValueError(
                f"`{given}` is given without `{lacking}`; give both to release group after group, or use `until_epoch`"
            )
        if self.start_epoch is not None and not groups:
            raise ValueError(
                "`start_epoch` is given without `name_starts_with`, whose entries are the groups to release"
            )

    def make_plans(self, module: nn.Module) -> tuple[Plan, ...]:
        held: list[tuple[list[str], int | None]]
        known = list(named_parameters(module))
        excepted = {
            *_matching("except_names", self._names("except_names"), known, exact=True),
            *_matching("except_name_starts_with", self._names("except_name_starts_with"), known),
        }
        named = _matching("names", self._names("names"), known, exact=True)
        groups = [_matching("name_starts_with", prefixes, known) for prefixes in self._groups()]
        until_epoch, until_step = self._whole("until_epoch"), self._whole("until_step")
        start, every = self._whole("start_epoch"), self._whole("unfreeze_every_n_epochs")
        if start is None or every is None:
            held = [([*named, *(name for group in groups for name in group)], until_epoch)]
        else:
            held = [(named, until_epoch)]
            for k, group in enumerate(groups):
                end = start + k * every
                held.append((group, end if until_epoch is None else min(end, until_epoch)))
        plans = []
        for matched, n_epochs in held:
            chosen = set(matched) - excepted
            if chosen:
                plans.append(_hold([name for name in known if name in chosen], n_epochs, until_step))
        if not plans:
            raise ValueError(
                "`except_names` and `except_name_starts_with` leave nothing of what `names` and `name_starts_with` "
                "match; except less, or leave out the callback"
            )
        return tuple(plans)

    def opening(self) -> str:
        frozen = [([name for name in plan.names if name in self.held_], plan.steps) for plan in self.plans_]
        return "; ".join(f"freezing {listed(names)} {_until(steps)}" for names, steps in frozen if names) or (
            "freezing nothing"
        )

    def describe(self, moment: Moment) -> str:
        given = [f"`{argument}`" for argument in ("names", "name_starts_with") if getattr(self, argument) is not None]
        return f"by {' and '.join(given)} {self.opening()}"

    def open_ends(self, plans: Sequence[Plan], is_late: Callable[[Step], bool], end: str) -> Iterator[str]:
        for plan in plans:
            if plan.steps and all(map(is_late, plan.steps)):
                names, until = listed(plan.names, most=4), _until(plan.steps)
                yield f"Freezer holds {names} {until}, so to the end, since epoch {end}"

    def doubts(self, network: nn.Module, plans: Sequence[Plan]) -> Iterator[str]:
        governed = frozenset().union(*(plan.names for plan in plans))
        return partly_selected(sharing_names(named_parameters(network)), governed)

    def _whole(self, argument: str) -> int | None:
        value, least = getattr(self, argument), 1 if argument == "unfreeze_every_n_epochs" else 0
        what = "training batches" if argument == "until_step" else "epochs"
        return None if value is None else check_whole(argument, value, what, least=least)

    def _names(self, argument: str) -> tuple[str, ...]:
        value = getattr(self, argument)
        return () if value is None else check_names(argument, value, again=True)

    def _groups(self) -> list[tuple[str, ...]]:
        value = self.name_starts_with
        if value is None:
            return []
        remedy = "a prefix, or a list of prefixes and of lists of prefixes"
        entries = [value] if isinstance(value, str) else check_list("name_starts_with", value, remedy, again=True)
        return [check_names("name_starts_with", entry, again=True) for entry in entries]


def _hold(names: Sequence[str], n_epochs: int | None, n_batches: int | None) -> Plan:
    """Make the plan that holds `names` for some epochs or batches, whichever end first."""
    if n_epochs == 0 or n_batches == 0:
        return Plan(tuple(names), frozenset(names), ())
    ends = [(n_epochs, "epoch"), (n_batches, "batch")]
    rows = (Row(0, n + 1, unit, select_name(names)) for n, unit in ends if n is not None)  # type: ignore[arg-type]
    return Plan(tuple(names), frozenset(), tuple(Step(row, frozenset(names)) for row in rows))


def _until(steps: Sequence[Step]) -> str:
    ends = " or ".join(f"{step.row.unit} {int(step.time) - 1}" for step in steps)
    return f"until after {ends}" if ends else "for good"


def _matching(argument: str, given: Iterable[str], known: Sequence[str], exact: bool = False) -> list[str]:
    def matches(wanted: str) -> Iterator[str]:
        return (name for name in known if (name == wanted if exact else name.startswith(wanted)))

    matched = {wanted: list(matches(wanted)) for wanted in given}
    missing = [wanted for wanted, names in matched.items() if not names]
    if missing:
        raise ValueError(
            f"`{argument}` has {listed(map(repr, missing))}, which matches no weight of the network; "
            f"{nearest(missing, known)} Give names of the bare module, without Lighter's leading 'model.'"
        )
    return [name for names in matched.values() for name in names]
