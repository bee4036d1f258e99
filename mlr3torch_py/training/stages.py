"""The stages of training, and the base class of callbacks with all of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeGuard, cast

from mlr3torch_py.arguments import check_number
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.belonging import Owner
from mlr3torch_py.training.clock import row_of, score_of
from mlr3torch_py.training.context import ContextTorch
from mlr3torch_py.training.processes import from_main_process
from mlr3torch_py.warn import warn

__all__ = ["HOOK_OF_STAGE", "PASSED_TO_HOOK", "LargeState", "StagedCallback", "is_staged", "machinery_of"]

if TYPE_CHECKING:

    class Callback:
        """The callback of skorch, which has no types; skorch passes all but the net by keyword."""

        def initialize(self) -> Any: ...
        def on_train_begin(self, net: Any, **kwargs: Any) -> None: ...
        def on_train_end(self, net: Any, **kwargs: Any) -> None: ...
        def on_epoch_begin(self, net: Any, **kwargs: Any) -> None: ...
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None: ...
        def on_batch_begin(self, net: Any, **kwargs: Any) -> None: ...
        def on_batch_end(self, net: Any, **kwargs: Any) -> None: ...
        def on_grad_computed(self, net: Any, **kwargs: Any) -> None: ...
        def _get_param_names(self) -> list[str]: ...
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Any: ...

else:
    from skorch.callbacks import Callback

HOOK_OF_STAGE: Final = {
    "begin": "on_train_begin",
    "epoch_begin": "on_epoch_begin",
    "batch_begin": "on_batch_begin",
    "after_backward": "on_grad_computed",
    "batch_end": "on_batch_end",
    "before_valid": "on_before_valid",
    "batch_valid_begin": "on_batch_valid_begin",
    "batch_valid_end": "on_batch_valid_end",
    "valid_end": "on_valid_end",
    "epoch_end": "on_epoch_end",
    "end": "on_train_end",
    "exit": "on_exit",
}

PASSED_TO_HOOK: Final = {
    "on_train_begin": ("X", "y"),
    "on_epoch_begin": ("dataset_train", "dataset_valid"),
    "on_batch_begin": ("batch", "training"),
    "on_grad_computed": ("named_parameters", "batch", "training"),
    "on_batch_end": ("batch", "training", "loss", "y_pred"),
    "on_before_valid": (),
    "on_batch_valid_begin": ("batch",),
    "on_batch_valid_end": ("batch",),
    "on_valid_end": (),
    "on_epoch_end": ("dataset_train", "dataset_valid"),
    "on_train_end": ("X", "y"),
    "on_exit": (),
}
"""What is passed to each hook by keyword, after the net."""

_OF_USERS: Final = frozenset({"ctx", "weight", "keeps_outputs", "after_begin", "belongs_to", *HOOK_OF_STAGE.values()})


class LargeState(NamedTuple):
    """A state that a checkpoint keeps in a file of its own, which is written again only after a change.

    Parameters
    ----------
    version : hashable
        Another one after each change.
    read : callable
        Returns tensors and plain values that later changes leave as they are.
    """

    version: Hashable
    read: Callable[[], Mapping[str, Any]]


class StagedCallback(Callback):
    """A callback of skorch with a context, a weight and further stages, see `run`."""

    _is_machinery: ClassVar[bool] = True  # `dir` leaves out what such a class defines itself, stages apart

    default_weight: ClassVar[float] = 0
    keeps_outputs: ClassVar[bool] = False
    shows_progress: ClassVar[bool] = False
    is_from_history: ClassVar[bool] = False  # its state is worked out from the history, so that no checkpoint holds it
    has_settings: ClassVar[bool] = True  # by its arguments, which a checkpoint compares with those of the run
    gone_params: ClassVar[Mapping[str, str]] = MappingProxyType({})
    tools: ClassVar[tuple[str, ...]] = ("ctx",)  # attributes in which no state of the user's can be
    own_values: ClassVar[tuple[str, ...]] = ()  # attributes of the class of which each callback has a copy
    weight_: float | None = None
    awaits_score_: bool = False
    has_warned_of_nan_: bool = False
    ctx_: ContextTorch | None = None
    owner_: Owner | None = None
    given_: dict[str, tuple[Any, ...]] | None = None
    by_hand_: Mapping[str, tuple[Any, ...]] = MappingProxyType({})  # of what the constructor makes: what was set since

    @property
    def ctx(self) -> ContextTorch | None:
        return self.ctx_

    @property
    def weight(self) -> float:
        return type(self).default_weight if self.weight_ is None else self.weight_

    @weight.setter
    def weight(self, weight: float) -> None:
        self.weight_ = check_number("weight", weight, "a number, or math.inf to run last", finite=False)

    def initialize(self) -> Any:
        """Check that no other thread trains with the callback, which skorch is about to give to a net."""
        self.require_free()
        return self

    def require_free(self) -> None:
        """Check that no other thread trains with the callback.

        Raises
        ------
        RuntimeError
            If one does.
        """
        if self.ctx_ is not None and self.ctx_.is_in_another_thread:
            raise RuntimeError(
                f"this {type(self).__name__} is training another net in another thread; give each net callbacks of its "
                "own, such as copy.deepcopy(callbacks)"
            )

    def join(self, ctx: ContextTorch) -> None:
        """Take part in a run; in that of a ``fit`` from scratch, as the callback was given."""
        if self.ctx_ is None and len(ctx.net.history) == 0:
            self.renew()
        if self.given_ is None:
            self.__dict__["given_"] = {}
        self.ctx_ = ctx

    def renew(self) -> None:
        """Undo what earlier runs have set on the callback."""
        if self.given_ is None:
            return
        attributes = self.__dict__
        for name, value in attributes.pop("given_").items():
            if value:
                attributes[name] = value[0]
            else:
                attributes.pop(name, None)
        for name in self.own_values:
            attributes.pop(name, None)
        parameters = inspect.signature(type(self)).parameters
        if all(name in attributes and p.kind is not p.VAR_KEYWORD for name, p in parameters.items()):
            made = type(self)(**{name: attributes[name] for name in parameters})
            kept = {"by_hand_", *parameters}
            attributes |= {name: value for name, value in vars(made).items() if name not in kept}
            attributes |= {name: _copied(value[0]) for name, value in self.by_hand_.items() if value}

    def run_state(self) -> Any:
        """Return what a checkpoint keeps of a callback that has a state."""
        return cast(Any, self).state_dict()

    def resume_run(self, state: Any) -> None:
        """Continue a run from what a checkpoint has kept."""
        cast(Any, self).load_state_dict(state)

    def belongs_to(self, net: Net) -> bool:
        """Check whether what the callback keeps from earlier calls is of a net and of its history.

        Parameters
        ----------
        net : skorch.NeuralNet

        Returns
        -------
        bool
            False if another net was trained with the callback since, or if the history was taken back, or replaced,
            between two calls. True if nothing is known of earlier calls, as for a state that was loaded.
        """
        return self.owner_ is None or self.owner_.fits(net)

    def epochs_have_ended(self, net: Net) -> None:
        """Note the net and history to which the callback belongs: after the last epoch, however it has ended."""
        self.owner_ = Owner(net)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.given_ is not None and name != "ctx_":
            if self.ctx_ is None:
                self.given_.pop(name, None)
            else:
                self.given_.setdefault(name, (vars(self)[name],) if name in vars(self) else ())
        if self.ctx_ is None and name in self.by_hand_:
            vars(self)["by_hand_"] = {**self.by_hand_, name: (_copied(value),)}
        super().__setattr__(name, value)

    @property
    def monitors(self) -> tuple[str, ...]:
        """The scores of the history that the callback reads."""
        return ()

    @property
    def unprinted(self) -> tuple[str, ...]:
        """The keys that the callback records and that skorch's printed table leaves out."""
        return ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """The keys of the numbers that the callback records for each epoch, scores apart."""
        return ()

    def read_score(self, net: Net, monitor: str, epoch: int = 0) -> float | None:
        """Return a score of an epoch, by default the last one; None if it was not evaluated, or not yet.

        It is that of the main process, where several train the net.
        """
        row = row_of(net.history, epoch - 1)
        here = monitor not in row, score_of(row, monitor), row.get(monitor) is not None
        self.awaits_score_, score, is_evaluated = from_main_process(net, here)
        if score is None and is_evaluated and not self.has_warned_of_nan_:
            self.has_warned_of_nan_ = True
            at = epoch or len(net.history)
            warn(f"`monitor` is {monitor!r}, which is NaN in epoch {at}; epochs without a score are not counted")
        return score

    def find_late_score(self, net: Net) -> None:
        """Read a score again that was missing at ``on_epoch_end``; other callbacks have recorded theirs by now."""

    def finish_epoch(self, net: Net) -> None:
        """Do what the end of an epoch requires, unless it is done.

        Called if another callback has ended training in ``on_epoch_end``, maybe before this one had its turn.
        """

    def settled_since(self, net: Net) -> float | None:
        """Return the epoch since which nothing that is scheduled is still to come; infinity while something is.

        None if the callback schedules nothing.
        """
        return None

    @property
    def lost_on_resume(self) -> Sequence[str]:
        """What a checkpoint cannot keep of the callback, each with the remedy; asked for before and after an epoch."""
        return ()

    def large_state(self) -> LargeState | None:
        """Return a state that is too large to be written after each epoch; None if there is none."""
        return None

    def load_large_state(self, state: Mapping[str, Any]) -> None:
        """Restore a large state, once all callbacks have begun and everything else is restored."""

    def require_params(self, name: str = "") -> None:
        """Raise if a parameter is missing or invalid."""

    def require_module(self, net: Net) -> None:
        """Check that a net has the module that this callback governs.

        Raises
        ------
        TypeError
            If it has modules of other names only.
        """
        if not hasattr(net, "module_"):
            raise TypeError(f"{type(self).__name__} governs parts of `module_`, which {type(net).__name__} lacks")

    def is_replaced(self, parameter: str) -> bool:
        """Check whether a required parameter need not be set, since another one stands in its place."""
        return False

    def before_begin(self, net: Net, X: Any, y: Any) -> bool:
        """Act before any ``on_train_begin``; return True if the net's history was replaced."""
        return False

    def after_begin(self, net: Net, X: Any, y: Any) -> None:
        """Act after every ``on_train_begin``, before the validation split is drawn."""

    def before_first_epoch(self, net: Net, dataset_train: Any, dataset_valid: Any) -> None:
        """Act before the first ``on_epoch_begin`` of a call of ``fit``."""

    def before_update(self, net: Net) -> None:
        """Act after the backward pass, before any ``on_grad_computed``."""

    def after_update(self, net: Net) -> None:
        """Act after the update of a training batch, before any ``on_batch_end``."""

    def after_last_epoch(self, net: Net) -> None:
        """Act after the last epoch of a call of ``fit`` that nothing has interrupted; there may be none at all."""

    def on_before_valid(self, net: Net, **kwargs: Any) -> None:
        """Stage ``before_valid``: after the last training batch of an epoch, also without validation data."""

    def on_batch_valid_begin(self, net: Net, batch: Any = None, **kwargs: Any) -> None:
        """Stage ``batch_valid_begin``."""

    def on_batch_valid_end(self, net: Net, batch: Any = None, **kwargs: Any) -> None:
        """Stage ``batch_valid_end``."""

    def on_valid_end(self, net: Net, **kwargs: Any) -> None:
        """Stage ``valid_end``: after the last validation batch of an epoch."""

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        """Stage ``exit``: after the stage ``end``, or when training raises; repeated if Ctrl-C interrupts it."""

    def __dir__(self) -> list[str]:
        """Leave out what is no user's business: the machinery, and state that no docstring explains."""
        machinery = machinery_of(type(self))
        words = {word for cls in type(self).__mro__ for word in re.findall(r"\w+", cls.__doc__ or "")}
        return [
            name
            for name in super().__dir__()
            if name.startswith("__") or (name not in machinery and (not name.endswith("_") or name in words))
        ]

    def __getstate__(self) -> dict[str, Any]:
        owner = self.owner_ if self.ctx_ is None else Owner(self.ctx_.net)
        return self.__dict__ | {"ctx_": None, "owner_": owner}


def machinery_of(cls: type) -> set[str]:
    """Return the attributes of a class of callbacks that serve this package, and no user of it.

    Examples
    --------
    >>> machinery = machinery_of(StagedCallback)
    >>> "run_state" in machinery, "on_exit" in machinery
    (True, False)
    """
    return {name for one in cls.__mro__ if "_is_machinery" in vars(one) for name in vars(one)} - _OF_USERS


def _copied(value: Any) -> Any:
    """Copy a container, whose content a training may change."""
    return copy(value) if isinstance(value, list | dict | set) else value


def is_staged(callback: object) -> TypeGuard[StagedCallback]:
    """Check whether a callback has all stages."""
    # By its class, since an instance such as a Mock may claim to be anything.
    return issubclass(type(callback), StagedCallback)
