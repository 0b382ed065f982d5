"""‖∇L‖ and its square: closed form, gradient 2H∇L, and whole-set value from batches."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch.func import functional_call, grad
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.gradient_norm import gradient_norm, squared_gradient_norm


def square(net, x, y, params):
    g = grad(lambda p: F.cross_entropy(functional_call(net, p, (x,)), y))(params)
    return oracles.flat(g).square().sum()


def test_value_and_gradient_are_those_of_the_definition():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    gradient_is_that_of(lambda p: square(net, x, y, p), squared_gradient_norm(), net, x, y)
    gradient_is_that_of(lambda p: square(net, x, y, p).sqrt(), gradient_norm(), net, x, y)


def test_with_a_decay_it_is_of_what_was_minimised():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)

    def norm(p):
        g = grad(lambda q: F.cross_entropy(functional_call(net, q, (x,)), y))(p)
        return torch.stack([(g[k] + 0.3 * p[k]).square().sum() for k in p]).sum().sqrt()

    gradient_is_that_of(norm, gradient_norm(lam=0.3), net, x, y)
    one_batch_is_many(gradient_norm(lam=0.3), net, x, y)


def test_gradient_is_twice_the_hessian_times_the_gradient():
    net, (x, y) = oracles.small_net(), oracles.data()
    live = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(squared_gradient_norm(), net, cross_entropy, x, y, live)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    torch.testing.assert_close(mine, 2 * h @ grad(value)(at), rtol=1e-10, atol=1e-13)


def test_at_a_stationary_point_both_value_and_gradient_vanish():
    net, (x, _) = oracles.small_net(sizes=(4, 2)), oracles.data()
    with torch.no_grad():
        y = net(x).clone()
    for measure in (gradient_norm(), squared_gradient_norm()):
        value = value_of(measure, net, squared_error, x, y)
        assert float(value.detach()) == 0
        grads = torch.autograd.grad(value, list(net.parameters()))
        assert all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("measure", [gradient_norm(), squared_gradient_norm()], ids=lambda m: m.name)
def test_laws(measure):
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    one_batch_is_many(measure, net, x, y)
    vmap_is_loop(measure, net, x, y)
