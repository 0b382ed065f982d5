"""Trees, probes, operators, Lanczos, losses and Kronecker factors."""

from __future__ import annotations

import itertools

import oracles
import pytest
import torch
from einops import einsum
from torch.nn import functional as F

from flattrain.core import trees
from flattrain.core.losses import (
    binary_cross_entropy,
    cross_entropy,
    mean_squared_error,
    recognise,
    squared_error,
)
from flattrain.core.operators import hessian
from flattrain.core.probes import draw, stream
from flattrain.core.trace import mean_of_probes
from flattrain.types import Draw


def test_trees():
    a = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    assert float(trees.dot(a, a)) == 14.0
    assert float(trees.norm(a)) == 14.0**0.5
    assert torch.equal(trees.axpy(2.0, a, a)["b"], torch.tensor([9.0]))
    assert torch.equal(trees.flatten(a), torch.tensor([1.0, 2.0, 3.0]))
    back = trees.unflatten(trees.flatten(a), a)
    assert all(torch.equal(back[k], a[k]) for k in a)
    stacked = trees.stack([a, trees.axpy(1.0, a, a)])
    assert stacked["w"].shape == (2, 1, 2)
    assert torch.equal(trees.pick(stacked, 1)["b"], torch.tensor([6.0]))


def test_streams_are_named_and_probes_have_their_moments():
    wanted = {"r": Draw("rademacher", (40_000,)), "n": Draw("normal", (40_000,))}
    one, two = (draw(wanted, stream(3, "x"), torch.float64) for _ in range(2))
    other = draw(wanted, stream(3, "y"), torch.float64)
    for k in wanted:
        assert torch.equal(one[k], two[k])
        assert not torch.equal(one[k], other[k])
        assert abs(one[k].mean()) < 0.025 and abs(one[k].square().mean() - 1) < 0.03
    assert torch.equal(one["r"].abs(), torch.ones(40_000))


def test_long_sign_vectors_are_independent_and_odd_lengths_are_right():
    z = draw({"r": Draw("rademacher", (333, 33))}, stream(0), torch.float64)["r"]
    assert z.shape == (333, 33) and torch.equal(z.abs(), torch.ones(333, 33))
    flat = z.reshape(-1)[: 32 * 343].reshape(343, 32)
    covariance = flat.T @ flat / 343
    assert float((covariance - torch.eye(32)).abs().max()) < 5 / 343**0.5
    assert float(flat.mean(0).abs().max()) < 4 / 343**0.5


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (4, 4, 4), (11, 1)])
def test_hessian_operator_weighs_uneven_batches_by_their_counts(sizes):
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}

    def loss(p, bx, by):
        return F.cross_entropy(torch.func.functional_call(net, p, (bx,)), by)

    operator = hessian(loss, params, list(zip(x.split(sizes), y.split(sizes), strict=True)))
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    mine = torch.stack([operator(e) for e in torch.eye(operator.dim)])
    torch.testing.assert_close(mine, h, rtol=1e-9, atol=1e-12)


def test_standard_error_of_probes():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0])
    found = mean_of_probes(values)
    assert float(found.value) == 3.0
    assert float(found.standard_error) == pytest.approx(float(values.std()) / 2)
    assert torch.isnan(mean_of_probes(values[:1]).standard_error)


@pytest.mark.parametrize("criterion", [cross_entropy, squared_error, mean_squared_error])
def test_output_hessians_and_traces(criterion):
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 2, 1, 1, 0])
    target = y if criterion is cross_entropy else F.one_hot(y).double()
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    root = criterion.factor(z)
    for i in range(5):
        s = torch.func.hessian(lambda v, i=i: criterion.mean(v[None], target[i : i + 1]))(z[i])
        torch.testing.assert_close(root[i] @ root[i].T, s, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            criterion.trace_with(z, w)[i], torch.trace(w @ w.T @ s), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize(
    "criterion", [cross_entropy, squared_error, mean_squared_error, binary_cross_entropy]
)
def test_a_sketch_has_the_output_hessian_as_its_covariance(criterion):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))  # all of them: the exact mean
    columns = torch.stack([criterion.sketch(z, e.expand(3, 4)) for e in signs])
    covariance = einsum(columns, columns, "e n i, e n j -> n i j") / len(signs)
    root = criterion.factor(z)
    torch.testing.assert_close(covariance, root @ root.mT, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("criterion", [cross_entropy, binary_cross_entropy])
def test_roots_keep_finite_gradients_where_probabilities_underflow(criterion):
    z = torch.tensor([[300.0, -300.0, 0.0, 40.0]], dtype=torch.float32, requires_grad=True)
    for root in (criterion.factor(z), criterion.sketch(z, torch.ones_like(z))):
        (slope,) = torch.autograd.grad(root.square().sum(), z)
        assert torch.isfinite(slope).all()


def test_the_root_of_cross_entropy_has_a_column_less_than_classes():
    assert cross_entropy.factor(torch.zeros(2, 5)).shape == (2, 5, 4)


def test_losses_are_recognised():
    assert recognise(F.cross_entropy).factor is cross_entropy.factor
    assert recognise(torch.nn.MSELoss()) is mean_squared_error
    smoothed = recognise(torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    assert smoothed.factor is not None
    weighted = recognise(torch.nn.CrossEntropyLoss(weight=torch.ones(3)))
    assert weighted.factor is not None
    with_positive_weights = torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))
    assert recognise(with_positive_weights).factor is None
