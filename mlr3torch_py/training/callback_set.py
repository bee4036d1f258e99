"""CallbackSet, the base of all callbacks of this package: stages, context, order, and parameters that are checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from enum import Enum
from functools import wraps
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pandas as pd
from sklearn.base import clone
from skorch.callbacks import Callback

from mlr3torch_py.training.conductor import conduct

if TYPE_CHECKING:
    from mlr3torch_py.training.context import ContextTorch

__all__ = ["HOOK_OF_STAGE", "REQUIRED", "CallbackSet"]

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


class _Required(Enum):
    """A single value that stays itself through pickle, deepcopy and clone."""

    REQUIRED = "a required parameter that is not set yet"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final[Any] = _Required.REQUIRED


def _conducted(begin: Callable[..., None]) -> Callable[..., None]:
    """Let the first callback that begins begin all callbacks of the net, in the order of their weights."""

    @wraps(begin)
    def on_train_begin(self: CallbackSet, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        if not conduct(net, self, X, y, **kwargs):
            begin(self, net, X=X, y=y, **kwargs)

    on_train_begin.is_conducted = True  # type: ignore[attr-defined]
    return on_train_begin


class CallbackSet(Callback):  # type: ignore[misc]
    """Base of the callbacks of this package: a skorch callback with the stages of mlr3torch.

    The stages that skorch has are its hooks, with its signatures: ``on_train_begin``, ``on_epoch_begin``,
    ``on_batch_begin``, ``on_grad_computed``, ``on_batch_end``, ``on_epoch_end``, ``on_train_end``. Beside them stand
    ``on_before_valid(net)``, ``on_batch_valid_begin(net, batch)``, ``on_batch_valid_end(net, batch)``,
    ``on_valid_end(net)``, and ``on_exit(net)``, which runs last and always, also when training raises.

    Attributes
    ----------
    ctx : ContextTorch or None
        What is going on, while training; None otherwise.
    weight : float
        In every stage the callbacks of a net run by their weights, those of one weight in the order given. Callbacks
        of skorch have the weight 0. skorch's PrintLog comes after all finite weights. At the begin alone, callbacks of
        skorch that stand in the list before all of this package have begun before them.
    keeps_outputs : bool
        Set it to True in a class that looks at ``ctx.y_hats``, all outputs of the network in an epoch.

    See Also
    --------
    callback_set : Make such a class from functions.

    Notes
    -----
    Ported from ``CallbackSet`` of R's mlr3torch.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from torch.nn import CrossEntropyLoss
    >>> from mlr3torch_py import MLP
    >>> class CallbackSetSteps(CallbackSet):
    ...     def on_exit(self, net, **kwargs):
    ...         print(f"{self.ctx.global_step} steps")
    >>> X, y = load_iris(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     MLP, criterion=CrossEntropyLoss, module__d_in=4, module__d_out=3,
    ...     max_epochs=2, batch_size=60, verbose=0, train_split=None,
    ...     callbacks=[CallbackSetSteps()],
    ... ).fit(X.astype("float32"), y)
    6 steps
    """

    label: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("mlr3torch_py", "skorch", "torch")
    default_weight: ClassVar[float] = 0
    keeps_outputs: ClassVar[bool] = False
    gone_params: ClassVar[Mapping[str, str]] = MappingProxyType({})
    ctx_: ContextTorch | None = None
    weight_: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not getattr(cls.on_train_begin, "is_conducted", False):
            cls.on_train_begin = _conducted(cls.on_train_begin)  # type: ignore[method-assign]

    @property
    def ctx(self) -> ContextTorch | None:
        return self.ctx_

    @property
    def weight(self) -> float:
        return type(self).default_weight if self.weight_ is None else self.weight_

    @weight.setter
    def weight(self, weight: float) -> None:
        if isinstance(weight, bool) or not isinstance(weight, Real) or math.isnan(weight):
            raise TypeError(
                f"`weight` is {weight!r}; it orders the callbacks, so give a number, or math.inf for the last"
            )
        self.weight_ = float(weight)

    @property
    def stages(self) -> list[str]:
        """The stages of training at which the callback acts, by mlr3torch's names, in their order."""
        return [stage for stage, hook in HOOK_OF_STAGE.items() if _defines(type(self), hook)]

    def before_begin(self, net: Any, X: Any, y: Any) -> bool:
        """Act before any callback begins, and say whether the history of the net is another one now."""
        return False

    def before_first_epoch(self, net: Any, dataset_train: Any) -> None:
        """Act in a call of ``fit`` when its first epoch begins, before any callback of that stage."""

    @_conducted
    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Stage ``begin``."""

    def on_before_valid(self, net: Any, **kwargs: Any) -> None:
        """Stage ``before_valid``: after the last training batch of an epoch, also without validation data."""

    def on_batch_valid_begin(self, net: Any, batch: Any = None, **kwargs: Any) -> None:
        """Stage ``batch_valid_begin``."""

    def on_batch_valid_end(self, net: Any, batch: Any = None, **kwargs: Any) -> None:
        """Stage ``batch_valid_end``."""

    def on_valid_end(self, net: Any, **kwargs: Any) -> None:
        """Stage ``valid_end``: after the last validation batch of an epoch."""

    def on_exit(self, net: Any, **kwargs: Any) -> None:
        """Stage ``exit``: after the stage ``end``, or when training raises."""

    def check_params(self) -> None:
        """Check the parameters that are set.

        Raises
        ------
        TypeError, ValueError
            If one has the wrong type or value.
        """

    def require_params(self) -> None:
        """Check that all parameters are set and right.

        Raises
        ------
        TypeError, ValueError
            If one has the wrong type or value, or was never set.
        """
        self.check_params()
        for name, value in self.get_params(deep=False).items():
            if value is REQUIRED:
                raise ValueError(
                    f"`{name}` of {type(self).__name__} was never set; pass it to t_clbk(), "
                    f"or to the net as callbacks__<name of the callback>__{name}"
                )

    def __sklearn_clone__(self) -> CallbackSet:
        cloned = type(self)(**{name: clone(value, safe=False) for name, value in self.get_params(deep=False).items()})
        cloned.weight_ = self.weight_
        return cloned

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"ctx_": None}

    def __str__(self) -> str:
        return f"<{type(self).__name__}>\n* Stages: {', '.join(self.stages)}"

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        given = {name: value for name, value in self.get_params(deep=False).items() if value is not defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={_code(value)}' for name, value in given.items())})"


def _defines(cls: type[CallbackSet], hook: str) -> bool:
    return all(getattr(cls, hook) is not getattr(base, hook, None) for base in (CallbackSet, Callback))


def _code(value: Any) -> str:
    return repr(value.to_dict("list") if isinstance(value, pd.DataFrame) else value)
