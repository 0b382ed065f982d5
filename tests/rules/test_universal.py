"""The universal class against autograd through its objective, and what its means are on toys."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from laws import drawn, rule_is_identity, rule_over_seeds_is_a_loop
from torch.func import vmap
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.ranges import Refused
from flattrain.rules.noise import weight_noise
from flattrain.rules.universal import cube, det_sam, frob_sam, gaussian, sphere, trace_sam, universal
from flattrain.training.objective import build
from flattrain.types import Batch, Moment

RULES = {
    "trace": trace_sam(rho=0.1, samples=2),
    "trace on the sphere": trace_sam(rho=0.1, mu="sphere"),
    "det": det_sam(rho=0.3, samples=2, half=0.5),
    "frob": frob_sam(rho=0.1, lam=0.3, samples=3),
}


def setting():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    return build(net, cross_entropy, []).gradient(), params, Batch(x, y), value, at


def normals(batch, params, samples):
    return [torch.cat([batch.noise[f"{k}.{n}"].reshape(-1) for n in params]) for k in range(samples)]


def test_each_rule_is_the_gradient_of_its_objective():
    """By autograd through L + λρ²R with the directions v_k written out, for each φ, ψ and μ."""
    grad_fn, params, batch, value, at = setting()
    rho, lam, n = 0.4, 0.7, 3
    cases = [
        (trace_sam(rho=rho, lam=lam, samples=n), lambda z: z, lambda q: lam * q.mean()),
        (
            trace_sam(rho=rho, lam=lam, samples=n, mu="sphere"),
            lambda z: z / z.norm(),
            lambda q: lam * q.mean(),
        ),
        (
            det_sam(rho=rho, lam=lam, samples=n, half=0.5),
            lambda z: torch.special.ndtr(z) - 0.5,
            lambda q: lam / torch.exp(-q / 2).mean() ** 2,
        ),
        (
            frob_sam(rho=rho, lam=lam, samples=n),
            lambda z: z,
            lambda q: lam / 2 * q.var(),  # (λ/2ρ²) Var L, as L = L(θ) + ρ² q
        ),
        (
            universal(phi=torch.exp, psi=torch.sin, mu=cube(2.0), rho=rho, lam=lam, samples=n),
            lambda z: 2 * (2 * torch.special.ndtr(z) - 1),
            lambda q: lam * torch.exp(torch.sin(q).mean()),
        ),
    ]
    for rule, cloud, penalty in cases:
        there = drawn(rule, params, batch, 7)
        vs = [cloud(z) for z in normals(there, params, n)]

        def objective(theta, vs=vs, penalty=penalty):
            base = value(theta)
            q = torch.stack([(value(theta + rho * v) - base) / rho**2 for v in vs])
            return base + rho**2 * penalty(q)

        wanted, plain = torch.func.grad(objective)(at), torch.func.grad(value)(at)
        mine, logs = rule(grad_fn)(params, there)
        torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-10, atol=1e-13)
        assert (wanted - plain).norm() > 1e-2
        torch.testing.assert_close(logs["around/loss"], torch.stack([value(at + rho * v) for v in vs]).mean())
        torch.testing.assert_close(logs["loss"], value(at))


def test_identities():
    grad_fn, params, batch, _, _ = setting()
    for rule in (trace_sam(lam=0.0), det_sam(lam=0.0), frob_sam(lam=0.0)):
        rule_is_identity(rule, grad_fn, params, batch)
    for rule in RULES.values():
        rule_is_identity(rule, grad_fn, params, batch._replace(moment=Moment(3, 0.0)))
    noise = weight_noise(scale=0.2)
    there = drawn(trace_sam(rho=0.2), params, batch, 1)
    mine, _ = trace_sam(rho=0.2)(grad_fn)(params, there)
    theirs, _ = noise(grad_fn)(params, there)
    torch.testing.assert_close(oracles.flat(mine), oracles.flat(theirs), rtol=1e-11, atol=1e-14)
    half, _ = frob_sam(lam=0.4, rho=0.1)(grad_fn)(params, drawn(RULES["frob"], params, batch, 2))
    share = batch._replace(moment=Moment(0, 0.5))
    whole, _ = frob_sam(lam=0.8, rho=0.1)(grad_fn)(params, drawn(RULES["frob"], params, share, 2))
    torch.testing.assert_close(oracles.flat(half), oracles.flat(whole), rtol=1e-12, atol=0)
    with pytest.raises(Refused, match="samples >= 2, got 1"):
        frob_sam(samples=1)


@pytest.mark.parametrize("name", RULES)
def test_seeds_stack(name):
    grad_fn, params, batch, _, _ = setting()
    rule_over_seeds_is_a_loop(RULES[name], grad_fn, params, batch)


def test_the_clouds_have_their_moments():
    """4 standard errors of 1e5 draws: 4/√1e5 = 0.0127 times the standard deviation of a square."""
    z = {"a": torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)), "b": None}
    z["b"] = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1))
    on = vmap(sphere)(z)
    length = on["a"].square().sum(1) + on["b"].square().sum(1)
    torch.testing.assert_close(length, torch.ones(100_000), rtol=1e-12, atol=0)
    assert abs(float(on["b"].square().mean()) - 1 / 3) < 0.0127 * math.sqrt(4 / 45)
    inside = cube(0.5)(z)["a"]
    assert float(inside.abs().max()) <= 0.5
    assert abs(float(inside.square().mean()) - 1 / 12) < 0.0127 * math.sqrt(1 / 180)
    assert gaussian(z) is z


def quartic(params, batch):
    """A quartic in three variables that mixes them."""
    t = params["t"]
    value = lambda t: (t**4).sum() / 4 + t[0] ** 2 * t[1] - t[1] * t[2] + t[2] ** 3  # noqa: E731
    return {"t": torch.func.grad(value)(t)}, {"loss": value(t)}


def saddle(params, batch):
    signs = torch.tensor([1.0, -1.0])
    return {"t": 2 * signs * params["t"]}, {"loss": (signs * params["t"] ** 2).sum()}


def extra_over_draws(rule, grad_fn, at, draws=10_000):
    """Mean of what the rule adds to the gradient, and its standard error."""
    params, batch = {"t": at}, Batch(None, None)
    wanted = rule.draws(params, batch)
    generator = torch.Generator().manual_seed(0)
    noise = {n: torch.randn(draws, *w.shape, generator=generator) for n, w in wanted.items()}
    one = lambda noise: rule(grad_fn)(params, batch._replace(noise=noise))[0]["t"]  # noqa: E731
    extra = vmap(one)(noise) - grad_fn(params, batch)[0]["t"]
    return extra.mean(0), extra.std(0) / math.sqrt(draws)


@pytest.mark.parametrize(("rho", "samples"), [(0.3, 2), (0.3, 5), (0.01, 2)])
def test_the_mean_of_frob_sam_is_the_gradient_of_the_variance(rho, samples):
    """Var_v L(θ + ρv) of a quartic is a polynomial of degree 8 in v: 6 Gauss–Hermite nodes are exact."""
    lam, at = 0.7, torch.tensor([0.6, -0.4, 0.3])
    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(6))
    grid = torch.tensor(list(itertools.product(nodes.tolist(), repeat=3)))
    mass = torch.tensor([math.prod(w) for w in itertools.product(weights.tolist(), repeat=3)])
    mass = mass / mass.sum()

    def penalty(theta):
        losses = vmap(lambda v: quartic({"t": theta + rho * v}, None)[1]["loss"])(grid)
        return lam / (2 * rho**2) * (mass @ losses**2 - (mass @ losses) ** 2)

    wanted = torch.func.grad(penalty)(at)
    mean, error = extra_over_draws(frob_sam(rho=rho, lam=lam, samples=samples), quartic, at)
    assert torch.all((mean - wanted).abs() < 4 * error)
    assert torch.all(wanted.abs() > 8 * error)


def test_on_a_saddle_of_trace_zero_the_trace_rule_is_blind_and_the_frobenius_rule_is_not():
    """L = a² − b²: E extra = 0 for trace_sam, λ H g for frob_sam, as Var L = ρ²‖g‖² + const."""
    at = torch.tensor([0.5, 0.8])
    mean, error = extra_over_draws(trace_sam(rho=0.1, lam=3.0), saddle, at)
    assert torch.all(error > 0) and torch.all(mean.abs() < 4 * error)
    lam = 0.7
    mean, error = extra_over_draws(frob_sam(rho=0.1, lam=lam), saddle, at)
    wanted = lam * torch.tensor([4 * 0.5, 4 * 0.8])
    assert torch.all((mean - wanted).abs() < 4 * error)
    assert torch.all(wanted > 20 * error)
