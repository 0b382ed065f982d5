"""Newton's step against the explicit Hessian; to the minimum of a quadratic in one step."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import rule_over_seeds_is_a_loop
from torch.func import grad
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.ranges import Refused
from flattrain.rules.decay import weight_decay
from flattrain.rules.newton import newton
from flattrain.training.objective import build
from flattrain.types import Batch


def setting():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    return net, build(net, cross_entropy, []).gradient(), oracles.trainable(net), Batch(x, y)


@pytest.mark.parametrize("damping", [0.5, 2.0])
def test_the_step_solves_the_damped_hessian(damping):
    net, grad_fn, params, batch = setting()
    step, logs = newton(damping=damping)(grad_fn)(params, batch)
    h = oracles.full_hessian(net, F.cross_entropy, batch.x, batch.y)
    value, at = oracles.loss_of_vector(net, F.cross_entropy, batch.x, batch.y)
    wanted = torch.linalg.solve(h + damping * torch.eye(len(h)), grad(value)(at))
    torch.testing.assert_close(oracles.flat(step), wanted, rtol=1e-9, atol=1e-12)
    assert float(logs["loss"]) == pytest.approx(float(value(at)), rel=1e-12)


def test_what_an_inner_rule_adds_is_in_the_hessian():
    net, grad_fn, params, batch = setting()
    step, _ = newton(damping=1.0)(weight_decay(lam=0.7)(grad_fn))(params, batch)
    h = oracles.full_hessian(net, F.cross_entropy, batch.x, batch.y)
    g = oracles.flat(grad_fn(params, batch)[0]) + 0.7 * oracles.flat(params)
    wanted = torch.linalg.solve(h + 1.7 * torch.eye(len(h)), g)
    torch.testing.assert_close(oracles.flat(step), wanted, rtol=1e-9, atol=1e-12)


def test_one_undamped_step_minimises_a_quadratic():
    a = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    centre = torch.tensor([0.5, -1.0])

    def grad_fn(params, batch):
        g = a @ (torch.cat([params["u"], params["v"]]) - centre)
        return {"u": g[:1], "v": g[1:]}, {}

    start = {"u": torch.tensor([4.0]), "v": torch.tensor([7.0])}
    step, _ = newton(damping=0.0)(grad_fn)(start, Batch(torch.zeros(1), torch.zeros(1)))
    end = torch.cat([start["u"] - step["u"], start["v"] - step["v"]])
    torch.testing.assert_close(end, centre)


def test_seeds_are_stacked_and_a_large_net_is_refused():
    _, grad_fn, params, batch = setting()
    rule_over_seeds_is_a_loop(newton(damping=0.5), grad_fn, params, batch)
    wide = {"w": torch.zeros(2001)}
    with pytest.raises(Refused, match="Hessian of 2,001 parameters"):
        newton()(grad_fn)(wide, batch)
