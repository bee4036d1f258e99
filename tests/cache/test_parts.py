"""Which parts of a network are cached."""

import pytest
import torch
from torch import nn

from mlr3torch_py.cache.parts import CachedParts, frozen_parts
from tests.cache.helpers import ROWS, cached, counts, frozen


def test_the_largest_frozen_modules_are_found():
    network = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
        nn.ReLU(),
        nn.Linear(2, 2),
    )
    network.append(network[1][0])
    assert list(frozen_parts(network, set())) == [""]
    assert list(frozen_parts(network, {"3.weight"})) == ["0", "1.0", "1.1"]
    assert list(frozen_parts(network, {"0.1.bias"})) == ["0.0", "1.0", "1.1", "3"]
    assert list(frozen_parts(network, {"3.weight"}, among={"0.0", "1.1", "3"})) == ["0.0", "1.1"]
    assert list(frozen_parts(network, {"3.weight"}, containers={"0"})) == ["0.0", "0.1", "1.0", "1.1"]


def test_a_module_that_is_never_called_is_replaced_by_its_children():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = frozen(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.encoder[1](self.encoder[0](x)))

    network = Network()
    parts = cached(network)
    network(ROWS)
    parts.replace_uncalled()
    network(ROWS), network(ROWS)
    assert counts(parts) == (24, 24)
    parts = cached(network, "encoder")
    network(ROWS)
    assert not parts.replace_uncalled()
    parts.close()
    assert parts.never_called == ["encoder"]


def test_modules_without_hits_are_dropped_until_an_event():
    network = nn.Sequential(frozen(nn.Linear(4, 4)), nn.Linear(4, 1))
    for names, bytes_left in (((), 0), (("0",), 1)):
        parts = cached(network, *names)
        for _ in range(2):
            parts.begin_epoch()
            network(torch.randn(12, 4))
            parts.end_epoch()
        assert (parts.budget.used > 0) == bytes_left
        parts.refresh(retry_rejected=False)
        assert ("_compiled_call_impl" in vars(network[0])) == bytes_left
        parts.refresh()
        assert "_compiled_call_impl" in vars(network[0])
        parts.close()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encodr"], "`modules` has 'encodr', which the network lacks; did you mean 'encoder'"),
        (["encoder.1"], "`modules` has 'encoder.1', which has no parameters and so is never frozen"),
        (["blocks"], "`modules` has 'blocks', a ModuleList, which is never called; name its elements"),
    ],
)
def test_names_must_be_modules_that_can_be_cached(names, message):
    network = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks": nn.ModuleList([nn.Linear(2, 2)])}
    )
    with pytest.raises(ValueError, match=message):
        CachedParts(network, names)
