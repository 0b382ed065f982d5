"""Trace estimators: exact cases, and intervals that cover what they promise."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.operators import of_matrix
from flattrain.core.probes import stream
from flattrain.core.trace import block_traces, hutch_plus_plus, hutchinson
from flattrain.ranges import Refused
from flattrain.types import Operator


def matrix(dim=40, seed=0):
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
    return a + a.T + torch.diag(torch.linspace(0, 30, dim))


def test_a_diagonal_matrix_has_no_noise():
    a = torch.diag(torch.tensor([1.0, -2.0, 5.0]))
    found = hutchinson(of_matrix(a), stream(0), probes=4)
    assert float(found.value) == 4.0 and float(found.standard_error) == 0.0 and found.products == 4


def test_the_standard_error_is_the_known_variance_of_rademacher_probes():
    a = matrix()
    per_probe = (2 * (a.square().sum() - a.diagonal().square().sum())).sqrt()
    found = hutchinson(of_matrix(a), stream(0), probes=2000)
    assert float(found.standard_error) == pytest.approx(float(per_probe) / 2000**0.5, rel=0.06)


@pytest.mark.parametrize("estimator", [hutchinson, hutch_plus_plus])
@pytest.mark.parametrize("probes", [6, 12])
def test_intervals_cover_the_trace_in_90_to_98_percent_of_repeats(estimator, probes):
    """95 % intervals by Student's t with probes − 1 degrees of freedom."""
    a = matrix()
    trace, hits = float(a.trace()), 0
    for k in range(300):
        low, high = estimator(of_matrix(a), stream(k, probes), probes=probes).interval()
        hits += float(low) <= trace <= float(high)
    assert 0.90 <= hits / 300 <= 0.98


def test_hutch_plus_plus_is_exact_below_full_rank_and_unbiased_above():
    g = torch.Generator().manual_seed(3)
    b = torch.randn(30, 4, generator=g)
    low_rank = b @ torch.diag(torch.tensor([3.0, -1.0, 2.0, 5.0])) @ b.T
    found = hutch_plus_plus(of_matrix(low_rank), stream(1), probes=6)
    assert float(found.value) == pytest.approx(float(low_rank.trace()), rel=1e-10) and found.products == 18
    assert float(found.standard_error) < 1e-9
    a = matrix(20)
    draws = torch.stack([hutch_plus_plus(of_matrix(a), stream(k), probes=5).value for k in range(600)])
    error = draws.std() / 600**0.5
    assert abs(draws.mean() - a.trace()) < 4 * error and error > 0


def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum_at_equal_products():
    q, _ = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(0)))
    a = q @ torch.diag(0.7 ** torch.arange(60)) @ q.T
    trace = a.trace()
    errors = [
        torch.stack([(f(of_matrix(a), stream(k), probes=m).value - trace).square() for k in range(40)]).mean()
        for f, m in ((hutch_plus_plus, 10), (hutchinson, 30))
    ]
    assert errors[0] < 0.05 * errors[1]


def test_block_traces_come_from_the_same_products():
    a = matrix(12)
    op = Operator(lambda v: a @ v, {"one": 5, "two": 7}, a.dtype, a.device)
    parts = block_traces(op, stream(4), probes=400)
    for name, block in (("one", a[:5, :5]), ("two", a[5:, 5:])):
        assert 0 < parts[name].standard_error < 1
        assert abs(parts[name].value - block.trace()) < 4 * parts[name].standard_error
    whole = hutchinson(op, stream(4), probes=400)
    torch.testing.assert_close(parts["one"].value + parts["two"].value, whole.value)


def test_refusals():
    op = of_matrix(torch.eye(4))
    with pytest.raises(Refused, match="probes must be a whole number >= 1, got 0"):
        hutchinson(op, stream(0), probes=0)
    with pytest.raises(Refused, match="from 1 to the dimension 4, got 5"):
        hutch_plus_plus(op, stream(0), probes=5)
    assert torch.isnan(hutchinson(op, stream(0), probes=1).standard_error)
