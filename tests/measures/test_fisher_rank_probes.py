"""The matrix-free soft rank: exact over all sign vectors, its gradient too, and honest intervals."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import value_of, vmap_is_loop
from torch import nn

from flattrain.core.losses import recognise
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.fisher_rank_probes import fisher_rank_probes
from flattrain.training.evaluate import evaluate
from flattrain.types import Network

LOSS, LAM = nn.CrossEntropyLoss(), 0.05


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3, bias=False))
    x = torch.randn(5, 2)
    return net, x, torch.tensor([0, 1, 2, 1, 0])


def basis(net):
    """Probes √P e_k, one per entry: their mean over k is the exact trace."""
    params = {k: p.detach() for k, p in net.named_parameters()}
    count = sum(p.numel() for p in params.values())
    noise = {}
    for k, row in enumerate(count**0.5 * torch.eye(count)):
        noise |= {f"{k}.{name}": v for name, v in oracles.rebuild(row, params).items()}
    return count, noise


def test_value_and_gradient_over_a_basis_of_probes_are_exact():
    net, x, y = small()
    count, noise = basis(net)
    measure = fisher_rank_probes(lam=LAM, probes=count, iterations=3 * count)
    mine = value_of(measure, net, recognise(LOSS), x, y, noise=noise)
    exact = value_of(fisher_rank(lam=LAM), net, recognise(LOSS), x, y)
    torch.testing.assert_close(mine.detach(), exact.detach(), rtol=1e-9, atol=0)
    grads = [torch.autograd.grad(v, list(net.parameters())) for v in (mine, exact)]
    for g, w in zip(*grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-10)


def test_too_few_iterations_leave_it_too_large():
    net, x, y = small()
    count, noise = basis(net)
    found = []
    for k in (1, 2, 4, 40):
        measure = fisher_rank_probes(lam=LAM, probes=count, iterations=k)
        found.append(float(value_of(measure, net, recognise(LOSS), x, y, noise=noise)))
    assert found == sorted(found, reverse=True) and found[0] > found[-1] * 1.01


def test_a_vocabulary_is_no_obstacle():
    """At W = 0 and one feature, S = (I − 11ᵀ/K)/K, and zᵀF(F + λ)⁻¹z is known for every z."""
    k, x = 40_000, torch.tensor([[2.0], [-1.0], [3.0]])  # roots would be 38 GB
    net = nn.Linear(1, k, bias=False)
    nn.init.zeros_(net.weight)
    noise = {"0.weight": torch.randn(k, 1, generator=torch.Generator().manual_seed(0)).sign()}
    a = float(x.square().mean()) / k
    left = k - float(noise["0.weight"].sum().square() / k)
    measure = fisher_rank_probes(lam=1e-4, iterations=5)
    found = value_of(measure, net, recognise(LOSS), x, torch.tensor([0, 1, 2]), noise=noise)
    assert float(found) == pytest.approx(a / (a + 1e-4) * left, rel=1e-10)


def test_networks_without_structure_and_vmap():
    net, x = zoo.build("transformer")
    y = zoo.targets(net, x, LOSS)
    network = Network(net, recognise(LOSS), oracles.trainable(net), {})
    estimate = evaluate(fisher_rank_probes(lam=LAM, probes=60, iterations=60), network, x, y, (0,))
    dense = oracles.fisher(net, LOSS, x, y, oracles.trainable(net))
    wanted = torch.trace(torch.linalg.solve(dense + LAM * torch.eye(len(dense)), dense))
    assert abs(float(estimate.value) - float(wanted)) < 4 * float(estimate.standard_error)
    assert float(estimate.standard_error) < 0.2 * float(wanted)
    net, x, y = small()
    vmap_is_loop(fisher_rank_probes(lam=LAM, iterations=20), net, x, y)


def test_the_whole_set_is_one_batch(monkeypatch):
    from flattrain.measures.gauss_newton import gauss_newton_frobenius
    from flattrain.training import evaluate as module

    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    network = Network(net, recognise(LOSS), oracles.trainable(net), {})
    whole = evaluate(gauss_newton_frobenius(), network, x, y, (0,)).value
    monkeypatch.setattr(module, "CHUNK", 3)
    assert evaluate(gauss_newton_frobenius(), network, x, y, (0,)).value == pytest.approx(float(whole))
