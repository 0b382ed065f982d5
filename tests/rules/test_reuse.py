"""The rules that remember, LookSAM and Friendly SAM, over several steps against their formulas."""

from __future__ import annotations

import oracles
import pytest
import torch
from explicit import Explicit, close, far

from flattrain.rules.friendly import friendly_sam
from flattrain.rules.looksam import looksam
from flattrain.rules.sam import sam

RHO, ETA, STEPS = 0.3, 0.5, 8


def trajectory(rule, it):
    """(θ, the rule's gradient, rows) of each step of descent with it on batches of 4."""
    params, memory, found = it.params, rule.init(it.params), []
    for step in range(STEPS):
        rows = torch.arange(4) + 4 * (step % 3)
        g, _, memory = rule(it.grad_fn)(params, it.batch(step, rows=rows), memory)
        found.append((oracles.flat(params), oracles.flat(g), rows))
        params = {k: p - ETA * g[k] for k, p in params.items()}
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_looksam_is_its_formula(every):
    it, alpha, kept = Explicit(), 0.7, None
    for step, (at, mine, rows) in enumerate(trajectory(looksam(rho=RHO, alpha=alpha, every=every), it)):
        g = it.gradient(at, rows)
        if step % every == 0:
            up = it.gradient(at + RHO * g / g.norm(), rows)
            kept = up - (up @ g) / (g @ g) * g
            close(mine, up)
        else:
            close(mine, g + alpha * g.norm() / kept.norm() * kept)
            far(mine, g)


def test_looksam_at_every_step_is_sam():
    it = Explicit()
    for at, mine, rows in trajectory(looksam(rho=RHO, every=1), it):
        params = oracles.rebuild(at, it.params)
        wanted, _ = sam(rho=RHO)(it.grad_fn)(params, it.batch(rows=rows))
        close(mine, oracles.flat(wanted), rtol=1e-14)


def test_looksam_takes_the_second_gradient_only_when_due():
    it, calls = Explicit(), []

    def counted(params, batch):
        calls.append(batch.moment.step)
        return it.grad_fn(params, batch)

    rule = looksam(every=3)
    memory = rule.init(it.params)
    for step in range(7):
        *_, memory = rule(counted)(it.params, it.batch(step), memory)
    assert calls == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]


def test_looksam_does_not_amplify_rounding():
    """On ½‖x‖² SAM's gradient is parallel to the plain one: in between there is nothing to add."""

    def grad_fn(params, batch):
        return {"x": params["x"] / 3}, {}

    it, rule = Explicit(), looksam(rho=0.1, every=2)
    params = {"x": torch.linspace(0.1, 1.7, 11)}
    g, _, memory = rule(grad_fn)(params, it.batch(0), rule.init(params))
    far(g["x"], params["x"] / 3)
    between, _, _ = rule(grad_fn)(params, it.batch(1), memory)
    assert torch.equal(between["x"], params["x"] / 3)


@pytest.mark.parametrize(("sigma", "lam"), [(1.0, 0.9), (0.5, 0.6), (1.0, 0.0)])
def test_friendly_sam_is_its_formula(sigma, lam):
    it, mean = Explicit(), None
    for at, mine, rows in trajectory(friendly_sam(rho=RHO, sigma=sigma, lam=lam), it):
        g = it.gradient(at, rows)
        d = g if mean is None else g - sigma * mean
        wanted = it.gradient(at + RHO * d / d.norm(), rows)
        close(mine, wanted)
        if mean is not None:
            far(mine, it.gradient(at + RHO * g / g.norm(), rows))
        mean = g if mean is None else lam * mean + (1 - lam) * g


def test_friendly_sam_without_the_mean_is_sam():
    it = Explicit()
    for at, mine, rows in trajectory(friendly_sam(rho=RHO, sigma=0.0), it):
        wanted, _ = sam(rho=RHO)(it.grad_fn)(oracles.rebuild(at, it.params), it.batch(rows=rows))
        close(mine, oracles.flat(wanted), rtol=1e-14)


@pytest.mark.parametrize("make", [looksam, friendly_sam])
def test_radius_zero_is_the_plain_gradient(make):
    it = Explicit()
    for at, mine, rows in trajectory(make(rho=0.0), it):
        params = oracles.rebuild(at, it.params)
        assert torch.equal(mine, oracles.flat(it.grad_fn(params, it.batch(rows=rows))[0]))
