"""The population on the cube: its derivatives by autograd, its minimiser, its covariance by enumeration."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian

from flattrain.core import logistic_cube as cube
from flattrain.ranges import Refused


def test_the_truth_falls_evenly_with_mean_one_and_minimises_the_risk():
    theta = cube.truth(4)
    assert theta.tolist() == [1.75, 1.25, 0.75, 0.25]
    assert float(grad(cube.risk)(theta).abs().max()) < 1e-15
    assert cube.points(3).shape == (8, 3) and len(cube.points(3).unique(dim=0)) == 8
    for dim in (0, 15):
        with pytest.raises(Refused, match="dim must be from 1 to 14"):
            cube.points(dim)


def test_derivatives_of_the_risk_are_those_of_autograd():
    theta = torch.tensor([0.3, -1.2, 0.8, 0.1])
    at = cube.moments(theta)
    torch.testing.assert_close(at.gradient, grad(cube.risk)(theta), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(at.hessian, hessian(cube.risk)(theta), rtol=1e-12, atol=1e-15)


def test_the_covariance_is_that_of_every_example_and_label():
    theta, x = torch.tensor([0.3, -1.2, 0.8]), cube.points(3)
    rows, weights = [], []
    for point in x:
        right = float((point @ cube.truth(3)).sigmoid())
        for y, weight in ((1.0, right), (0.0, 1 - right)):
            rows.append(((point @ theta).sigmoid() - y) * point)
            weights.append(weight / len(x))
    wanted = torch.cov(torch.stack(rows).T, correction=0, aweights=torch.tensor(weights))
    torch.testing.assert_close(cube.moments(theta).covariance, wanted, rtol=1e-12, atol=1e-15)
    # well specified, and not shrunk: C = H
    at = cube.minimum(5, 0.0)
    torch.testing.assert_close(at.theta, cube.truth(5), rtol=1e-9, atol=0)
    torch.testing.assert_close(at.covariance, at.hessian, rtol=1e-9, atol=1e-12)


def test_the_minimiser_has_no_slope_and_is_shrunk():
    at = cube.minimum(6, 0.1)
    assert float((at.gradient + 0.1 * at.theta).abs().max()) < 1e-14
    assert float(at.theta.norm()) < 0.8 * float(cube.truth(6).norm())
    assert float(at.covariance.trace() / at.hessian.trace()) < 0.9  # under-confident
