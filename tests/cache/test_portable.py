"""Hashes of attributes are the same in other processes, and differ between what computes something else."""

import os
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mlr3torch_py.cache.identity.fingerprint import Fingerprint
from mlr3torch_py.cache.identity.portable import NotPortableError, portable_hash

SCRIPT = """
import torch
from functools import partial
from torch import nn
from mlr3torch_py.cache.identity.fingerprint import Fingerprint

class Setting:
    def __init__(self):
        self.names, self.sizes, self.kind = {"one", "two", "three"}, {"a": [1, 2.5]}, torch.float16

def local():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
    return Scale()

module = nn.Sequential(nn.Linear(2, 2, bias=False), local())
nn.init.ones_(module[0].weight)
module.setting, module.names, module.act = Setting(), {"alpha", "beta", "gamma"}, lambda x: x in {"u", "v", "w"}
module.more, module.first, module.fixed = partial(torch.clamp, min=0), [module[0]], frozenset({"p", "q", "r"})
print(Fingerprint(module).digest)
"""


def digest_of(module):
    return Fingerprint(module).digest


def digest_elsewhere(seed):
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_the_digest_of_a_module_is_the_same_in_each_process():
    assert len({digest_elsewhere(seed) for seed in range(3)}) == 1


def of(**attributes):
    module = nn.Linear(2, 2)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    vars(module).update(attributes)
    return module


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def apply(self, x):
        return x * self.scale


class Rates(np.ndarray):
    pass


def scaled(value, scale):
    value.scale = scale
    return value


DIFFERENT = {
    "functions": (torch.tanh, torch.relu),
    "functions of Python": (functional.relu, functional.relu6),
    "methods of torch": (torch.Tensor.exp, torch.Tensor.log),
    "lambdas": (lambda x: x + 1, lambda x: x - 1),
    "constants of lambdas": (lambda x: x + 1, lambda x: x + 2),
    "defaults": (lambda x, n=1: x + n, lambda x, n=2: x + n),
    "classes": (nn.ReLU, nn.GELU),
    "arguments": (partial(torch.clamp, min=0), partial(torch.clamp, min=1)),
    "objects": (Scaled(1), Scaled(2)),
    "methods of objects": (Scaled(1).apply, Scaled(2).apply),
    "types of numbers": (1, 1.0),
    "types of containers": ([1, 2], (1, 2)),
    "nestings": ([1, [2]], [[1], 2]),
    "keys": ({"a": 1}, {"b": 1}),
    "shapes": (torch.zeros(6), torch.zeros(2, 3)),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "tensors in lists": ([torch.zeros(6)], [torch.zeros(2, 3)]),
    "attributes of tensors": (scaled(torch.zeros(2), 1), scaled(torch.zeros(2), 2)),
    "attributes of arrays": (scaled(np.zeros(2).view(Rates), 1), scaled(np.zeros(2).view(Rates), 2)),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_modules_that_compute_something_else_have_another_digest(kind):
    one, other = DIFFERENT[kind]
    assert digest_of(of(setting=one)) != digest_of(of(setting=other))
    assert digest_of(of(setting=one)) == digest_of(of(setting=one))


def test_what_is_nested_otherwise_has_another_digest():
    flat, nested = nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential(nn.Sequential(nn.ReLU()), nn.Flatten())
    act = nn.ReLU()
    shared, two = nn.Sequential(act, act), nn.Sequential(nn.ReLU(), nn.ReLU())
    assert len(set(map(digest_of, (flat, nested, shared, two)))) == 4


def closure(number):
    return lambda x: x + number


@pytest.mark.parametrize(
    "setting", [closure(1), threading.Lock(), [nn.Linear(2, 2)], partial(closure(1)), Scaled(closure(1))]
)
def test_what_cannot_be_told_apart_is_refused_by_name(setting):
    with pytest.raises(NotPortableError, match="the 'setting' of its Linear"):
        digest_of(of(setting=setting))


@pytest.mark.parametrize("kind", ["attributes of tensors", "attributes of arrays"])
def test_attributes_of_arrays_that_code_refers_to_have_another_hash(kind):
    one, other = DIFFERENT[kind]
    assert portable_hash([one], {}) != portable_hash([other], {})


def test_a_function_that_a_weight_holds_is_read():
    linear = of()
    linear.weight.loaded = closure(1)
    with pytest.raises(NotPortableError, match=r"the 'weight.loaded' of its Linear"):
        digest_of(linear)


def test_cycles_are_refused():
    cycle = {}
    cycle["self"] = cycle
    with pytest.raises(NotPortableError):
        portable_hash(cycle, {})
