"""Tilted SAM against its objective, its ends and its expansion in the tilt."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import drawn, rule_is_identity, rule_over_seeds_is_a_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.rules.sam import sam
from flattrain.rules.tilted import tilted_sam
from flattrain.training.objective import build
from flattrain.types import Batch, Moment


def setting():
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
    return build(net, cross_entropy, []).gradient(), params, Batch(x, y), value, at


def ball(batch, params, samples, radius):
    """ε_k: standard normals shortened to the ball."""
    zs = [torch.cat([batch.noise[f"{k}.{n}"].reshape(-1) for n in params]) for k in range(samples)]
    return [z * min(1.0, radius / float(z.norm())) for z in zs]


@pytest.mark.parametrize("tilt", [0.0, 0.7, 20.0])
@pytest.mark.parametrize("radius", [1.5, 1e3])
def test_without_the_ascent_it_is_the_gradient_of_the_tilted_objective(tilt, radius):
    grad_fn, params, batch, value, at = setting()
    rule = tilted_sam(tilt=tilt, radius=radius, rho=0.0, samples=4)
    there = drawn(rule, params, batch, 0)
    steps = ball(there, params, 4, radius)

    def objective(theta):
        losses = torch.stack([value(theta + e) for e in steps])
        return torch.logsumexp(tilt * losses - torch.tensor(4.0).log(), 0) / tilt if tilt else losses.mean()

    mine, logs = rule(grad_fn)(params, there)
    wanted = torch.func.grad(objective)(at)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(logs["tilted/loss"], objective(at), rtol=1e-12, atol=0)
    assert (wanted - torch.func.grad(value)(at)).norm() > 1e-2


def test_the_practical_rule_by_hand():
    grad_fn, params, batch, value, at = setting()
    rule = tilted_sam(tilt=5.0, radius=1.0, rho=0.3)
    there = drawn(rule, params, batch, 0)
    slope = torch.func.grad(value)
    ends = []
    for e in ball(there, params, 3, 1.0):
        g = slope(at + e)
        ends.append(at + e + 0.3 * g / g.norm())
    losses = torch.stack([value(end) for end in ends])
    weights = torch.exp(5 * losses) / torch.exp(5 * losses).sum()
    wanted = sum(w * slope(end) for w, end in zip(weights, ends, strict=True))
    mine, logs = rule(grad_fn)(params, there)
    torch.testing.assert_close(oracles.flat(mine), wanted, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(logs["ascended/loss"], losses.mean())
    assert weights.max() - weights.min() > 0.1
    assert (wanted - oracles.flat(sam(rho=0.3)(grad_fn)(params, batch)[0])).norm() > 0.05


def test_identities():
    """One sample without a ball, and any number of them, is SAM; no lengths at all the plain gradient."""
    grad_fn, params, batch, _, _ = setting()
    wanted, _ = sam(rho=0.3)(grad_fn)(params, batch)
    for samples in (1, 3):
        mine, _ = tilted_sam(radius=0.0, rho=0.3, samples=samples)(grad_fn)(params, batch)
        torch.testing.assert_close(oracles.flat(mine), oracles.flat(wanted), rtol=0, atol=0)
    rule_is_identity(tilted_sam(radius=0.0, rho=0.0), grad_fn, params, batch)
    rule_is_identity(tilted_sam(), grad_fn, params, batch._replace(moment=Moment(0, 0.0)))
    share = batch._replace(moment=Moment(0, 0.5))
    mine, _ = tilted_sam(rho=0.2, radius=3.0)(grad_fn)(params, drawn(tilted_sam(), params, share, 1))
    half, _ = tilted_sam(rho=0.1, radius=1.5)(grad_fn)(params, drawn(tilted_sam(), params, batch, 1))
    torch.testing.assert_close(oracles.flat(mine), oracles.flat(half), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_seeds_stack(rho):
    grad_fn, params, batch, _, _ = setting()
    rule_over_seeds_is_a_loop(tilted_sam(tilt=3.0, rho=rho), grad_fn, params, batch)


def test_the_objective_climbs_from_the_mean_to_the_worst_loss():
    """Nondecreasing in t; mean + (t/2) Var + O(t²) for small t."""
    grad_fn, params, batch, value, at = setting()
    there = drawn(tilted_sam(samples=8), params, batch, 5)
    losses = torch.stack([value(at + e) for e in ball(there, params, 8, 2.0)])

    def objective(tilt):
        rule = tilted_sam(tilt=tilt, radius=2.0, rho=0.0, samples=8)
        return rule(grad_fn)(params, there)[1]["tilted/loss"]

    tilts = [0.0, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 5.0, 20.0, 100.0, 1e4, 1e6]
    climb = torch.stack([objective(t) for t in tilts])
    assert torch.all(climb.diff() >= -1e-13)
    torch.testing.assert_close(climb[0], losses.mean())
    torch.testing.assert_close(climb[-1], losses.max(), rtol=0, atol=3 * 1e-6)  # log 8 / t
    assert losses.max() - losses.mean() > 0.1
    # the remainder over t² has a limit that is not 0: a sixth of the third cumulant
    third = float((losses - losses.mean()).pow(3).mean()) / 6
    for tilt in (1e-2, 1e-3):
        rest = float(objective(tilt) - losses.mean() - tilt / 2 * losses.var(correction=0))
        assert rest / tilt**2 == pytest.approx(third, rel=5 * tilt)
    assert abs(third) > 1e-3
