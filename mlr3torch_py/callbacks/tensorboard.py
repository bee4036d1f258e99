"""CallbackSetTB: write scores, rates and what was unfrozen as event files of TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from skorch.callbacks import Checkpoint, TrainEndCheckpoint

from mlr3torch_py.arguments import check_flag
from mlr3torch_py.names import listed
from mlr3torch_py.network.parameters import n_trainable
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_set import CallbackSet
from mlr3torch_py.training.clock import moment_of, row_of
from mlr3torch_py.training.context import scores_of
from mlr3torch_py.training.output_folder import check_folder, folder_of
from mlr3torch_py.training.processes import is_main_process, on_main_process
from mlr3torch_py.training.scoring import parts_of_scores
from mlr3torch_py.training.trained import EVENT, RATE, governed_modules, key_of
from mlr3torch_py.values import is_number

__all__ = ["CallbackSetTB"]

_SUFFIX = ".mlr3torch_py"
_OPEN = f".open{_SUFFIX}"
_BATCHES = "batches"


class CallbackSetTB(CallbackSet):
    """Write scores, rates and what was unfrozen as event files of TensorBoard.

    Show them with ``tensorboard --logdir <path>``.

    Parameters
    ----------
    path : str, os.PathLike or callable
        The folder, or a function without arguments that returns one; it is called when a new run begins. Give a
        function if a net is cloned and trained many times, as in a grid search.
    log_train_loss : bool
        Whether to write the loss and the learning rates of each training batch as well.
    r_tags : bool
        Whether to write scores and losses under the tags of R's mlr3torch, too.

    Attributes
    ----------
    path_ : pathlib.Path or None
        The folder of the latest run; None before the first.

    Raises
    ------
    TypeError
        When training begins, if an argument is invalid.
    FileExistsError
        When training begins, if the folder holds another run or other files.
    ValueError
        When training begins, if another callback of the net writes into the folder.
    ImportError
        When training begins, if tensorboard is not installed.

    See Also
    --------
    t_clbk : Make this callback by its key, ``t_clbk("tb")``.

    Notes
    -----
    Ported from ``CallbackSetTB`` of R's mlr3torch. TensorBoard shows what has one beginning together: the tags by epoch
    are ``<measure>/train`` and ``<measure>/valid``, as ``loss/train``, and ``lr/<i>``, the learning rate of each param
    group in the last batch of the epoch, with ``lr/0_x0.1`` for the part of a group that has the factor 0.1, and
    ``lr/<optimizer>_<i>`` for further optimizers. `n_trainable` is the number of trainable weights of ``module_``, or
    of all modules of a net without one, and the text ``events`` names what was unfrozen (+) and frozen (-). For a
    further module that freezing callbacks govern they are ``n_trainable/<module>`` and ``events/<module>``.

    The subfolder ``batches`` has ``loss/batch`` and ``lr/batch_<i>``, by training batch over the whole life of the net.
    The tags of R are ``train.<measure>``, ``valid.<measure>`` and, by batch, ``last_loss``.

    ``partial_fit`` and a resumed run write to the same folder; TensorBoard then drops the later steps that were written
    before.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mlr3torch_py import t_clbk
    >>> with TemporaryDirectory() as folder:
    ...     net = iris_net(max_epochs=2, callbacks=[t_clbk("tb", path=folder)]).fit(X, y)
    ...     len(list(Path(folder).glob("events.out.tfevents.*")))
    1
    """

    label = "TensorBoard"
    packages: ClassVar[tuple[str, ...]] = (*CallbackSet.packages, "tensorboard")
    folder_: Path | None = None
    by_epoch_: Any = None
    by_batch_: Any = None
    rates_: Sequence[tuple[str, Any]] = ()
    n_written_: int = 0

    def __init__(
        self, path: str | os.PathLike[str] | Callable[[], Any], log_train_loss: bool = False, *, r_tags: bool = True
    ) -> None:
        self.path = path
        self.log_train_loss = log_train_loss
        self.r_tags = r_tags

    @property
    def path_(self) -> Path | None:
        return self.folder_

    def check_params(self) -> None:
        check_folder(self.path)
        check_flag("log_train_loss", self.log_train_loss)
        check_flag("r_tags", self.r_tags)

    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.folder_ = on_main_process(net, lambda: self._open(net))

    def on_epoch_begin(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.by_epoch_ is None and self.folder_ is not None and is_main_process(net):
            # Not in on_train_begin, since LoadInitState may load another history after it.
            self.n_written_ = len(net.history) - 1
            self.by_epoch_ = _writer(self.folder_, purge_step=len(net.history))
            if self.log_train_loss:
                self.by_batch_ = _writer(self.folder_ / _BATCHES, purge_step=moment_of(net.history).batch + 1)

    def on_batch_begin(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.by_epoch_ is not None:
            self.rates_ = list(_rates(net))  # before a scheduler sets those of the next batch

    def on_batch_end(self, net: Net, batch: Any = None, training: bool | None = None, **kwargs: Any) -> None:
        if training and self.by_batch_ is not None and self.ctx is not None:
            step = self.ctx.global_step
            for tag in ("loss/batch", *["last_loss"] * bool(self.r_tags)):
                self.by_batch_.add_scalar(tag, self.ctx.last_loss, step)
            for name, rate in self._rates_used(net).items():
                self.by_batch_.add_scalar(f"lr/batch_{name}", rate, step)

    def on_epoch_end(self, net: Net, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        if self.by_epoch_ is not None:
            self._write_row(net)

    def _write_row(self, net: Net) -> None:
        self.n_written_ = len(net.history)
        row, epoch, parts = row_of(net.history, -1), len(net.history), parts_of_scores(net)
        for part in ("train", "valid"):
            for name, value in scores_of(row, part, parts).items():
                if is_number(value):
                    for tag in (f"{name}/{part}", *[f"{part}.{name}"] * bool(self.r_tags)):
                        self.by_epoch_.add_scalar(tag, float(value), epoch)
        self.by_epoch_.add_scalar("n_trainable", _n_trainable(net), epoch)
        for name, rate in self._rates_used(net).items():
            self.by_epoch_.add_scalar(f"lr/{name}", rate, epoch)
        for module in governed_modules(row):
            self._write_events(row, module, epoch)
        for writer in self._writers():
            writer.flush()

    def _write_events(self, row: Mapping[str, Any], module: str, epoch: int) -> None:
        group = "" if module == "module" else f"/{module}"
        if group:
            self.by_epoch_.add_scalar(f"n_trainable{group}", row[key_of("n_trainable", module)], epoch)
        if text := row.get(key_of(EVENT, module)):
            self.by_epoch_.add_text(f"events{group}", f"`{text}`", epoch)

    def on_exit(self, net: Net, **kwargs: Any) -> None:
        if self.by_epoch_ is not None and self.n_written_ < len(net.history):
            self._write_row(net)  # of an epoch that was interrupted
        for writer in self._writers():
            writer.close()
            _number(Path(writer.log_dir))
        self.by_epoch_ = self.by_batch_ = None
        self.rates_ = ()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"by_epoch_": None, "by_batch_": None, "rates_": ()}

    def _rates_used(self, net: Net) -> dict[str, float]:
        """Return the rates of the last training batch: of all param groups, and of their parts with factors."""
        entries = (entry for entry in reversed(row_of(net.history, -1).get("batches", ())) if "train_loss" in entry)
        parts = {key.removeprefix("lr_"): rate for key, rate in next(entries, {}).items() if RATE.fullmatch(key)}
        return {name: float(rate) for name, rate in (dict(self.rates_) | parts).items()}

    def _writers(self) -> list[Any]:
        return [writer for writer in (self.by_epoch_, self.by_batch_) if writer is not None]

    def _open(self, net: Net) -> Path:
        _import_writer()
        owner = self.owner_
        is_ours = owner is not None and (owner.fits(net) or owner.is_behind(net))
        folder = folder_of(net, self.path, self.folder_ if is_ours else None)
        self._check_alone(net, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"`path`: the folder {folder} cannot be made: {error}; give another one") from error
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        foreign = [name for name in names if name != _BATCHES and not name.endswith(_SUFFIX)]
        if foreign:
            raise FileExistsError(f"`path`: {folder} holds {listed(foreign, most=3)}; give an empty folder")
        is_new_run = not len(net.history) and not (self.ctx is not None and self.ctx.is_resumed)
        if names and is_new_run:
            raise FileExistsError(
                f"`path`: {folder} holds another run; give an empty folder, or a function that returns a new one"
            )
        return folder

    def _check_alone(self, net: Net, folder: Path) -> None:
        """Check that no other callback writes into a folder, in which no later run could continue then."""
        for name, other in net.callbacks_:
            place = None if other is self else _folder_of(other)
            if place is None:
                continue
            inner, outer = Path(place).resolve(), folder.resolve()
            if inner.is_relative_to(outer) or (isinstance(other, CallbackSetTB) and outer.is_relative_to(inner)):
                raise ValueError(
                    f"`path`: {name!r} would write into {place}, beside or around what goes into {folder}; give each "
                    "callback a folder of its own"
                )


def _folder_of(callback: object) -> Any:
    """Return the folder that a callback of this package, or a checkpoint of skorch, writes into; None for others."""
    if isinstance(callback, Checkpoint | TrainEndCheckpoint):
        return callback.dirname
    return callback.path_ if isinstance(callback, CallbackSet) and hasattr(callback, "path_") else None


def _n_trainable(net: Net) -> int:
    """Count the trainable weights of ``module_``, or of all modules where they have other names."""
    names = ["module"] if hasattr(net, "module_") else net._modules
    return sum(n_trainable(getattr(net, f"{name}_")) for name in names)


def _rates(net: Net) -> Iterator[tuple[str, Any]]:
    """Yield the name and the learning rate of each param group of all optimizers."""
    for name in net._optimizers:
        optimizer = getattr(net, f"{name}_", None)
        for i, group in enumerate(getattr(optimizer, "param_groups", ())):
            rate = group.get("lr")
            if isinstance(rate, torch.Tensor):
                rate = rate.detach().clone()  # a scheduler sets it in place
            if rate is not None:
                yield f"{i}" if name == "optimizer" else f"{name}_{i}", rate


def _writer(folder: Path, purge_step: int) -> Any:
    _number(folder)
    return _import_writer()(folder, purge_step=purge_step, filename_suffix=_OPEN)


def _number(folder: Path) -> None:
    """Rename the closed files to sort by age; torch's names have seconds only."""
    n_numbered = sum(not path.name.endswith(_OPEN) for path in folder.glob(f"*{_SUFFIX}"))
    for i, path in enumerate(sorted(folder.glob(f"*{_OPEN}")), start=n_numbered):
        stem = ".".join(path.name.split(".")[:4])  # events.out.tfevents.<seconds>
        path.rename(folder / f"{stem}.{i:06d}{_SUFFIX}")


def _import_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "CallbackSetTB needs tensorboard; install it with `pip install 'mlr3torch_py[tensorboard]'`"
        ) from error
    return SummaryWriter
