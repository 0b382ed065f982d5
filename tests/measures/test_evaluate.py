"""Evaluation over a data set: chunks count by their size, probes follow, nothing is changed."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.measures.average_sharpness import average_sharpness
from flattrain.measures.feature_robustness import feature_robustness
from flattrain.measures.fisher_rao import fisher_rao
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.input_jacobian import input_jacobian
from flattrain.measures.loss import loss
from flattrain.measures.margins import margin_quantile
from flattrain.measures.neural_collapse import neural_collapse
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.soft_rank import soft_rank
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.training import evaluate as module_under_test
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


@pytest.mark.parametrize(
    "measure",
    [
        loss(),
        hessian_trace(probes=3),
        relative_flatness(),
        soft_rank(),
        top_eigenvalue(tolerance=1e-9),
        feature_robustness(delta=0.3, probes=3),
        average_sharpness(rho=0.3, probes=3),
        fisher_rao(),
        neural_collapse(),
        input_jacobian(norm="max_spectral"),
        margin_quantile(quantile=0.3),
    ],
    ids=lambda m: m.name,
)
def test_ragged_chunks_give_the_value_of_one_batch(measure, monkeypatch):
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    whole = evaluate(measure, network, x, y, ("k",)).value
    monkeypatch.setattr(module_under_test, "CHUNK", 5)
    assert float(evaluate(measure, network, x, y, ("k",)).value) == pytest.approx(float(whole), rel=1e-8)


def test_probes_per_example_stay_unbiased_over_chunks(monkeypatch):
    net, (x, y) = oracles.small_net(), oracles.data(n=23)
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    exact = oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), "hidden1")
    monkeypatch.setattr(module_under_test, "CHUNK", 5)
    found = evaluate(relative_flatness(layer="hidden1", probes=300), network, x, y, ("k",))
    assert 0 < found.standard_error < abs(exact)
    assert abs(found.value - exact) < 4 * found.standard_error


def test_measuring_changes_nothing():
    net, (x, y) = oracles.small_net(), oracles.data()
    net.train()
    net.head.weight.requires_grad_(False)
    net(x).sum().backward()
    before = copy.deepcopy(net.state_dict())
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
    chance = torch.get_rng_state()
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    for measure in (loss(), hessian_trace(), relative_flatness(layer="hidden1"), top_eigenvalue()):
        evaluate(measure, network, x, y, ("k",))
    assert net.training and not net.head.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), chance)
    for k, p in net.named_parameters():
        assert torch.equal(p, before[k])
        assert p.grad is None if grads[k] is None else torch.equal(p.grad, grads[k])
    assert not any(m._forward_hooks for m in net.modules())
