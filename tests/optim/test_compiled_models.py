"""Compiled models: the running statistics of their normalisations move once a step, as in eager ones."""

from __future__ import annotations

import copy

import pytest
import torch
from stepping import close, closure_for, same, weights
from torch import nn
from torch.nn import functional as F

from flattrain.optim import SAM


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))))


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Neither before a test nor after it."""
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def in_function(net):
    return torch.compile(lambda x: net(x), backend="aot_eager")


def in_place(net):
    net.compile(backend="aot_eager")
    return net


WAYS = {
    "module": lambda net: torch.compile(net, backend="aot_eager"),
    "in place": in_place,
    "function": in_function,
}


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
@pytest.mark.parametrize("way", ["module", "module watched", "in place watched", "function watched"])
def test_statistics_move_once(way):
    torch.manual_seed(0)
    net, x, y = Normalised(), torch.randn(8, 4), torch.randint(3, (8,))
    plain = copy.deepcopy(net)
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    reference = SAM(plain.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    compiled = WAYS[way.removesuffix(" watched")](net)
    if way.endswith("watched"):
        optimizer.watch(net)
    for _ in range(3):
        optimizer.step(closure_for(compiled, x, y))
        reference.step(closure_for(plain, x, y))
    assert int(net.norm.num_batches_tracked) == 3
    close(list(net.state_dict().values()), list(plain.state_dict().values()), 1e-12)


@pytest.mark.parametrize("way", ["in place", "function"])
def test_a_model_inside_of_compiled_code_is_to_be_named(way):
    net = Normalised()
    compiled, criterion = WAYS[way](net), nn.CrossEntropyLoss()
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    with pytest.warns(UserWarning, match=r"name it with optimizer\.watch\(model\)"):
        optimizer.step(lambda: criterion(compiled(x), y).backward())


def test_naming_a_compiled_model_spares_the_warning_about_hooks():  # pytest makes an error of it
    net = Normalised()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    optimizer.watch(net)
    compiled = torch.compile(net, backend="eager")
    before = weights(net)
    optimizer.step(closure_for(compiled, torch.randn(8, 4), torch.randint(3, (8,))))
    assert not same(weights(net), before)
    other_net, other = copy.deepcopy((net, optimizer))
    other.step(closure_for(other_net, torch.randn(8, 4), torch.randint(3, (8,))))
    assert int(other_net.norm.num_batches_tracked) == 2 and int(net.norm.num_batches_tracked) == 1
