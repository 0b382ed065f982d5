"""Feature robustness against its definition by hand and against κ; the Haar distribution of its rotations."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch.func import functional_call
from torch.nn import functional as F

from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import draw, stream
from flattrain.measures.feature_robustness import feature_robustness, haar
from flattrain.ranges import Refused


def signed_shifts(width):
    """4 cyclic shifts times the 4 rows of a Hadamard matrix: over them, E[Aφ φᵀAᵀ] = ‖φ‖²/4 I exactly."""
    assert width == 4
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    signs = torch.kron(two, two)
    return [s[:, None] * torch.eye(4).roll(k, 0) for s in signs for k in range(4)]


def by_hand(net, x, y, layer, delta, matrices, params):
    """The gain of the loss with the features before `layer` replaced, layer after layer, without hooks."""

    def loss(a):
        features = x
        for name, part in net.named_children():
            if name == layer:
                features = features + delta * torch.einsum("ij,nj->ni", a, features)
            own = {k.split(".")[1]: p for k, p in params.items() if k.startswith(f"{name}.")}
            features = functional_call(part, own, (features,))
        return F.cross_entropy(features, y)

    base = loss(torch.zeros_like(matrices[0]))
    return sum((loss(a) + loss(-a)) / 2 - base for a in matrices) / len(matrices)


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "head"])
def test_value_and_gradient_are_those_of_the_definition(layer):
    net, (x, y) = oracles.small_net("tanh", (4, 4, 4, 3)), oracles.data()
    matrices = signed_shifts(4)[3:6]
    measure = feature_robustness(layer=layer, delta=0.3, probes=3)
    noise = {str(k): a for k, a in enumerate(matrices)}  # QR leaves an orthogonal matrix as it is
    gradient_is_that_of(
        lambda p: by_hand(net, x, y, layer, 0.3, matrices, p), measure, net, x, y, noise=noise
    )


@pytest.mark.parametrize("layer", ["hidden1", "hidden2", "head"])
def test_small_delta_gives_relative_flatness(layer):
    net, (x, y) = oracles.small_net("tanh", (4, 4, 4, 3)), oracles.data()
    kappa = oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), layer)
    noise = {str(k): a for k, a in enumerate(signed_shifts(4))}
    errors = []
    for delta in (0.02, 0.01):
        measure = feature_robustness(layer=layer, delta=delta, probes=16)
        found = value_of(measure, net, cross_entropy, x, y, noise=noise).detach()
        errors.append(float(found / (delta**2 / 8 * kappa)) - 1)
    assert abs(errors[1]) < 2e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)  # the rest is O(δ⁴)


def test_haar_draws_give_relative_flatness_within_their_standard_error():
    net, (x, y) = oracles.small_net("tanh", (4, 5, 3)), oracles.data()
    kappa = oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), "head")
    measure = feature_robustness(layer="head", delta=0.01, probes=2000)
    seen = see(net, cross_entropy, x, y, layers=("head",))
    with torch.no_grad():
        found = measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(1), x.dtype)))
    wanted = 0.01**2 / 10 * kappa
    assert 0 < found.standard_error < 0.01 * wanted
    assert abs(found.value - wanted) < 4 * found.standard_error
    assert abs(found.value / wanted - 1) < 0.01


def test_haar_matrices_are_orthogonal_and_have_the_moments_of_the_distribution():
    generator = torch.Generator().manual_seed(0)
    many = torch.stack([haar(torch.randn(3, 3, generator=generator)) for _ in range(4000)])
    torch.testing.assert_close(many @ many.transpose(1, 2), torch.eye(3).expand(4000, 3, 3))
    # E A = 0, E A_ij² = 1/m, E (Tr A)² = 1; QR without the signs has E Tr A far from 0.
    assert (many.mean(0).abs() < 4 * (1 / 3 / 4000) ** 0.5).all()
    assert (many.square().mean(0) - 1 / 3).abs().max() < 0.02
    trace = many.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(trace.square().mean() - 1) < 0.1


def test_the_draws_differ_and_the_pass_leaves_no_hook():
    net, (x, y) = oracles.small_net(), oracles.data()
    measure = feature_robustness(probes=3)
    seen = see(net, cross_entropy, x, y, layers=("head",))
    gains = measure.statistic(seen, draw(measure.draws(seen), stream(1), x.dtype))["gain"]
    assert len(set(gains.tolist())) == 3
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    measure = feature_robustness(layer="head", delta=0.2, probes=2)
    vmap_is_loop(measure, net, x, y)
    seen = see(net, cross_entropy, x, y, layers=("head",))
    one_batch_is_many(measure, net, x, y, noise=draw(measure.draws(seen), stream(1), x.dtype))


def test_refusals():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="no layer 'heed'; did you mean 'head'"):
        value_of(feature_robustness(layer="heed"), net, cross_entropy, x, y)
    with pytest.raises(Refused, match="delta must be a number > 0"):
        feature_robustness(delta=0)
