"""CallbackSetFreezeAudit: proves while a net trains that what is frozen does not change."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from mlr3torch_py.arguments import check_whole
from mlr3torch_py.names import listed
from mlr3torch_py.network.bits import as_bytes
from mlr3torch_py.network.evaluation import pinned_modules
from mlr3torch_py.network.parameters import frozen_by_us
from mlr3torch_py.network.unwrap import named_modules, named_parameters
from mlr3torch_py.protocols import Net, last_event
from mlr3torch_py.schedule.plan import Held
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.processes import is_main_process

__all__ = ["CallbackSetFreezeAudit"]

# Events are numbered from 1, and there are none without freezing callbacks.
_NO_EVENT: Final = 0


class CallbackSetFreezeAudit(CallbackSet):
    """Prove that frozen parameters do not change by a bit, and see that trainable ones get gradients.

    Whenever something is frozen or unfrozen, and after the training batches of every epoch, all parameters that did not
    require a gradient since the last time are compared with what they were, and so are the buffers of layers that are
    held in evaluation.

    Parameters
    ----------
    on_change : "raise" or "warn"
        What to do when something frozen has changed.
    sample : int, optional
        How many values of each tensor are compared, evenly spaced; all if missing.

    Raises
    ------
    RuntimeError
        If something frozen has changed; the message names it, and the likely cause.
    TypeError, ValueError
        When training begins, if an argument is wrong.

    Warns
    -----
    UserWarning
        If something frozen has changed and `on_change` is "warn", and for trainable parameters that never got a
        gradient.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("freeze_audit")``.

    Notes
    -----
    It costs a copy of what is frozen, or of `sample` values of each tensor, and reading it once more in each epoch and
    each time that something is frozen or unfrozen; on other batches next to nothing. Sparse tensors are left out.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from skorch import NeuralNetClassifier
    >>> from mlr3torch_py import MLP, select_last, t_clbk, torch_callback
    >>> def write(self):
    ...     with torch.no_grad():
    ...         self.ctx.network[0].bias += 1
    >>> X, y = load_iris(return_X_y=True)
    >>> NeuralNetClassifier(
    ...     MLP, criterion=torch.nn.CrossEntropyLoss, module__d_in=4, module__d_out=3, module__neurons=2,
    ...     verbose=0, callbacks=[
    ...         t_clbk("unfreeze", starting_weights=select_last(1)),
    ...         t_clbk("freeze_audit"),
    ...         torch_callback("write", on_epoch_end=write),
    ...     ],
    ... ).fit(X.astype("float32"), y)
    Traceback (most recent call last):
        ...
    RuntimeError: 0.bias changed while frozen, in batches 1 to 2: something wrote into it, such as a callback, an
    average of weights, or the loading of a file
    """

    label = "Freeze Audit"
    default_weight = 500
    event_: int | None = _NO_EVENT
    frozen_: Held = frozenset()
    kept_: Mapping[str, torch.Tensor] = MappingProxyType({})
    without_gradient_: Mapping[str, nn.Parameter] = MappingProxyType({})
    first_batch_ = 0
    saw_gradients_ = False
    is_checked_ = True

    def __init__(self, on_change: str = "raise", sample: int | None = None) -> None:
        self.on_change = on_change
        self.sample = sample

    def check_params(self) -> None:
        if self.on_change not in ("raise", "warn"):
            raise ValueError(f"`on_change` is {self.on_change!r}; give 'raise' or 'warn'")
        if self.sample is not None:
            check_whole("sample", self.sample, "values")

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._forget()

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if not training:
            return
        if (event := last_event(net)) != self.event_:
            # The freezing callbacks have acted just now, and no step was taken since.
            self._check(net)
            self._check_gradients()
            self._keep(net)
            self.event_ = event
        self.is_checked_ = False

    def on_grad_computed(self, net: Net, named_parameters: Any = None, **kwargs: Any) -> None:
        self.saw_gradients_ = True
        if self.without_gradient_:
            self.without_gradient_ = {
                name: tensor for name, tensor in self.without_gradient_.items() if tensor.grad is None
            }

    def on_before_valid(self, net: Net, **kwargs: Any) -> None:
        # Not later, since callbacks may put better weights back when training ends.
        self._check(net)

    def on_train_end(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self._check(net)
        self._check_gradients()

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"event_": _NO_EVENT, "kept_": {}, "without_gradient_": {}}

    def _forget(self) -> None:
        self.event_, self.kept_, self.without_gradient_ = _NO_EVENT, {}, {}

    def _keep(self, net: Net) -> None:
        self.kept_ = {name: self._bits(tensor).clone() for name, tensor in _frozen_tensors(net).items()}
        self.without_gradient_ = {
            name: tensor for name, tensor in named_parameters(net.module_).items() if tensor.requires_grad
        }
        self.frozen_ = frozen_by_us(net.module_)
        self.first_batch_, self.saw_gradients_ = self._batch(), False

    def _check(self, net: Net) -> None:
        if self.is_checked_:
            return
        self.is_checked_, now = True, _tensors(net)
        changed = [
            name for name, kept in self.kept_.items() if name not in now or not torch.equal(self._bits(now[name]), kept)
        ]
        if not changed:
            return
        causes = "; ".join(
            f"{listed(names)} changed while frozen, {self._batches()}: {cause}"
            for cause, names in _by_cause(net, changed, now, self.frozen_).items()
        )
        if self.on_change == "raise":
            raise RuntimeError(causes)
        warnings.warn(causes, stacklevel=2)
        self._keep(net)

    def _check_gradients(self) -> None:
        if self.without_gradient_ and self.saw_gradients_:
            warnings.warn(
                f"{listed(self.without_gradient_)} never got a gradient {self._batches()}, though trainable: not used "
                "by the network, or cut off by detach(), no_grad() or activation checkpointing with use_reentrant=True",
                stacklevel=2,
            )

    def _batches(self) -> str:
        return f"in batches {self.first_batch_} to {self._batch()}"

    def _batch(self) -> int:
        return 0 if self.ctx is None else self.ctx.global_step

    def _bits(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the values, or a sample of them, as bytes, so that NaN equals itself and -0.0 not 0.0."""
        if self.sample is None:
            return as_bytes(tensor)
        values = tensor.detach().reshape(-1)
        step = max(1, -(-len(values) // self.sample))
        return as_bytes(values[torch.arange(0, len(values), step, device=values.device)])


def _tensors(net: Net) -> dict[str, torch.Tensor]:
    """Return the parameters, and the buffers of layers, by their names."""
    buffers = {
        f"{path}.{name}".strip("."): buffer
        for path, layer in named_modules(net.module_)
        for name, buffer in layer.named_buffers(recurse=False)
    }
    return {**named_parameters(net.module_), **buffers}


def _frozen_tensors(net: Net) -> dict[str, torch.Tensor]:
    # DistributedDataParallel writes the buffers of the main process into those of all others.
    held = pinned_modules(net.module_) if is_main_process() else {}
    return {
        name: tensor
        for name, tensor in _tensors(net).items()
        if (not tensor.requires_grad if isinstance(tensor, nn.Parameter) else name.rpartition(".")[0] in held)
        and not nn.parameter.is_lazy(tensor)
        and tensor.layout is torch.strided
    }


def _by_cause(
    net: Net, changed: list[str], tensors: Mapping[str, torch.Tensor], held_before: Held
) -> dict[str, list[str]]:
    frozen, causes = frozen_by_us(net.module_), dict[str, list[str]]()
    for name in changed:
        tensor = tensors.get(name)
        if tensor is None:
            cause = "the network no longer has a tensor of that name"
        elif not isinstance(tensor, nn.Parameter):
            cause = "the layer ran in training mode, or something wrote into it"
        elif tensor.requires_grad and (name in frozen or name not in held_before):
            cause = "something set its requires_grad to True"
        elif name in frozen and tensor.grad is not None:
            cause = "something gave it a gradient, by which the optimizer moves it"
        else:
            cause = "something wrote into it, such as a callback, an average of weights, or the loading of a file"
        causes.setdefault(cause, []).append(name)
    return causes
