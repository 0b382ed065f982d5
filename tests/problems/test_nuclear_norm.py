"""The least nuclear norm: closed forms, its two bounds, and the nets that are built on it."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.losses import squared_error
from flattrain.measures.deep_linear_trace import deep_linear_trace
from flattrain.problems.flattest_factors import flattest_factors
from flattrain.problems.matrix_sensing import deep_linear, matrix_sensing
from flattrain.problems.nuclear_norm import least_nuclear_norm
from flattrain.ranges import Refused
from flattrain.training.measured import measured


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nuclear(matrix):
    return float(torch.linalg.matrix_norm(matrix, "nuc"))


def test_one_measurement_has_a_closed_form():
    """min ‖M‖_* with ⟨A, M⟩ = b is |b|/‖A‖₂, at b u vᵀ/‖A‖₂ of the top singular vectors."""
    a, b = normal(1, 5, 3), torch.tensor([-1.7])
    found = least_nuclear_norm(a, b, tolerance=1e-9)
    u, s, v = torch.linalg.svd(a[0], full_matrices=False)
    torch.testing.assert_close(found.matrix, b / s[0] * torch.outer(u[:, 0], v[0]), rtol=1e-4, atol=1e-6)
    assert found.above == pytest.approx(1.7 / float(s[0]), rel=1e-8) == pytest.approx(found.below, rel=1e-8)


def test_a_block_of_entries_is_completed_by_zeros():
    """With the first k columns given, any other columns add to the nuclear norm: the rest is zero."""
    m = normal(4, 6)
    m[:, 3:] = 0
    a = torch.eye(24).view(24, 4, 6)[[6 * r + c for r in range(4) for c in range(3)]]
    found = least_nuclear_norm(a, (a * m).sum((1, 2)), tolerance=1e-9)
    torch.testing.assert_close(found.matrix, m, rtol=0, atol=1e-4)
    assert found.above == pytest.approx(nuclear(m), rel=1e-8)


@pytest.mark.parametrize("n", [20, 45])
def test_the_bounds_hold_and_meet(n):
    """Below: λ of the dual. Above: every matrix that meets the measurements, the answer and its rivals."""
    a = normal(n, 7, 8)
    b = normal(n, seed=1)
    found = least_nuclear_norm(a, b, tolerance=1e-9)
    assert found.below <= found.above <= found.below * (1 + 1e-8)
    torch.testing.assert_close((a * found.matrix).sum((1, 2)), b, rtol=0, atol=1e-9)
    assert found.above == pytest.approx(nuclear(found.matrix), rel=1e-12)
    unseen = torch.linalg.svd(a.flatten(1))[2][n:]
    for k in range(20):
        rival = found.matrix + (normal(len(unseen), seed=k) @ unseen).view(7, 8) * 10.0 ** -(k % 4)
        assert nuclear(rival) > found.below * (1 + 1e-7)


def test_enough_measurements_find_the_matrix_and_repeated_ones_change_nothing():
    split = matrix_sensing(size=8, rank=1, train=50)(3)
    m = least_nuclear_norm(split.train_x, split.train_y)
    error = (split.test_x.double() * m.matrix).sum((1, 2)) - split.test_y.double()
    assert float(error.abs().max()) < 1e-5 and m.above == pytest.approx(1, rel=1e-5)
    twice = least_nuclear_norm(
        torch.cat([split.train_x, split.train_x[:5]]), torch.cat([split.train_y, split.train_y[:5]])
    )
    torch.testing.assert_close(twice.matrix, m.matrix, rtol=0, atol=1e-4)


def test_refusals():
    a = normal(3, 4, 4)
    with pytest.raises(Refused, match="no matrix meets these measurements"):
        least_nuclear_norm(torch.cat([a, a[:1]]), torch.tensor([1.0, 2, 3, 4]))
    with pytest.raises(Refused, match="after 1 iterations the norm is between"):
        least_nuclear_norm(a, torch.tensor([1.0, 2, 3]), iterations=1)
    assert least_nuclear_norm(a, torch.zeros(3)).above == 0
    with pytest.raises(Refused, match="a matrix of rank 2 and a width of 1"):
        flattest_factors(torch.eye(2), 3, 1)
    with pytest.raises(Refused, match=r"train = size² = 16, got 10"):
        matrix_sensing(size=4, train=10, measurements="entries")


def test_entries_are_isotropic_exactly():
    split = matrix_sensing(size=4, train=16, measurements="entries")(0)
    rows = split.train_x.flatten(1).double()
    torch.testing.assert_close(rows.mT @ rows / 16, torch.eye(16), rtol=0, atol=0)
    found = least_nuclear_norm(split.train_x, split.train_y).matrix
    torch.testing.assert_close(4 * found.flatten(), split.train_y.double())
    test = (split.test_x.double() * found).sum((1, 2)) - split.test_y.double()
    assert float(test.abs().max()) < 1e-5


@pytest.mark.parametrize("depth", [2, 4])
def test_the_flattest_start_has_the_least_nuclear_norm_among_interpolators(depth):
    split = matrix_sensing(size=6, rank=1, train=20)(1)
    model = deep_linear(depth=depth, width=7, factors="flattest")
    module = model.build(split)
    start = model.start(module, split, torch.Generator())
    assert {name: p.shape for name, p in module.named_parameters()} == {k: v.shape for k, v in start.items()}
    for name, p in module.named_parameters():
        p.data = start[name]
    torch.testing.assert_close(module(split.train_x)[:, 0], split.train_y, rtol=1e-4, atol=1e-5)
    wanted = least_nuclear_norm(split.train_x, split.train_y).above
    assert nuclear(module.product()) == pytest.approx(wanted, rel=1e-5)


def test_balance_leaves_the_matrix_and_makes_it_sharper():
    split = matrix_sensing(size=5, rank=1, train=25, measurements="entries")(1).each(torch.Tensor.double)
    found = {}
    for balance in (1.0, 2.0):
        model = deep_linear(depth=3, factors="flattest", balance=balance)
        module = model.build(split)
        for name, value in model.start(module, split, torch.Generator()).items():
            module.get_parameter(name).data = value
        trace = measured(module, squared_error, [(split.train_x, split.train_y)], deep_linear_trace())
        found[balance] = module.product(), float(trace.value), module.factors[0].norm()
    torch.testing.assert_close(found[1.0][0], found[2.0][0])
    assert float(found[2.0][2] / found[1.0][2]) == pytest.approx(2, rel=1e-12)
    # Of the three equal terms the first has W_L alone in it, the last W_1, and the inner one both.
    assert found[2.0][1] / found[1.0][1] == pytest.approx((1 / 4 + 1 + 4) / 3, rel=1e-10)
