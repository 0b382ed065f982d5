"""Extreme eigenvalues of matrices with known spectra, and the ways an operator can be awkward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flattrain.core.lanczos import largest, smallest, tridiagonalise
from flattrain.core.operators import of_matrix
from flattrain.core.probes import stream
from flattrain.ranges import Refused


def symmetric(values, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values)))
    a = q @ torch.diag(values) @ q.T
    return ((a + a.T) / 2).to(dtype)


def test_the_residual_is_reported_and_bounds_the_error():
    a = symmetric(torch.cat([torch.tensor([3.0, 2.99, -3.5]), torch.linspace(-1, 1, 57)]))
    for tolerance in (1e-1, 1e-3, 1e-8):
        found = largest(of_matrix(a), stream(1), tolerance=tolerance)
        assert found.converged and found.residual <= tolerance * 3
        assert min(abs(found.value - 3), abs(found.value - 2.99)) <= found.residual + 1e-10
        truth = float((a @ found.vector - found.value * found.vector).norm())
        assert found.residual == pytest.approx(truth, rel=1e-6, abs=1e-12)
        assert float(found.vector.norm()) == pytest.approx(1, rel=1e-12)
    assert found.value == pytest.approx(3.0, rel=1e-8)  # largest algebraic, not the −3.5
    short = largest(of_matrix(a), stream(1), tolerance=1e-12, max_products=4)
    assert not short.converged and short.products == 4 and short.residual > 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_an_indefinite_matrix_whose_two_ends_are_nearly_equal(seed):
    a = symmetric(torch.cat([torch.tensor([6.39, -5.93]), torch.linspace(-2, 2, 98)]), seed)
    top, bottom = (f(of_matrix(a), stream(seed), tolerance=1e-9) for f in (largest, smallest))
    assert top.value == pytest.approx(6.39, rel=1e-12) and bottom.value == pytest.approx(-5.93, rel=1e-12)
    assert top.products < 60 and bottom.products < 60


def test_products_are_counted_and_a_loose_residual_gives_its_square():
    spectrum = torch.cat([torch.tensor([10.0]), torch.linspace(0, 5, 199)])
    calls = []
    op = of_matrix(symmetric(spectrum))
    counted = replace(op, matvec=lambda v: (calls.append(1), op(v))[1])
    loose = largest(counted, stream(2), tolerance=3e-2)
    assert loose.products == len(calls)
    assert 0 < abs(loose.value / 10 - 1) < 2e-3 < loose.residual
    tight = largest(op, stream(2), tolerance=1e-3)
    assert tight.products > loose.products and abs(tight.value / 10 - 1) < 2e-6


def test_degenerate_operators():
    identity = largest(of_matrix(2 * torch.eye(10)), stream(0))
    assert identity.value == pytest.approx(2.0) and identity.converged and identity.products == 1
    nothing = largest(of_matrix(torch.zeros(10, 10)), stream(0))
    assert nothing.value == 0 and nothing.residual == 0 and nothing.converged and nothing.products == 1
    scalar = smallest(of_matrix(torch.tensor([[-3.0]])), stream(0))
    assert scalar.value == pytest.approx(-3.0, rel=1e-14) and scalar.products == 1 and scalar.converged
    twice = largest(
        of_matrix(symmetric(torch.tensor([4.0, 4.0, 4.0, 1.0, -2.0, -2.0]))), stream(0), tolerance=1e-12
    )
    assert twice.value == pytest.approx(4.0, rel=1e-12) and twice.products == 3


def test_a_basis_stays_orthogonal_where_plain_lanczos_loses_it():
    spectrum = torch.cat([torch.tensor([1e6, 1e5, 1e4]), torch.linspace(0, 1, 97)])
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        op = of_matrix(symmetric(spectrum, dtype=dtype))
        found = tridiagonalise(op, torch.ones(100, dtype=dtype), 60)
        assert found.basis.dtype == dtype and found.diagonal.dtype == torch.float64
        gram = found.basis @ found.basis.T
        assert float((gram - torch.eye(len(gram), dtype=dtype)).abs().max()) < bound
        assert largest(op, stream(3)).value == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_products_that_are_not_finite_are_refused(bad):
    op = of_matrix(torch.eye(4))
    with pytest.raises(Refused, match="product 1 of the operator is not finite"):
        largest(replace(op, matvec=lambda v: v * bad), stream(0))
    with pytest.raises(Refused, match="max_products >= 1"):
        largest(op, stream(0), max_products=0)
