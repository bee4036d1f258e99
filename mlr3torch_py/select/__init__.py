"""Which parameters: selectors and their algebra.

A selector of your own is a subclass of `Select` that says which names it matches, decorated with `selector`. Its
annotations become its fields. The example selects what lies below some number of modules:

>>> from mlr3torch_py.select import Select, select_glob, selector
>>> @selector
... class Deeper(Select):
...     levels: int
...
...     def matches(self, names, module=None):
...         return {name for name in names if name.count(".") > self.levels}
>>> Deeper(1)(["embed.weight", "encoder.0.weight", "encoder.0.bias"])
['encoder.0.weight', 'encoder.0.bias']

The base provides the rest: the operators, `Select.expand`, equality, a hash, pickling, printing as code, and, for
fields that are plain data or selectors, `to_dict` and `from_dict`.

>>> deep_weights = Deeper(1) - select_glob("*.bias")
>>> deep_weights
Deeper(1) - select_glob('*.bias')
>>> deep_weights == Deeper(levels=1) - select_glob("*.bias")
True
>>> from mlr3torch_py import from_dict, to_dict
>>> to_dict(~Deeper(2))
{'fn': 'invert', 'select': {'fn': 'Deeper', 'levels': 2}}
>>> from_dict({"fn": "Deeper", "levels": 2})
Deeper(2)

`from_dict` knows the class once the module that defines it is imported. To check the fields, write ``__post_init__``.
`matches` gets the network as `module` from `Select.expand` and in training, and None where only names are known.
"""

from mlr3torch_py.select import functions
from mlr3torch_py.select.base import selector
from mlr3torch_py.select.functions import *  # noqa: F403

__all__ = [*functions.__all__, "selector"]
