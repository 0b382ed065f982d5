"""KFAC soft rank against explicit Kronecker products and closed forms; its gradient against differences."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import on_batch_is_reduce, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call, jacrev

from flattrain.core.concave import Concave
from flattrain.core.functional import see
from flattrain.core.kfac import factors
from flattrain.core.losses import cross_entropy, squared_error
from flattrain.core.probes import draw, stream
from flattrain.measures.soft_rank import soft_rank, spectral_sum
from flattrain.ranges import Refused

LAM = 0.05


def explicit(net, x, lam):
    """Σ over layers of the soft rank of the dense A ⊗ B, with factors from explicit Jacobians."""
    params = {k: p.detach() for k, p in net.named_parameters()}
    total = torch.zeros(())
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    inputs = {}
    hooks = [
        net.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: inputs.__setitem__(n, i[0]))
        for n in names
    ]
    logits = net(x).detach()
    for hook in hooks:
        hook.remove()
    for name in names:
        phi = torch.cat([inputs[name].detach(), torch.ones(len(x), 1)], 1)
        a = phi.T @ phi / len(x)
        b = 0
        for i, row in enumerate(x):

            def outputs(bias, row=row, name=name):
                return functional_call(net, params | {f"{name}.bias": bias}, (row[None],))[0]

            j = jacrev(outputs)(params[f"{name}.bias"])  # ∂f/∂z, since z enters as the bias does
            p = logits[i].softmax(-1)
            b = b + j.T @ (torch.diag(p) - torch.outer(p, p)) @ j / len(x)
        f = torch.kron(b, a)
        total = total + torch.trace(f @ torch.linalg.inv(f + lam * torch.eye(len(f))))
    return total


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_value_is_that_of_the_dense_kronecker_products(kind):
    net, (x, y) = oracles.small_net(kind), oracles.data()
    mine = value_of(soft_rank(lam=LAM), net, cross_entropy, x, y)
    torch.testing.assert_close(mine, explicit(net, x, LAM), rtol=1e-10, atol=0)


def test_gradient_is_that_of_the_dense_form():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    live = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(soft_rank(lam=LAM), net, cross_entropy, x, y, live)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))

    def dense(vector):
        torch.nn.utils.vector_to_parameters(vector, net.parameters())
        return explicit(net, x, LAM)

    at = oracles.flat({k: v.detach() for k, v in live.items()})
    wanted = oracles.finite_difference(dense, at, 1e-4)
    torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-8)


def test_one_example_makes_kfac_exact():
    net, (x, y) = oracles.small_net(sizes=(4, 3)), oracles.data(n=1)
    block = oracles.dense_fisher_blocks(net, x)["head"]
    dense = torch.trace(block @ torch.linalg.inv(block + LAM * torch.eye(len(block))))
    mine = value_of(soft_rank(lam=LAM), net, cross_entropy, x, y)
    torch.testing.assert_close(mine, dense, rtol=1e-10, atol=0)


def test_closed_forms():
    found = spectral_sum(Concave("soft", 0.1, 0.5), torch.tensor([[1.0, 0.1, 0.0]]), torch.ones(1, 1))
    assert float(found) == pytest.approx(1.4090909090909092, rel=1e-14)
    net = nn.Sequential()
    net.add_module("head", nn.Linear(1, 2, bias=False))
    with torch.no_grad():  # logits (z, 0): logistic regression at w = 1, x = ±1
        net.head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    # The Fisher of (w₁, w₂) is q (1, −1)(1, −1)ᵀ with q = σ(1)σ(−1): one eigenvalue 2q.
    q = 1 / (2 + math.e + 1 / math.e)
    mine = value_of(soft_rank(lam=0.2), net, cross_entropy, x, y)
    assert float(mine) == pytest.approx(2 * q / (2 * q + 0.2), rel=1e-12)
    assert float(mine) == pytest.approx(0.662859148, abs=1e-8)


def test_softmax_regression_at_zero():
    """Σ (C − 1)(a_i/C)/(a_i/C + λ) with a_i the eigenvalues of the inputs' second moment."""
    x, y = oracles.data(n=20, inputs=3, classes=4)
    net = nn.Sequential()
    net.add_module("head", nn.Linear(3, 4, bias=False))
    nn.init.zeros_(net.head.weight)
    a = torch.linalg.eigvalsh(x.T @ x / len(x)) / 4
    wanted = 3 * (a / (a + LAM)).sum()
    mine = value_of(soft_rank(lam=LAM), net, cross_entropy, x, y)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=0)
    mine.backward()
    assert torch.isfinite(net.head.weight.grad).all()  # repeated eigenvalues


def test_sketch_of_the_factors_is_unbiased_in_value_and_gradient():
    net, (x, y) = oracles.small_net(sizes=(3, 3)), oracles.data(n=6, inputs=3)
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    measure = soft_rank(lam=LAM, columns="sketch")

    def linear_functional(noise):
        seen = see(net, cross_entropy, x, y, layers=("head",))
        value = (factors(seen, noise and noise["sketch"])["head"][1].matrix() * weights).sum()
        return value.detach(), torch.autograd.grad(value, net.head.weight)[0]

    exact = linear_functional(None)
    seen = see(net, cross_entropy, x, y, layers=("head",))
    draws = [linear_functional(draw(measure.draws(seen), stream(k), x.dtype)) for k in range(3000)]
    for k in range(2):
        found = torch.stack([d[k] for d in draws])
        error = found.std(0) / len(draws) ** 0.5
        assert torch.all((found.mean(0) - exact[k]).abs() < 4.5 * error + 1e-12)
        assert torch.any(error > 0)


@pytest.mark.parametrize("columns", ["exact", "sketch"])
@pytest.mark.parametrize("n", [3, 20])
def test_the_smaller_gram_matrix_has_the_same_soft_rank(columns, n):
    net, (x, y) = oracles.small_net(sizes=(4, 6, 3)), oracles.data(n=n)
    on_batch_is_reduce(soft_rank(lam=LAM, columns=columns), net, x, y)


def test_laws_and_jensen():
    net, (x, y) = oracles.small_net(), oracles.data(n=20)
    one_batch_is_many(soft_rank(lam=LAM), net, x, y)
    vmap_is_loop(soft_rank(lam=LAM), net, x, y)
    vmap_is_loop(soft_rank(lam=LAM, columns="sketch"), net, x, y)
    whole = value_of(soft_rank(lam=LAM), net, cross_entropy, x, y)
    parts = [
        value_of(soft_rank(lam=LAM), net, cross_entropy, x[k : k + 5], y[k : k + 5]) for k in range(0, 20, 5)
    ]
    assert sum(parts) / 4 < whole


def test_refusals():
    x, y = oracles.data()
    mixed = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    mixed.register_parameter("shift", nn.Parameter(torch.zeros(3)))
    with pytest.raises(Refused, match=r"no structure is known for shift \(5% of the parameters\)"):
        value_of(soft_rank(), mixed, cross_entropy, x, y)
    value_of(soft_rank(layers=("0", "2")), mixed, cross_entropy, x, y)
    with pytest.raises(Refused, match="lam must be a number > 0"):
        soft_rank(lam=0)
    with pytest.raises(Refused, match="output Hessian"):
        from flattrain.core.losses import recognise

        value_of(soft_rank(), oracles.small_net(), recognise(lambda z, y: z.sum()), x, y)
    value_of(soft_rank(), oracles.small_net(sizes=(4, 1)), squared_error, x, torch.randn(len(x)))
