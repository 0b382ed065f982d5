"""The largest eigenvalue as a penalty: value and gradient against the explicit Hessian in float64."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import gradient_is_that_of, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import flattrain
from flattrain.core.eager import LayerNorm
from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy, recognise
from flattrain.core.probes import draw, stream
from flattrain.measures.hessian_top_eigenvalue import hessian_top_eigenvalue
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.ranges import Refused
from flattrain.regularizers import Penalty, Regularized

LOSS = nn.CrossEntropyLoss()


def dense(net, loss, x, y, params):
    """∇²L over `params`, explicitly."""

    def value(vector):
        return loss(functional_call(net, oracles.rebuild(vector, params), (x,)), y)

    return hessian(value)(oracles.flat(params))


def estimate_of(measure, net, x, y, params=None):
    seen = see(net, recognise(LOSS), x, y, params=params or oracles.live(net))
    return measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(0, "law"), torch.float64)))


def test_value_and_gradient_are_those_of_the_explicit_eigenvalue():
    net, (x, y) = oracles.small_net(), oracles.data()

    def definition(p):
        return torch.linalg.eigvalsh(dense(net, F.cross_entropy, x, y, p))[-1]

    measure = hessian_top_eigenvalue(products=43)
    gradient_is_that_of(definition, measure, net, x, y)


@pytest.mark.parametrize("name", ["mlp", "convolution", "residual", "groups", "tied", "recurrent", "frozen"])
def test_gradient_is_that_of_the_quadratic_form_at_the_explicit_eigenvector(name):
    net, x = zoo.build(name)
    if name == "tied":
        net.table.padding_idx = None  # forward mode, in the explicit matrix, does not mask that row
    y = zoo.targets(net, x, LOSS)
    params = oracles.trainable(net)
    live = {k: p.clone().requires_grad_() for k, p in params.items()}
    value = estimate_of(hessian_top_eigenvalue(products=80), net, x, y, live).value
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    values, vectors = torch.linalg.eigh(dense(net, LOSS, x, y, params))
    torch.testing.assert_close(value.detach(), values[-1], rtol=1e-9, atol=0)
    v, size, at = vectors[:, -1], 2e-3, oracles.flat(params)
    assert values[-1] - values[-2] > 1e-2 * values[-1]  # simple, so that it has a gradient

    def along(t):
        """∇L at θ + t v, by reverse mode."""
        own = {k: p.clone().requires_grad_() for k, p in oracles.rebuild(at + t * v, params).items()}
        loss = LOSS(functional_call(net, own, (x,)), y)
        return oracles.flat(dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True)))

    # ∇(vᵀHv) = d²/dt² ∇L(θ + t v), by differences of fourth order.
    wanted = (16 * (along(size) + along(-size)) - along(2 * size) - along(-2 * size) - 30 * along(0)) / (
        12 * size**2
    )
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


def test_the_residual_says_what_is_missing():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    matrix = dense(net, F.cross_entropy, x, y, params)
    wanted = torch.linalg.eigvalsh(matrix)
    errors, residuals = [], []
    for products in (2, 4, 8, 16):
        found = estimate_of(hessian_top_eigenvalue(products=products), net, x, y)
        errors.append(float(wanted[-1] - found.value))
        residuals.append(float(found.standard_error))
        assert (wanted - found.value).abs().min() <= found.standard_error + 1e-12
    assert errors[0] > errors[1] > errors[2] >= -1e-12 and residuals[0] > 1e-3
    assert residuals[-1] < 1e-5 * wanted[-1] and abs(errors[-1]) < 1e-10 * wanted[-1]


def test_it_agrees_with_the_measure_of_a_data_set():
    net, (x, y) = oracles.small_net(), oracles.data()
    parts = [(x[:5], y[:5]), (x[5:], y[5:])]
    ours = flattrain.measured(net, LOSS, parts, hessian_top_eigenvalue(products=40))
    theirs = flattrain.measured(net, LOSS, parts, top_eigenvalue(tolerance=1e-9))
    assert float(ours.value) == pytest.approx(theirs.value, rel=1e-9)
    assert float(ours.standard_error) < 1e-7


def test_the_gradient_is_off_by_no_more_than_the_residual_over_the_gap():
    net, (x, y) = oracles.small_net(), oracles.data()
    gradients, residuals = [], []
    for products in (4, 6, 8, 43):
        live = oracles.live(net)
        found = estimate_of(hessian_top_eigenvalue(products=products), net, x, y, live)
        g = torch.autograd.grad(found.value, list(live.values()))
        gradients.append(torch.cat([v.flatten() for v in g]))
        residuals.append(float(found.standard_error))
    off = [float((g - gradients[-1]).norm()) for g in gradients[:-1]]
    assert off[0] > off[1] > off[2] > 0
    ratios = [o / r for o, r in zip(off, residuals, strict=False)]
    assert max(ratios) < 10 * min(ratios)


def test_laws_and_dropout():
    net, (x, y) = oracles.small_net(), oracles.data()
    vmap_is_loop(hessian_top_eigenvalue(products=8), net, x, y)
    noisy = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    found = estimate_of(hessian_top_eigenvalue(products=51), noisy, x, y)
    assert float(found.standard_error) < 1e-8 * float(found.value)  # one matrix, so one mask


def test_a_penalty_lowers_it():
    x, y = oracles.data()
    found = []
    for weight in (0.0, 0.5):
        net = oracles.small_net()
        objective = Regularized(net, LOSS, [Penalty(hessian_top_eigenvalue(products=10), weight)])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            objective(x, y).backward()
            optimizer.step()
        found.append(float(flattrain.measured(net, LOSS, [(x, y)], top_eigenvalue()).value))
    assert found[1] < 0.9 * found[0]


def test_without_curvature_it_is_zero():
    net, (x, y) = nn.Sequential(nn.Linear(4, 1)), oracles.data()
    objective = Regularized(net, lambda z, y: z.mean(), [Penalty(hessian_top_eigenvalue(), 1.0)])
    objective(x, y).backward()
    assert float(objective.logs["hessian_top_eigenvalue"]) == 0
    assert torch.isfinite(net[0].weight.grad).all()


def test_refusals():
    x, y = oracles.data()
    net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="hessian_top_eigenvalue differentiates 1 three times"):
        Regularized(net, LOSS, [Penalty(hessian_top_eigenvalue(), 1.0)])(x, y)
    net[1] = LayerNorm(5)
    Regularized(net, LOSS, [Penalty(hessian_top_eigenvalue(), 1.0)])(x, y).backward()
    with pytest.raises(Refused, match="products must be a whole number >= 1"):
        hessian_top_eigenvalue(products=0)
    assert value_of(hessian_top_eigenvalue(), net, cross_entropy, x, y) > 0
