"""Which parts of a network are frozen as a whole."""

from torch import nn

from mlr3torch_py.cache.frozen import frozen_parts


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
