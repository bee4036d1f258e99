"""The dictionary of callbacks by key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import pandas as pd
from torch.optim import lr_scheduler

from mlr3torch_py.audit.callback import CallbackSetFreezeAudit
from mlr3torch_py.cache.callback import CallbackSetFrozenCache
from mlr3torch_py.callbacks.early_stopping import CallbackSetEarlyStopping
from mlr3torch_py.callbacks.history import CallbackSetHistory
from mlr3torch_py.callbacks.lr_class import lr_scheduler_class
from mlr3torch_py.callbacks.on_plateau import CallbackSetLRSchedulerReduceOnPlateau
from mlr3torch_py.callbacks.one_cycle import CallbackSetLRSchedulerOneCycle
from mlr3torch_py.callbacks.progress import CallbackSetProgress
from mlr3torch_py.callbacks.tensorboard import CallbackSetTB
from mlr3torch_py.checkpoint.callback import CallbackSetCheckpoint
from mlr3torch_py.frames import short_traceback
from mlr3torch_py.freezing.freezer import Freezer
from mlr3torch_py.freezing.unfreeze import CallbackSetUnfreeze
from mlr3torch_py.html import html_table
from mlr3torch_py.names import nearest
from mlr3torch_py.registry.torch_callback import TorchCallback, check_id, parameters_of
from mlr3torch_py.training.callback_html import code, summary_of
from mlr3torch_py.training.callback_set import REQUIRED, CallbackSet
from mlr3torch_py.values import shown

__all__ = ["CallbackDictionary", "mlr3torch_callbacks"]


class CallbackDictionary:
    """A dictionary of classes of callbacks, by key.

    `add` takes a class, `get` makes a callback by its key, `keys` lists the keys, and `to_frame` is a table of all.

    See Also
    --------
    t_clbk : Makes a callback by its key.

    Examples
    --------
    >>> "unfreeze" in mlr3torch_callbacks
    True
    >>> mlr3torch_callbacks["unfreeze"].id
    'unfreeze'
    """

    def __init__(self) -> None:
        self._generators: dict[str, type[CallbackSet]] = {}

    @short_traceback
    def add(self, key: str, generator: type[CallbackSet]) -> None:
        """Add a callback, or replace one.

        Parameters
        ----------
        key : str
            Its key, and its name in a net.
        generator : type
            A subclass of `CallbackSet`. Parameters of its constructor without a default are required; its `label` is
            the human-readable name.

        Raises
        ------
        TypeError
            If `key` is not a valid name or `generator` not such a class, or if it has a parameter `key` or `id`, which
            `t_clbk` has itself.
        """
        key = check_id("key", key)
        if not (isinstance(generator, type) and issubclass(generator, CallbackSet)):
            raise TypeError(f"`generator` is {shown(generator)}; give a subclass of CallbackSet")
        if taken := [name for name in parameters_of(generator) if name in ("key", "id")]:
            raise TypeError(
                f"{generator.__name__} has the parameter {taken[0]!r}, which t_clbk() has already; give it another name"
            )
        self._generators[key] = generator

    @short_traceback
    def get(self, key: str, *, id: str | None = None, weight: float | None = None, **params: Any) -> TorchCallback:
        """Make a callback by its key.

        Parameters
        ----------
        key : str
            With a number at its end, such as ``"freezer_1"``, it is the name in the net as well.
        id : str, optional
            The name of the callback in a net; `key` by default.
        weight : float, optional
            Where it runs among the others, see `CallbackSet`.
        **params
            Parameters of the callback. A required one can also be set later, through the net.

        Returns
        -------
        TorchCallback

        Raises
        ------
        KeyError
            If the key is unknown; the message names the nearest.
        TypeError, ValueError
            If a parameter is unknown or has the wrong type or value.
        """
        name = key if id is None else id
        plain = self._without_number(key)
        generator = self._generators.get(plain) if isinstance(plain, str) else None
        if generator is None:
            near = nearest([key] if isinstance(key, str) else [], self._generators)
            raise KeyError(f"`key` is {shown(key)}, which no callback has; {near}")
        name = check_id("id", name)
        known = parameters_of(generator)
        unknown = [name for name in params if name not in known]
        if unknown:
            gone = [reason for name, reason in generator.gone_params.items() if name in unknown]
            hint = gone[0] if gone else nearest(unknown, [*known, "id", "weight"])
            raise TypeError(f"callback {key!r} has no parameter {', '.join(map(repr, unknown))}; {hint}")
        callback = generator.with_params(known | params)
        callback.check_params()
        if weight is not None:
            callback.weight = weight
        return TorchCallback(name, callback)

    def _without_number(self, key: Any) -> Any:
        """Return a key without the number that tells two callbacks of one kind apart."""
        return key if not isinstance(key, str) or key in self else re.sub(r"_\d+$", "", key)

    def keys(self) -> list[str]:
        """Return the keys in alphabetical order.

        Returns
        -------
        list of str
        """
        return sorted(self._generators)

    def key_of(self, generator: type[CallbackSet]) -> str:
        """Return the key of a class, or its name if it has no key.

        Parameters
        ----------
        generator : type

        Returns
        -------
        str
        """
        return next((key for key, known in self._generators.items() if known is generator), generator.__name__)

    def to_frame(self) -> pd.DataFrame:
        """Return a table of the callbacks.

        Returns
        -------
        pandas.DataFrame
            One row per key, with its `label`, `weight`, `params`, and which of them are `required`.
        """
        rows = []
        for key in self.keys():
            generator = self._generators[key]
            params = parameters_of(generator)
            required = [name for name, default in params.items() if default is REQUIRED]
            rows.append((key, generator.label or generator.__name__, generator.default_weight, list(params), required))
        return pd.DataFrame(rows, columns=["key", "label", "weight", "params", "required"])

    def __getitem__(self, key: str) -> TorchCallback:
        __tracebackhide__ = True
        return self.get(key)

    def _ipython_key_completions_(self) -> list[str]:
        return self.keys()

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._generators)

    def _repr_html_(self) -> str:
        rows = []
        for key in self.keys():
            params = parameters_of(self._generators[key])
            written = [name if value is REQUIRED else f"{name}={code(value)}" for name, value in params.items()]
            rows.append([key, summary_of(self._generators[key]), ", ".join(written)])
        return html_table(["key", "what it does", "parameters"], rows, left={0, 1, 2})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {', '.join(self.keys())}>"


_ONE_CYCLE: dict[str, Any] = {"base": CallbackSetLRSchedulerOneCycle, "step_on_epoch": False}
_ON_PLATEAU: dict[str, Any] = {"base": CallbackSetLRSchedulerReduceOnPlateau, "mode": None, "monitor": "valid_loss"}

mlr3torch_callbacks: Final = CallbackDictionary()
mlr3torch_callbacks.add("checkpoint", CallbackSetCheckpoint)
mlr3torch_callbacks.add("early_stopping", CallbackSetEarlyStopping)
mlr3torch_callbacks.add("freeze_audit", CallbackSetFreezeAudit)
mlr3torch_callbacks.add("freezer", Freezer)
mlr3torch_callbacks.add("frozen_cache", CallbackSetFrozenCache)
mlr3torch_callbacks.add("history", CallbackSetHistory)
mlr3torch_callbacks.add("progress", CallbackSetProgress)
mlr3torch_callbacks.add("tb", CallbackSetTB)
mlr3torch_callbacks.add("unfreeze", CallbackSetUnfreeze)
for _key, _scheduler, _label, _more in (
    ("lr_cosine_annealing", lr_scheduler.CosineAnnealingLR, "Cosine Annealing", {}),
    ("lr_lambda", lr_scheduler.LambdaLR, "Multiplication by Function", {}),
    ("lr_multiplicative", lr_scheduler.MultiplicativeLR, "Multiplication by Factor", {}),
    ("lr_one_cycle", lr_scheduler.OneCycleLR, "1cycle", _ONE_CYCLE),
    ("lr_reduce_on_plateau", lr_scheduler.ReduceLROnPlateau, "Reduce on Plateau", _ON_PLATEAU),
    ("lr_step", lr_scheduler.StepLR, "Step Decay", {}),
):
    mlr3torch_callbacks.add(_key, lr_scheduler_class(_scheduler, label=f"{_label} LR Scheduler", **_more))
