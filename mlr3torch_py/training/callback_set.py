"""CallbackSet, the base of all callbacks of this package: stages, and checked parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any, ClassVar, Final, Self

from sklearn.base import clone
from skorch.callbacks import Callback

from mlr3torch_py.arguments import check_names, check_number
from mlr3torch_py.names import listed, nearest
from mlr3torch_py.protocols import Net
from mlr3torch_py.training.callback_html import callback_html, code, given
from mlr3torch_py.training.reserved import check_members
from mlr3torch_py.training.run import Run, must_start_run
from mlr3torch_py.training.stages import HOOK_OF_STAGE, PASSED_TO_HOOK, StagedCallback
from mlr3torch_py.values import is_run_by_call, shown

__all__ = ["REQUIRED", "CallbackSet", "check_state"]

_WEIGHTS: Final = "a number, or math.inf to run last"


_ELSEWHERE: Final = {
    "on_fit_begin": "on_train_begin",
    "on_fit_end": "on_train_end",
    "on_train_epoch_begin": "on_epoch_begin",
    "on_train_epoch_end": "on_epoch_end",
    "on_train_batch_begin": "on_batch_begin",
    "on_train_batch_end": "on_batch_end",
    "on_step_begin": "on_batch_begin",
    "on_step_end": "on_batch_end",
    "on_before_optimizer_step": "on_grad_computed",
    "on_pre_optimizer_step": "on_grad_computed",
    "on_validation_begin": "on_before_valid",
    "on_validation_end": "on_valid_end",
    "on_validation_epoch_begin": "on_before_valid",
    "on_validation_epoch_end": "on_valid_end",
    "on_validation_batch_begin": "on_batch_valid_begin",
    "on_validation_batch_end": "on_batch_valid_end",
    "on_test_begin": "on_before_valid",
    "on_test_end": "on_valid_end",
    "on_test_batch_begin": "on_batch_valid_begin",
    "on_test_batch_end": "on_batch_valid_end",
}
"""What hooks of Lightning, Keras and transformers are called here, with "begin" for "start"."""


class _Required(Enum):
    """A single value that stays itself through pickle, deepcopy and clone."""

    REQUIRED = "a required parameter that is not set yet"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final[Any] = _Required.REQUIRED


def _starting_run(on_train_begin: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``on_train_begin`` to start a run where there is none."""

    @wraps(on_train_begin)
    def wrapper(self: CallbackSet, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if must_start_run(net, self):
            Run(net).start(self, X, y, **kwargs)
        else:
            on_train_begin(self, net, X=X, y=y, **kwargs)

    wrapper.starts_run = True  # type: ignore[attr-defined]
    return wrapper


def _noting_made(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor to note what it makes beside its parameters; setting that later is up to the user."""

    @wraps(constructor)
    def wrapper(self: CallbackSet, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        constructor(self, *args, **kwargs)
        cls: Any = type(self)
        if cls.__init__ is wrapper:
            vars(self)["by_hand_"] = {name: () for name in vars(self) if name not in _parameters_of(cls)}

    return wrapper


class CallbackSet(StagedCallback):
    """Base of the callbacks of this package: a skorch callback with the stages of mlr3torch.

    The stages that skorch has are its hooks, with its signatures: ``on_train_begin``, ``on_epoch_begin``,
    ``on_batch_begin``, ``on_grad_computed``, ``on_batch_end``, ``on_epoch_end``, ``on_train_end``. The others are
    ``on_before_valid(net)``, ``on_batch_valid_begin(net, batch)``, ``on_batch_valid_end(net, batch)``,
    ``on_valid_end(net)``, and ``on_exit(net)``, which runs last and always, also when training raises. A method whose
    name looks like one of these, such as R's ``on_begin`` or ``on_epch_end``, is refused when the class is defined.

    Attributes
    ----------
    ctx : ContextTorch or None
        The state of the training; None outside of training.
    weight : float
        In every stage the callbacks of a net run by weight, and those of equal weight in the order given. Callbacks of
        skorch have the weight 0, but its PrintLog runs after all finite weights. Only at ``on_train_begin``, skorch
        callbacks listed before the first CallbackSet have already run.
    keeps_outputs : bool
        Set it to True in a class that reads ``ctx.epoch_outputs``, all outputs of the network in an epoch.

    See Also
    --------
    callback_set : Make such a class from functions.

    Notes
    -----
    Ported from ``CallbackSet`` of R's mlr3torch. While a net trains, ``net.callbacks_`` is sorted by weight; afterwards
    it is in skorch's order again. A CallbackSet that is added to it during training takes part from then on, and one
    that is removed still exits. One callback may serve several nets, one after the other; nets that train in several
    threads at the same time need callbacks of their own. A ``fit`` from scratch starts with the callback as it was
    given: attributes that earlier trainings have set are undone, and what its constructor makes is made again, unless
    you have set it since. In ``partial_fit`` they stay.

    Examples
    --------
    >>> class CallbackSetSteps(CallbackSet):
    ...     def on_exit(self, net, **kwargs):
    ...         print(f"{self.ctx.global_step} steps")
    >>> net = iris_net(max_epochs=2, batch_size=60, train_split=None, callbacks=[CallbackSetSteps()]).fit(X, y)
    6 steps
    """

    label: ClassVar[str] = ""
    man: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("mlr3torch_py", "skorch", "torch")
    is_unmade_: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_stages(cls, CallbackSet)
        _check_signatures(cls)
        for name in ("weight", "default_weight"):
            if name in vars(cls) and not inspect.isdatadescriptor(vars(cls)[name]):
                check_number(f"`{name}` of {cls.__name__}", vars(cls)[name], _WEIGHTS, finite=False)
        cls.packages = check_names("packages", cls.packages)
        if "__init__" in vars(cls):
            type.__setattr__(cls, "__init__", _noting_made(vars(cls)["__init__"]))  # no base has one, to type checkers
        if not getattr(cls.on_train_begin, "starts_run", False):
            cls.on_train_begin = _starting_run(cls.on_train_begin)  # type: ignore[method-assign]
        check_members(cls)

    @classmethod
    def with_params(cls, params: Mapping[str, Any]) -> Self:
        """Make a callback; while a required parameter is REQUIRED, its constructor is not called."""
        unmade = object.__new__(cls)
        vars(unmade).update(params)
        if not unmade._unset():
            return cls(**params)
        vars(unmade)["is_unmade_"] = True
        return unmade

    @property
    def stages(self) -> list[str]:
        """The stages at which the callback acts, by mlr3torch's names."""
        return [stage for stage, hook in HOOK_OF_STAGE.items() if _defines(type(self), hook)]

    @_starting_run
    def on_train_begin(self, net: Net, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Stage ``begin``."""

    def state_dict(self) -> Any:
        """Return the state of the callback.

        Returns
        -------
        object
            None for a callback without a state. One with a state overrides this method and `load_state_dict`.
        """
        return None

    def load_state_dict(self, state: Any) -> None:
        """Restore a state.

        Parameters
        ----------
        state : object
            As `state_dict` returns it.

        Raises
        ------
        ValueError
            If the callback has no state, and `state` is not None.
        """
        if state is not None:
            raise ValueError(f"`state` is {state!r}, but {type(self).__name__} has no state; define load_state_dict()")

    def check_params(self) -> None:
        """Check the parameters that are set.

        Raises
        ------
        TypeError, ValueError
            If one has the wrong type or value.
        """

    def require_params(self, name: str = "<name of the callback>") -> None:
        """Check that all packages are there, and all parameters set and valid.

        Parameters
        ----------
        name : str
            The name of the callback in its net, for the message.

        Raises
        ------
        TypeError, ValueError
            If a parameter has the wrong type or value, was never set, or is not stored by the constructor.
        ImportError
            If a package is not installed.
        """
        self._call_constructor()
        self.check_params()
        if missing := [package for package in type(self).packages if not _is_installed(package)]:
            raise ImportError(
                f"{type(self).__name__} needs {listed(missing)}, not installed here; run `pip install {missing[0]}`"
            )
        if unset := self._unset():
            raise ValueError(
                f"`{unset[0]}` of {type(self).__name__} was never set; pass it to t_clbk(), "
                f"or to the net as callbacks__{name}__{unset[0]}"
            )

    def _unset(self) -> list[str]:
        """List the required parameters that are still to be set."""
        values = self.get_params(deep=False)
        return [name for name, value in values.items() if value is REQUIRED and not self.is_replaced(name)]

    def _call_constructor(self) -> None:
        """Call the constructor that `with_params` has not called, once all parameters are set."""
        if self.is_unmade_ and not self._unset():
            values = self.get_params(deep=False)
            made = type(self)(**values)
            for name in ["is_unmade_", *values]:
                vars(self).pop(name, None)
            vars(self).update(vars(made))

    def _get_param_names(self) -> list[str]:
        cls: Any = type(self)
        parameters = _parameters_of(cls)
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, parameter in parameters.items():
            is_bundle = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            is_stored = _is_stored(self, name)
            if is_bundle and (is_stored or not passes_on):
                raise TypeError(
                    f"`{parameter}` of {type(self).__name__} names no parameters, so a copy would lose them; "
                    "name each in the signature of the constructor"
                )
            if not is_bundle and not is_stored:
                raise TypeError(
                    f"`{name}` of {type(self).__name__} is not stored by its constructor, so a copy would lose it; "
                    f"write self.{name} = {name}"
                )
        names: list[str] = super()._get_param_names() if passes_on else list(parameters)
        return names

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the callback.

        Parameters
        ----------
        **params

        Returns
        -------
        CallbackSet

        Raises
        ------
        ValueError
            If one does not exist; the message names the nearest.
        """
        known = self.get_params(deep=False)
        unknown = [name for name in params if name.partition("__")[0] not in known]
        if unknown:
            raise ValueError(f"`{unknown[0]}` is no parameter of {type(self).__name__}; {nearest(unknown[:1], known)}")
        super().set_params(**params)
        self._call_constructor()
        if params and self.given_ is None:
            vars(self)["given_"] = {}  # so that a fit from scratch calls the constructor again
        return self

    def __radd__(self, callbacks: Any) -> Any:
        """Join a list, so that a net takes ``callbacks=callback`` for ``callbacks=[callback]``."""
        return [*callbacks, self] if isinstance(callbacks, list) else NotImplemented

    def __sklearn_clone__(self) -> CallbackSet:
        values = self.get_params(deep=False).items()
        cloned = self.with_params({name: clone(value, safe=False) for name, value in values})
        cloned.weight_ = self.weight_
        return cloned

    def __str__(self) -> str:
        return f"<{type(self).__name__}>\n* Stages: {', '.join(self.stages)}"

    def _repr_html_(self) -> str:
        return callback_html(repr(self), self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={code(value)}' for name, value in given(self).items())})"


def check_state(state: object, *keys: str) -> None:
    """Check that a state has what is read of it.

    Raises
    ------
    TypeError
        If it is no mapping with these keys.
    """
    if not isinstance(state, Mapping) or any(key not in state for key in keys):
        raise TypeError(f"`state` is {shown(state)}; give what state_dict() has returned")


@lru_cache(maxsize=1000)
def _parameters_of(cls: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def _is_stored(callback: CallbackSet, name: str) -> bool:
    """Check whether a callback has an attribute of its own, or a property, of this name."""
    return name in vars(callback) or inspect.isdatadescriptor(inspect.getattr_static(type(callback), name, None))


def _is_installed(package: str) -> bool:
    """Check whether there is a module, or a distribution, of this name."""
    if find_spec(package.partition(".")[0]) is not None:
        return True
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


def _check_stages(cls: type, base: type) -> None:
    """Check that methods of a class that look like stages are stages."""
    for name, member in vars(cls).items():
        if not name.startswith("on_") or hasattr(base, name) or not callable(member):
            continue
        hook = HOOK_OF_STAGE.get(name.removeprefix("on_"))
        alike = name.replace("start", "begin")
        hook = hook or _ELSEWHERE.get(alike)
        near = [hook] if hook else get_close_matches(alike, HOOK_OF_STAGE.values(), n=1)
        if near:
            raise TypeError(
                f"`{name}` of {cls.__name__} is no hook of skorch, so nobody calls it; call the method {near[0]}"
            )


def _check_signatures(cls: type) -> None:
    """Check that the stages of a class take what they are called with."""
    for hook, names in PASSED_TO_HOOK.items():
        function = inspect.getattr_static(cls, hook)
        if not is_run_by_call(function):
            raise TypeError(f"a call of `{hook}` of {cls.__name__} does not run its body; leave out `yield` or `async`")
        if inspect.isfunction(function):
            try:
                inspect.signature(function, follow_wrapped=False).bind("self", "net", **dict.fromkeys(names))
            except TypeError as error:
                passed = listed(["the net", *(f"{name}=" for name in names)])
                raise TypeError(
                    f"`{hook}` of {cls.__name__} is called with {passed}, but {error}; "
                    f"write def {hook}(self, net, **kwargs)"
                ) from error


def _defines(cls: type[CallbackSet], hook: str) -> bool:
    return all(getattr(cls, hook) is not getattr(base, hook, None) for base in (CallbackSet, Callback))
