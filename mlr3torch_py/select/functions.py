"""The select functions: they check their arguments and make selectors of parameters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral

import regex
from torch import nn

from mlr3torch_py.names import as_names
from mlr3torch_py.select.nodes import All, Blocks, Glob, Grep, Invert, Name, Nothing, Prefix, Select, Type, compiled

__all__ = [
    "Select",
    "select_all",
    "select_first",
    "select_glob",
    "select_grep",
    "select_invert",
    "select_last",
    "select_name",
    "select_none",
    "select_prefix",
    "select_type",
]


def select_all() -> Select:
    """Select every parameter.

    Returns
    -------
    Select

    Examples
    --------
    >>> select_all()(["0.weight", "0.bias"])
    ['0.weight', '0.bias']
    """
    return All()


def select_none() -> Select:
    """Select no parameter.

    Returns
    -------
    Select

    Examples
    --------
    >>> select_none()(["0.weight", "0.bias"])
    []
    """
    return Nothing()


def select_name(param_names: str | Sequence[str], assert_present: bool = True) -> Select:
    """Select parameters by their names.

    Parameters
    ----------
    param_names : str or sequence of str
        One or more names, as ``module.named_parameters()`` gives them for the bare network.
    assert_present : bool
        Whether a name that the network lacks is an error. Otherwise it is passed over.

    Returns
    -------
    Select

    Raises
    ------
    TypeError
        If `param_names` is neither a string nor a sequence of strings, or `assert_present` no bool.

    See Also
    --------
    select_prefix : For all parameters of a part of the network.

    Notes
    -----
    As in mlr3torch, the order of the network is kept, not the order of `param_names`.

    Examples
    --------
    >>> select_name(["3.bias", "0.weight"])(["0.weight", "0.bias", "3.bias"])
    ['0.weight', '3.bias']
    >>> select_name("0.wieght")(["0.weight", "0.bias"])
    Traceback (most recent call last):
        ...
    ValueError: `param_names` names '0.wieght', which the network lacks; did you mean '0.weight'?
    """
    return Name(as_names("param_names", param_names), _check_flag("assert_present", assert_present))


def select_grep(pattern: str, ignore_case: bool = False, perl: bool = False, fixed: bool = False) -> Select:
    r"""Select the parameters in whose name a regular expression is found.

    Parameters
    ----------
    pattern : str
        A regular expression, searched for anywhere in the name. POSIX classes such as ``[[:digit:]]`` are understood.
    ignore_case : bool
        Whether upper and lower case are the same.
    perl : bool
        Accepted because R has it; lookarounds and the like are understood either way.
    fixed : bool
        Whether `pattern` is a plain string. Case then counts, whatever `ignore_case` says.

    Returns
    -------
    Select

    Raises
    ------
    ValueError
        If `pattern` does not compile.
    TypeError
        If `pattern` is not a string.

    Warns
    -----
    UserWarning
        If both `fixed` and `ignore_case` are set; as in R, `ignore_case` is then dropped.

    Examples
    --------
    >>> select_grep(r"^0\.")(["0.weight", "0.bias", "10.weight"])
    ['0.weight', '0.bias']
    >>> select_grep("(")
    Traceback (most recent call last):
        ...
    ValueError: `pattern` is '(', which does not compile: missing ) at position 1; for plain text pass fixed=True
    """
    _check_text("pattern", pattern)
    for flag, value in (("ignore_case", ignore_case), ("perl", perl), ("fixed", fixed)):
        _check_flag(flag, value)
    if fixed and ignore_case:
        warnings.warn("`ignore_case=True` is ignored, because `fixed=True` compares letter by letter", stacklevel=2)
        ignore_case = False
    if not fixed:
        try:
            compiled(pattern, ignore_case)
        except regex.error as error:
            raise ValueError(
                f"`pattern` is {pattern!r}, which does not compile: {error}; for plain text pass fixed=True"
            ) from error
    return Grep(pattern, ignore_case, perl, fixed)


def select_glob(pattern: str) -> Select:
    """Select the parameters whose whole name a shell pattern matches.

    Parameters
    ----------
    pattern : str
        ``*`` stands for any text, dots included, ``?`` for one character, ``[0-9]`` for one of a set. Case counts.

    Returns
    -------
    Select

    Raises
    ------
    TypeError
        If `pattern` is not a string.

    Examples
    --------
    >>> select_glob("encoder.*.bias")(["encoder.0.fc.bias", "encoder.0.fc.weight", "head.bias"])
    ['encoder.0.fc.bias']
    """
    return Glob(_check_text("pattern", pattern))


def select_prefix(*prefixes: str) -> Select:
    """Select all parameters at or below one or more paths of the module tree.

    Parameters
    ----------
    *prefixes : str
        Paths of modules or parameters. Whole path components count: ``"layer1"`` does not match ``layer10.weight``.

    Returns
    -------
    Select

    Raises
    ------
    TypeError, ValueError
        If no prefix is given, or one is empty or not a string.

    Examples
    --------
    >>> select_prefix("layer1")(["layer1.weight", "layer1.0.bias", "layer10.weight"])
    ['layer1.weight', 'layer1.0.bias']
    """
    if not prefixes:
        raise TypeError("`prefixes` is empty; name at least one path, as in select_prefix('encoder')")
    paths = tuple(_check_text("prefixes", prefix).rstrip(".") for prefix in prefixes)
    if not all(paths):
        raise ValueError(f"`prefixes` is {prefixes!r}; a path is not empty, and select_all() selects everything")
    return Prefix(paths)


def select_type(*module_types: type[nn.Module]) -> Select:
    """Select all parameters inside modules of one or more types.

    Parameters
    ----------
    *module_types : type
        Subclasses of `torch.nn.Module`. What lies deeper inside such a module belongs to it.

    Returns
    -------
    Select
        It needs a network, not only names: use `Select.expand`.

    Raises
    ------
    TypeError
        If no type is given or one is not a subclass of `torch.nn.Module`.

    Examples
    --------
    >>> from torch import nn
    >>> select_type(nn.LayerNorm).expand(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    ['1.weight', '1.bias']
    """
    if not module_types:
        raise TypeError("`module_types` is empty; name at least one type, as in select_type(nn.Linear)")
    for module_type in module_types:
        if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
            raise TypeError(f"`module_types` holds {module_type!r}; it takes subclasses of torch.nn.Module")
    return Type(module_types)


def select_first(n: int) -> Select:
    """Select the first `n` blocks of a network: the direct children that hold parameters.

    Parameters
    ----------
    n : int
        How many blocks, from 1. If the network has fewer, all of them.

    Returns
    -------
    Select
        It needs a network, not only names: use `Select.expand`.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number from 1.

    See Also
    --------
    select_last

    Examples
    --------
    >>> from torch import nn
    >>> select_first(1).expand(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    ['0.weight', '0.bias']
    """
    return Blocks(_check_count(n), "first")


def select_last(n: int) -> Select:
    """Select the last `n` blocks of a network: the direct children that hold parameters.

    Parameters
    ----------
    n : int
        How many blocks, from 1. If the network has fewer, all of them.

    Returns
    -------
    Select
        It needs a network, not only names: use `Select.expand`.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number from 1.

    See Also
    --------
    select_first

    Examples
    --------
    >>> from torch import nn
    >>> select_last(1).expand(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    ['2.weight', '2.bias']
    """
    return Blocks(_check_count(n), "last")


def select_invert(select: Select) -> Select:
    """Select what another selector leaves out; the same as ``~select``.

    Parameters
    ----------
    select : Select

    Returns
    -------
    Select

    Raises
    ------
    TypeError
        If `select` is not a selector.

    Examples
    --------
    >>> select_invert(select_name("0.weight"))(["0.weight", "0.bias"])
    ['0.bias']
    """
    if not isinstance(select, Select):
        raise TypeError(f"`select` is {select!r}; it must be a selector, such as select_name('0.weight')")
    return Invert(select)


def _check_text(argument: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`{argument}` is {value!r}; it must be a string")
    return value


def _check_flag(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` is {value!r}; it must be True or False, and several names come as a list")
    return value


def _check_count(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"`n` is {n!r}; it must be a whole number of blocks")
    if n < 1:
        raise ValueError(f"`n` is {n}; blocks are counted from 1")
    return int(n)
