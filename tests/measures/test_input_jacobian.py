"""Norms of ∂f/∂x against Jacobians taken one example at a time; their gradients against differences."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn

from flattrain.core.losses import cross_entropy
from flattrain.measures.input_jacobian import input_jacobian
from flattrain.ranges import Refused

NORMS = {
    "mean_spectral": lambda j: torch.linalg.svdvals(j)[:, 0].mean(),
    "max_spectral": lambda j: torch.linalg.svdvals(j)[:, 0].max(),
    "mean_squared_frobenius": lambda j: j.square().sum((1, 2)).mean(),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_value_and_gradient_are_those_of_the_definition(norm, kind):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3)), oracles.data(n=6, inputs=3)
    gradient_is_that_of(
        lambda p: NORMS[norm](oracles.input_jacobians(net, x, p)), input_jacobian(norm=norm), net, x, y
    )


def test_a_linear_net_has_the_norms_of_its_matrix():
    net, (x, y) = oracles.small_net(sizes=(4, 3)), oracles.data()
    w = net.head.weight.detach()
    top = torch.linalg.matrix_norm(w, 2)
    for norm, wanted in (
        ("mean_spectral", top),
        ("max_spectral", top),
        ("mean_squared_frobenius", (w * w).sum()),
    ):
        found = value_of(input_jacobian(norm=norm), net, cross_entropy, x, y).detach()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_inputs_and_outputs_of_any_shape():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(5, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    j = oracles.input_jacobians(net, x).flatten(2)
    found = value_of(input_jacobian(), net, cross_entropy, x, y).detach()
    torch.testing.assert_close(found, torch.linalg.svdvals(j)[:, 0].mean(), rtol=1e-10, atol=0)


def test_a_net_that_does_not_see_its_input_has_norm_and_gradient_zero():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    with torch.no_grad():
        net.hidden1.bias.fill_(-1e3)
    value = value_of(input_jacobian(), net, cross_entropy, x, y)
    grads = torch.autograd.grad(value, list(net.parameters()), materialize_grads=True)
    assert float(value.detach()) == 0 and all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("norm", NORMS)
def test_laws(norm):
    net, (x, y) = oracles.small_net(), oracles.data()
    one_batch_is_many(input_jacobian(norm=norm), net, x, y)
    vmap_is_loop(input_jacobian(norm=norm), net, x, y)


def test_refusals():
    x, y = oracles.data()
    with pytest.raises(Refused, match="must be one of 'mean_spectral'"):
        input_jacobian(norm="spectral")
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(Refused, match=r"which are torch.int64 here; give one tensor of real numbers"):
        value_of(input_jacobian(), words, cross_entropy, torch.randint(9, (12, 2)), y)
    coupled = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="1 ties the examples of a batch together"):
        value_of(input_jacobian(), coupled, cross_entropy, x, y)
    value_of(input_jacobian(), coupled.eval(), cross_entropy, x, y)
