"""Points on and inside the sphere, and the net that is flat there and interpolates anything."""

from __future__ import annotations

import oracles
import pytest
import torch

from flattrain.core.losses import half_squared_error
from flattrain.core.probes import stream
from flattrain.problems.radial import radial
from flattrain.problems.sphere_interpolator import sphere_interpolator, unit_start
from flattrain.ranges import Refused


def test_the_radius_follows_the_power():
    sphere = radial(dim=5, train=2000, test=3, alpha=0)(0)
    torch.testing.assert_close(sphere.train_x.norm(dim=1), torch.ones(2000))
    for alpha in (0.3, 1.5, 5.0):
        inside = radial(dim=5, train=2000, test=3, alpha=alpha)(0)
        radius = inside.train_x.norm(dim=1)
        # 1 − (1 − h)^α gives R back, whose mean is known to 1/√(12 n)
        assert abs((1 - (1 - radius) ** alpha).mean() - 0.5) < 4 / (12 * 2000) ** 0.5
        torch.testing.assert_close(inside.train_x / radius[:, None], sphere.train_x)
        assert torch.equal(inside.train_y, sphere.train_y)
    assert set(radial(labels="sign", train=50, test=3)(0).train_y.tolist()) == {-1.0, 1.0}
    assert abs(sphere.train_x.mean(0)).max() < 4 / (5 * 2000) ** 0.5
    assert abs(sphere.train_y.std() - 1) < 4 / (2 * 2000) ** 0.5


def loaded(model, split):
    module = model.build(split).double()
    params = model.start(module, split, stream(0))
    with torch.no_grad():
        for k, p in module.named_parameters():
            p.copy_(params[k])
    return module


@pytest.mark.parametrize(("dim", "n"), [(3, 12), (5, 20)])
def test_the_interpolator_is_as_flat_as_it_says(dim, n):
    split = radial(dim=dim, train=n, test=500)(1)
    module = loaded(sphere_interpolator(), split)
    assert half_squared_error.mean(module(split.train_x), split.train_y) < 1e-20
    hessian = oracles.full_hessian(module, half_squared_error.mean, split.train_x, split.train_y)
    largest = split.train_y.abs().max()
    assert torch.linalg.eigvalsh(hessian)[-1] <= 1 + (largest**2 + 2) / n + 1e-8
    active = module.hidden1(split.train_x) > 0
    assert torch.equal(active, torch.eye(n, dtype=torch.bool))


def test_the_start_has_unit_rows():
    split = radial(dim=5, train=10, test=3)(0)
    params = unit_start(width=64, size=0.5).start(None, split, stream(3))
    torch.testing.assert_close(params["hidden1.weight"].norm(dim=1), torch.ones(64))
    torch.testing.assert_close(params["head.weight"].abs(), torch.full((1, 64), 0.5 / 8))
    assert params["head.weight"].unique().numel() == 2
    assert not params["hidden1.bias"].any() and not params["head.bias"].any()


def test_where_the_construction_does_not_hold():
    inside = radial(dim=5, train=10, test=3, alpha=1)(0)
    with pytest.raises(Refused, match="on the unit sphere"):
        sphere_interpolator().build(inside)
    with pytest.raises(Refused, match="margin must be < 1"):
        sphere_interpolator(margin=1.0)
    with pytest.raises(Refused, match="distinct"):
        sphere_interpolator().build(inside._replace(train_x=torch.eye(5)[[0, 0, 1]]))
