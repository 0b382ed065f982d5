"""Rules one inside the other: the order, the memory, the draws; schedules, decay and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import vmap

from flattrain.core import trees
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.rules.decay import clip, weight_decay
from flattrain.rules.noise import weight_noise
from flattrain.rules.sam import sam, usam
from flattrain.rules.schedule import schedule
from flattrain.types import Batch, Moment, StatefulRule

CURVATURE = torch.tensor([3.0, 1.0])


def quadratic(params, batch):
    return {"x": CURVATURE * params["x"]}, {"loss": (CURVATURE * params["x"] ** 2).sum() / 2}


def counting():
    """Adds the number of its calls so far to the gradient."""

    def wrap(grad_fn):
        def gradient(params, batch, memory):
            g, logs = grad_fn(params, batch)
            return {"x": g["x"] + memory["calls"]}, logs, {"calls": memory["calls"] + 1}

        return gradient

    return StatefulRule(lambda params: {"calls": torch.zeros(())}, wrap)


def at(x, step=0, noise=None):
    return {"x": torch.tensor(x)}, Batch(None, None, noise or {}, Moment(step))


def test_the_first_rule_is_the_outermost():
    params, batch = at([1.0, 2.0])
    x, lam, rho = params["x"], 0.5, 0.1

    def ascended(slope):
        return x + rho * slope / slope.norm()

    inside, _, _ = compose([sam(rho=rho), weight_decay(lam=lam)])(quadratic)(params, batch, {})
    up = ascended(CURVATURE * x + lam * x)
    torch.testing.assert_close(inside["x"], CURVATURE * up + lam * up)
    outside, _, _ = compose([weight_decay(lam=lam), sam(rho=rho)])(quadratic)(params, batch, {})
    torch.testing.assert_close(outside["x"], CURVATURE * ascended(CURVATURE * x) + lam * x)


def test_each_rule_has_its_own_memory_and_draws():
    rule = compose([counting(), weight_noise(scale=0.1), counting(), weight_noise(scale=1.0)])
    params, batch = at([1.0, 2.0])
    memory = rule.init(params)
    assert len(memory) == 2
    wanted = rule.draws(params, batch)
    assert len(wanted) == 2
    noise = {name: torch.full((2,), float(k + 1)) for k, name in enumerate(wanted)}
    for step in range(3):
        g, _, memory = rule(quadratic)(params, batch._replace(noise=noise), memory)
        torch.testing.assert_close(g["x"], CURVATURE * (params["x"] + 0.1 * 1 + 1.0 * 2) + 2 * step)
    assert all(float(v) == 3 for v in memory.values())


def test_a_rule_without_memory_calls_one_with_memory_as_often_as_it_likes():
    rule = compose([sam(rho=0.0), counting()])
    params, batch = at([1.0, 2.0])
    _, _, memory = rule(quadratic)(params, batch, rule.init(params))
    assert [float(v) for v in memory.values()] == [1.0]
    rule = compose([sam(rho=0.1), counting()])
    _, _, memory = rule(quadratic)(params, batch, rule.init(params))
    assert [float(v) for v in memory.values()] == [2.0]


def test_memory_stacks_over_seeds():
    rule = compose([counting()])
    params = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    memory = trees.stack([rule.init({"x": x}) for x in params["x"]])
    memory = {k: v + torch.tensor([0.0, 5.0]) for k, v in memory.items()}
    batch = Batch(torch.zeros(2), torch.zeros(2))
    g, _, after = vmap(rule(quadratic))(params, batch, memory)
    torch.testing.assert_close(g["x"], CURVATURE * params["x"] + torch.tensor([[0.0], [5.0]]))
    assert [v.tolist() for v in after.values()] == [[1.0, 6.0]]


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({"start": 10, "before": 0.0}, {0: 0.0, 9: 0.0, 10: 1.0, 99: 1.0}),
        ({"shape": "linear", "start": 10, "stop": 20, "last": 0.5}, {0: 1.0, 10: 1.0, 15: 0.75, 30: 0.5}),
        ({"shape": "cosine", "stop": 20}, {0: 1.0, 5: (1 + math.sqrt(0.5)) / 2, 10: 0.5, 20: 0.0}),
    ],
)
def test_schedules_scale_the_radius(given, shares):
    for step, share in shares.items():
        params, batch = at([1.0, 2.0], step)
        mine, _ = schedule(**given)(sam(rho=0.4)(quadratic))(params, batch)
        wanted, _ = sam(rho=0.4 * share)(quadratic)(params, batch)
        torch.testing.assert_close(mine["x"], wanted["x"], rtol=1e-14, atol=0)


def test_a_share_of_nothing_costs_one_gradient():
    calls = []

    def counted(params, batch):
        calls.append(1)
        return quadratic(params, batch)

    params, batch = at([1.0, 2.0])
    schedule(start=5, before=0.0)(sam(rho=0.4)(counted))(params, batch)
    assert len(calls) == 1
    with pytest.raises(Refused, match="needs stop > start = 7"):
        schedule(shape="linear", start=7)


def test_clipping_before_sams_ascent_does_not_change_its_direction():
    params, batch = at([1.0, 2.0])
    plain, _ = sam(rho=0.4)(quadratic)(params, batch)
    clipped, _ = sam(rho=0.4)(clip(norm=0.1)(quadratic))(params, batch)
    torch.testing.assert_close(clipped["x"], plain["x"] * 0.1 / plain["x"].norm())
    after, _ = clip(norm=0.1)(sam(rho=0.4)(quadratic))(params, batch)
    torch.testing.assert_close(after["x"], clipped["x"])
    loose, _ = clip(norm=1e3)(quadratic)(params, batch)
    assert torch.equal(loose["x"], quadratic(params, batch)[0]["x"])


def test_the_unnormalised_ascent():
    params, batch = at([1.0, 2.0])
    mine, _ = usam(rho=0.1)(quadratic)(params, batch)
    torch.testing.assert_close(mine["x"], CURVATURE * (params["x"] + 0.1 * CURVATURE * params["x"]))
