"""Eigenvalue, Gauss–Newton spectrum, norms and feature rank against dense linear algebra."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import value_of
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.feature_rank import feature_rank
from flattrain.measures.gauss_newton import gauss_newton_frobenius
from flattrain.measures.hessian_frobenius import hessian_frobenius
from flattrain.measures.loss import error, loss
from flattrain.measures.norms import path_norm, weight_norm
from flattrain.measures.top_eigenvalue import smallest_eigenvalue, top_eigenvalue
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import generalising, memorising
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


def pair_value(model, measure, dim=30, n=100):
    split = oracles.distinct(parity(dim=dim, train=n, test=5)(0))
    module = model.build(split).double()
    params = model.start(module, split, torch.Generator())
    network = Network(module, squared_error, params, {})
    return float(evaluate(measure, network, split.train_x, split.train_y, (0,)).value)


def test_top_eigenvalue_is_that_of_the_explicit_hessian():
    net, (x, y) = oracles.small_net(), oracles.data()
    wanted = torch.linalg.eigvalsh(oracles.full_hessian(net, F.cross_entropy, x, y))[-1]
    params = {k: p.detach() for k, p in net.named_parameters()}
    network = Network(net, cross_entropy, params, {})
    found = evaluate(top_eigenvalue(tolerance=1e-10), network, x, y, (1,))
    assert found.value == pytest.approx(float(wanted), rel=1e-10)
    loose = evaluate(top_eigenvalue(tolerance=1e-2), network, x, y, (1,))
    assert abs(loose.value - float(wanted)) <= loose.standard_error + 1e-12


def test_smallest_eigenvalue_and_frobenius_norm_are_those_of_the_explicit_hessian():
    net, (x, y) = oracles.small_net(), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    found = evaluate(smallest_eigenvalue(tolerance=1e-10), network, x, y, (1,))
    wanted = float(torch.linalg.eigvalsh(h)[0])
    assert wanted < -0.01 and found.value == pytest.approx(wanted, rel=1e-10)
    found = evaluate(hessian_frobenius(probes=400), network, x, y, (1,))
    # Var ‖Hz‖² = 2 Σ_{i≠j} (H²)_ij² for ±1 entries, and the root halves the relative error.
    square = h @ h
    spread = (2 * (square.square().sum() - square.diagonal().square().sum())).sqrt()
    assert float(found.standard_error) == pytest.approx(float(spread / 400**0.5 / (2 * h.norm())), rel=0.15)
    assert abs(found.value - float(h.norm())) < 4 * found.standard_error


def test_gauss_newton_frobenius_at_interpolation_is_the_hessians():
    from flattrain.measures.relative_flatness import relative_flatness

    dim, n = 6, 12
    split = oracles.distinct(parity(dim=dim, train=n, test=5)(0))
    x, y = split.train_x, split.train_y
    model = memorising()
    module = model.build(split).double()
    params = model.start(module, split, torch.Generator())
    with torch.no_grad():
        for k, p in module.named_parameters():
            p.copy_(params[k])
    h = oracles.full_hessian(module, squared_error.mean, x, y)
    mine = value_of(gauss_newton_frobenius(), module, squared_error, x, y)
    torch.testing.assert_close(mine, h.norm(), rtol=1e-8, atol=0)
    hidden = value_of(relative_flatness(layer="hidden", form="relu"), module, squared_error, x, y)
    torch.testing.assert_close(hidden, oracles.kappa(module, h, "hidden"), rtol=1e-8, atol=0)


def test_the_exact_pair_as_tabulated():
    """d = 30, n = 100: λ₁ 0.223 against 3.503, path norm 274 against 5.66, rank 100 against 4."""
    from flattrain.measures.relative_flatness import relative_flatness

    hidden = relative_flatness(layer="hidden", form="relu")
    for measure, memoriser, generaliser, tolerance in (
        (top_eigenvalue(), 0.2227, None, 1e-3),
        (gauss_newton_frobenius(), 2.227, None, 1e-3),
        (hidden, 450.0 / 0.999**2, 120.0, 1e-6),
        (path_norm(), 273.9, 4 * 2**0.5, 2e-3),
        (feature_rank(), 100.0, 4.0, 0.05),
    ):
        assert pair_value(memorising(), measure) == pytest.approx(memoriser, rel=tolerance)
        if generaliser:
            assert pair_value(generalising(), measure) == pytest.approx(generaliser, rel=tolerance)


def test_gram_has_the_spectrum_of_the_gauss_newton_matrix():
    from flattrain.core.functional import see

    net, (x, _) = oracles.small_net("tanh", (4, 5, 1)), oracles.data()
    y = torch.randn(len(x))
    seen = see(net, squared_error, x, y, layers=("hidden1", "head"))
    rows = []
    for i in range(len(x)):
        g = torch.autograd.grad(net(x[i : i + 1]).sum(), list(net.parameters()))
        rows.append(torch.cat([v.reshape(-1) for v in g]))
    jacobian = torch.stack(rows)
    wanted = (2 / len(x) * jacobian @ jacobian.T).square().sum().sqrt()
    mine = gauss_newton_frobenius().statistic(seen, {})["frobenius"]
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


def test_norms_loss_and_error():
    net, (x, y) = oracles.small_net(), oracles.data()
    norm = sum(p.square().sum() for p in net.parameters())
    torch.testing.assert_close(value_of(weight_norm(), net, cross_entropy, x, y), norm)
    torch.testing.assert_close(value_of(loss(), net, cross_entropy, x, y), F.cross_entropy(net(x), y))
    wrong = (net(x).argmax(1) != y).double().mean()
    torch.testing.assert_close(value_of(error(), net, cross_entropy, x, y), wrong)


def test_an_output_of_zero_is_an_error_under_squared_error():
    outputs = torch.tensor([[1.0], [-2.0], [0.0], [3.0]])
    target = torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert float(squared_error.error(outputs, target)) == 0.75


def test_feature_rank_of_orthogonal_features_is_their_number():
    net = torch.nn.Sequential()
    net.add_module("head", torch.nn.Linear(4, 2))
    x = torch.cat([torch.eye(4)[:3], -torch.eye(4)[:3]])
    assert float(value_of(feature_rank(), net, cross_entropy, x, torch.zeros(6).long())) == (
        pytest.approx(3.0, rel=1e-6)
    )


def test_a_repeated_training_point_cannot_be_memorised():
    split = parity(dim=3, train=30, test=5)(0)
    with pytest.raises(Refused, match="distinct"):
        memorising().build(split)
