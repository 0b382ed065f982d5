"""Quadrature: exact for low degrees, and with as many steps as the soft rank asks for."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.operators import of_matrix
from flattrain.core.probes import stream
from flattrain.core.spectral_density import density, quadrature, soft_rank, soft_steps, trace_of
from flattrain.ranges import Refused


def test_polynomials_up_to_degree_2k_minus_1_are_exact_per_probe():
    a = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    a = a + a.T
    found = quadrature(of_matrix(a), stream(1), steps=3, probes=4)
    generator = stream(1)
    from flattrain.core.trace import signs

    rows = [signs(of_matrix(a), generator) for _ in range(4)]
    for power in range(6):
        mine = (found.weights * found.nodes**power).sum(-1)
        exact = torch.stack([z @ torch.linalg.matrix_power(a, power) @ z for z in rows])
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9)
    assert found.products == 12


def test_soft_rank_needs_steps_that_grow_with_the_root_of_the_condition():
    values = torch.cat([torch.logspace(-6, 0, 500), torch.zeros(500)])
    lam, op = 1e-4, of_matrix(torch.diag(values))
    exact = float((values / (values + lam)).sum())
    short = trace_of(
        quadrature(op, stream(0), steps=8, probes=20), lambda x: x.clamp(min=0) / (x.clamp(min=0) + lam)
    )
    right = soft_rank(op, stream(0), lam=lam, norm=1.0, probes=20)
    assert abs(float(short.value) / exact - 1) > 0.05
    assert float(right.value) == pytest.approx(exact, rel=1e-3)
    ratio = soft_steps(1.0, 1e-6) / soft_steps(1.0, 1e-4)
    assert ratio == pytest.approx(10, rel=0.03)


def test_values_carry_the_error_of_their_probes():
    q, _ = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(0)))
    values = torch.linspace(0.1, 3, 60)
    found = trace_of(
        quadrature(of_matrix(q @ torch.diag(values) @ q.T), stream(2), steps=30, probes=40), torch.log
    )
    assert 0 < found.standard_error < 3
    assert abs(found.value - values.log().sum()) < 4 * found.standard_error


def test_the_density_integrates_to_one_and_sees_the_weights():
    values = torch.cat([torch.full((30,), -1.0), torch.full((10,), 2.0)])
    found = quadrature(of_matrix(torch.diag(values)), stream(0), steps=10, probes=5)
    at = torch.linspace(-3, 4, 2001)
    curve, error = density(found, at, 0.1)
    assert float(torch.trapezoid(curve, at)) == pytest.approx(1, rel=1e-6)
    assert float(torch.trapezoid(curve[at > 0.5], at[at > 0.5])) == pytest.approx(0.25, rel=1e-6)
    assert error.shape == curve.shape and float(error.max()) < 1e-9
    with pytest.raises(Refused, match="width must be a number > 0"):
        density(found, at, 0.0)
    with pytest.raises(Refused, match="steps and probes >= 1"):
        quadrature(of_matrix(torch.eye(3)), stream(0), steps=0, probes=1)
