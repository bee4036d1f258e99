"""The select functions, which make selectors of parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mlr3torch_py.select.algebra import Invert
from mlr3torch_py.select.base import Select
from mlr3torch_py.select.nodes import All, First, Glob, Grep, Last, Name, Nothing, Prefix, Trainable, Type

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
    "select_trainable",
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
    """Select parameters by name.

    Parameters
    ----------
    param_names : str or sequence of str
        One or more names, as ``module.named_parameters()`` gives them for the bare network.
    assert_present : bool
        Whether a name missing from the network is an error. If False, it is ignored.

    Returns
    -------
    Select

    Raises
    ------
    TypeError
        If `param_names` is neither a string nor a sequence of strings, or `assert_present` is not a bool.

    See Also
    --------
    select_prefix : Select all parameters of a part of the network.

    Notes
    -----
    As in mlr3torch, the result has the order of the network, not that of `param_names`.

    Examples
    --------
    >>> select_name(["3.bias", "0.weight"])(["0.weight", "0.bias", "3.bias"])
    ['0.weight', '3.bias']
    >>> select_name("0.wieght")(["0.weight", "0.bias"])
    Traceback (most recent call last):
        ...
    ValueError: `param_names` names '0.wieght', which the network lacks; did you mean '0.weight'?
    """
    return Name(param_names, assert_present)


def select_grep(pattern: str, ignore_case: bool = False, perl: bool = False, fixed: bool = False) -> Select:
    r"""Select parameters by a regular expression.

    Parameters
    ----------
    pattern : str
        A regular expression to search for anywhere in the name. It may hold POSIX classes such as ``[[:digit:]]``.
    ignore_case : bool
        Whether to ignore case.
    perl : bool
        Without effect, accepted because R has it; lookarounds and the like always work.
    fixed : bool
        Whether `pattern` is a plain string. Matching is then case-sensitive, and `ignore_case` is ignored.

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
        If both `fixed` and `ignore_case` are True; as in R, `ignore_case` is then ignored.

    Examples
    --------
    >>> select_grep(r"^0\.")(["0.weight", "0.bias", "10.weight"])
    ['0.weight', '0.bias']
    >>> select_grep("(")
    Traceback (most recent call last):
        ...
    ValueError: `pattern` is '(', which does not compile: missing ) at position 1; for plain text pass fixed=True
    """
    return Grep(pattern, ignore_case, perl, fixed)


def select_glob(pattern: str) -> Select:
    """Select parameters by a shell pattern for the whole name.

    Parameters
    ----------
    pattern : str
        ``*`` matches any text, dots included, ``?`` one character, ``[0-9]`` one of a set. It is case-sensitive.

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
    return Glob(pattern)


def select_prefix(*prefixes: str) -> Select:
    """Select all parameters at or below given paths.

    Parameters
    ----------
    *prefixes : str
        Paths of modules or parameters, in whole components: ``"layer1"`` does not match ``layer10.weight``. Braces hold
        alternatives and ranges: ``"layer.{0..2}"`` is ``"layer.0", "layer.1", "layer.2"``.

    Returns
    -------
    Select

    Raises
    ------
    TypeError, ValueError
        If there is no prefix, or one is empty or not a string.

    Examples
    --------
    >>> select_prefix("layer1")(["layer1.weight", "layer1.0.bias", "layer10.weight"])
    ['layer1.weight', 'layer1.0.bias']
    >>> select_prefix("layer.0", "layer.1", "layer.2", "layer.3", "layer.4", "head")
    select_prefix('layer.{0..4}', 'head')
    """
    return Prefix(prefixes)


def select_trainable() -> Select:
    """Select what required a gradient before any callback acted.

    It leaves out what the network itself keeps fixed, such as position embeddings and the base of a LoRA model, and
    what was frozen by hand. The network remembers that, so the answer is the same at a second ``fit``.

    Returns
    -------
    Select
        It needs a network, not only names; use `Select.expand`.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> select_trainable().expand(network)
    ['1.weight', '1.bias']
    """
    return Trainable()


def select_type(*module_types: type[nn.Module]) -> Select:
    """Select all parameters inside modules of given types.

    Parameters
    ----------
    *module_types : type
        Subclasses of `torch.nn.Module`. Parameters of nested submodules are included.

    Returns
    -------
    Select
        It needs a network, not only names; use `Select.expand`.

    Raises
    ------
    TypeError
        If there is no type, or one is not a subclass of `torch.nn.Module`.

    Examples
    --------
    >>> from torch import nn
    >>> select_type(nn.LayerNorm).expand(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    ['1.weight', '1.bias']
    """
    return Type(module_types)


def select_first(n: int) -> Select:
    """Select the first blocks of a network.

    Blocks are those of `network_blocks`, from the input to the head.

    Parameters
    ----------
    n : int
        The number of blocks, at least 1. If the network has fewer, all of them are selected.

    Returns
    -------
    Select
        It needs a network, not only names; use `Select.expand`.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number, or below 1.

    See Also
    --------
    select_last

    Examples
    --------
    >>> from torch import nn
    >>> select_first(1).expand(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    ['0.weight', '0.bias']
    """
    return First(n)


def select_last(n: int) -> Select:
    """Select the last blocks of a network.

    Blocks are those of `network_blocks`, from the input to the head.

    Parameters
    ----------
    n : int
        The number of blocks, at least 1. If the network has fewer, all of them are selected.

    Returns
    -------
    Select
        It needs a network, not only names; use `Select.expand`.

    Raises
    ------
    TypeError, ValueError
        If `n` is not a whole number, or below 1.

    See Also
    --------
    select_first

    Examples
    --------
    >>> from torch import nn
    >>> select_last(1).expand(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    ['2.weight', '2.bias']
    """
    return Last(n)


def select_invert(select: Select) -> Select:
    """Select all parameters except those of another selector.

    The same as ``~select``.

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
    return Invert(select)
