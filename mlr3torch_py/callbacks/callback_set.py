"""What all callbacks of this package share: stages, a readable form, and parameters that are checked."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import pandas as pd
from skorch.callbacks import Callback

__all__ = ["REQUIRED", "CallbackSet"]

_HOOK_OF_STAGE: Final = {
    "begin": "on_train_begin",
    "epoch_begin": "on_epoch_begin",
    "batch_begin": "on_batch_begin",
    "after_backward": "on_grad_computed",
    "batch_end": "on_batch_end",
    "epoch_end": "on_epoch_end",
    "end": "on_train_end",
}


class _Required(Enum):
    """A single value that stays itself through pickle, deepcopy and clone."""

    REQUIRED = "a required parameter that is not set yet"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final[Any] = _Required.REQUIRED


class CallbackSet(Callback):  # type: ignore[misc]
    """Base of the callbacks of this package.

    See Also
    --------
    CallbackSetUnfreeze
    """

    @property
    def stages(self) -> list[str]:
        """The stages of training at which the callback acts, by mlr3torch's names, in their order."""
        cls = type(self)
        plain = (CallbackSet, Callback)
        return [
            stage
            for stage, hook in _HOOK_OF_STAGE.items()
            if all(getattr(cls, hook) is not getattr(base, hook) for base in plain)
        ]

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.require_params()

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

    def __str__(self) -> str:
        return f"<{type(self).__name__}>\n* Stages: {', '.join(self.stages)}"

    def __repr__(self) -> str:
        params = ", ".join(f"{name}={_code(value)}" for name, value in self.get_params(deep=False).items())
        return f"{type(self).__name__}({params})"


def _code(value: Any) -> str:
    return repr(value.to_dict("list") if isinstance(value, pd.DataFrame) else value)
