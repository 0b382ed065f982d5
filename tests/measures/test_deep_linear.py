"""The trace of deep linear nets: against the explicit Hessian, and its least value over factorisations."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import one_batch_is_many, vmap_is_loop

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.deep_linear_trace import deep_linear_trace, product_nuclear_norm, trace_floor
from flattrain.problems.flattest_factors import flattest_factors
from flattrain.problems.matrix_sensing import DeepLinear, deep_linear, matrix_sensing
from flattrain.ranges import Refused
from flattrain.training.measured import measured


def net(depth, rows=4, columns=3, width=5, seed=0):
    module = DeepLinear(rows, columns, width, depth)
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = 0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def data(n=7, rows=4, columns=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, rows, columns, generator=generator), torch.randn(n, generator=generator)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_it_is_the_trace_of_the_explicit_hessian(depth):
    module, (x, y) = net(depth), data()
    value, at = oracles.loss_of_vector(module, squared_error.mean, x, y)
    hessian = torch.func.hessian(value)(at)
    found = measured(module, squared_error, [(x, y)], deep_linear_trace())
    assert float(found.value) == pytest.approx(float(hessian.trace()), rel=1e-12)
    assert float(found.value) > 1


def test_laws_and_refusals():
    module, (x, y) = net(3), data()
    one_batch_is_many(deep_linear_trace(), module, x, y, squared_error)
    vmap_is_loop(deep_linear_trace(), module, x, y, squared_error)
    other = oracles.small_net(sizes=(4, 5, 1))
    with pytest.raises(Refused, match="defined for the model deep_linear"):
        measured(other, squared_error, [(torch.randn(3, 4), torch.randn(3))], deep_linear_trace())
    with pytest.raises(Refused, match="needs the loss squared_error, this is cross_entropy"):
        measured(module, cross_entropy, [(x, torch.zeros(7, dtype=torch.long))], deep_linear_trace())


def all_measurements(rows, columns):
    """A_i whose mean outer product is the identity, exactly: the entries, one at a time."""
    n = rows * columns
    return n**0.5 * torch.eye(n).reshape(n, rows, columns)


def least(matrix, depth):
    nuclear = torch.linalg.matrix_norm(matrix, "nuc")
    return 2 * depth * matrix.numel() ** (1 / depth) * nuclear ** (2 * (depth - 1) / depth)


def trace_at(factors, rows, columns, measure=None):
    module = DeepLinear(rows, columns, factors[0].shape[0], len(factors))
    for p, w in zip(module.factors, factors, strict=True):
        p.data = w
    x = all_measurements(rows, columns)
    found = measured(module, squared_error, [(x, torch.zeros(len(x)))], measure or deep_linear_trace())
    return float(found.value)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_the_least_trace_over_factorisations(depth):
    rows, columns, width = 6, 4, 5
    generator = torch.Generator().manual_seed(depth)
    matrix = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
    bound = float(least(matrix, depth))
    factors = flattest_factors(matrix, depth, width)
    whole = factors[0]
    for w in factors[1:]:
        whole = w @ whole
    torch.testing.assert_close(whole, matrix, rtol=1e-11, atol=1e-12)
    assert trace_at(factors, rows, columns) == pytest.approx(bound, rel=1e-11)
    assert trace_at(factors, rows, columns, trace_floor()) == pytest.approx(bound, rel=1e-11)
    for k in range(20):
        own = list(net(depth, rows, columns, width, seed=k).factors)
        whole = own[0]
        for w in own[1:]:
            whole = w @ whole
        bound = float(least(whole.detach(), depth))
        own = [w.detach() for w in own]
        assert trace_at(own, rows, columns) > bound
        assert trace_at(own, rows, columns, trace_floor()) == pytest.approx(bound, rel=1e-12)


def test_the_problem_and_its_nuclear_norm():
    dataset, model = matrix_sensing(size=6, rank=2, train=30, test=500), deep_linear(depth=3, gain=0.9)
    split, fewer = dataset(4), matrix_sensing(size=6, rank=2, train=20, test=500)(4)
    assert torch.equal(split.train_x[:20], fewer.train_x) and torch.equal(split.test_y, fewer.test_y)
    # The measurements determine M*, which has rank 2 and nuclear norm 1.
    found = torch.linalg.lstsq(split.test_x.flatten(1).double(), split.test_y.double()).solution.reshape(6, 6)
    values = torch.linalg.svdvals(found)
    assert float(values[:2].sum()) == pytest.approx(1, rel=1e-5) and float(values[2:].max()) < 1e-5
    module = model.build(split).double()
    start = model.start(module, split, torch.Generator().manual_seed(0))
    for name, p in module.named_parameters():
        p.data = start[name]
    nuclear = measured(
        module, squared_error, [(split.train_x.double(), split.train_y.double())], product_nuclear_norm()
    )
    assert float(nuclear.value) == pytest.approx(
        float(torch.linalg.svdvals(module.product()).sum()), rel=1e-12
    )
    with pytest.raises(Refused, match="rank must be at most size = 6, got 7"):
        matrix_sensing(size=6, rank=7)
    with pytest.raises(Refused, match="depth must be >= 2"):
        deep_linear(depth=1)
