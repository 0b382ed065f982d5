"""Measures of the whole Fisher against the dense matrix in float64, value and gradient, on every layer."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import on_batch_is_reduce, value_of, vmap_is_loop
from torch import nn
from torch.func import grad

from flattrain.core.losses import recognise
from flattrain.core.probes import draw, stream
from flattrain.measures.block_rank import block_rank
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.gauss_newton import gauss_newton_frobenius
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.gradient_covariance import gradient_covariance_trace
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network

LAM = 0.05


def soft(f):
    return torch.trace(torch.linalg.solve(f + LAM * torch.eye(len(f)), f))


def adaptive(f, params):
    d = torch.cat([p.flatten() for p in params.values()]).abs()
    return soft(d[:, None] * f * d)


def by_layer(f, p):
    """The sum of the soft ranks of the blocks of each module."""
    owner = {}
    for name in p:
        owner.setdefault(name.rsplit(".", 1)[0], []).append(name)
    ends = dict(zip(p, torch.tensor([v.numel() for v in p.values()]).cumsum(0).tolist(), strict=True))
    ranks = []
    for names in owner.values():
        at = torch.cat([torch.arange(ends[n] - p[n].numel(), ends[n]) for n in names])
        ranks.append(soft(f[at][:, at]))
    return torch.stack(ranks).sum()


CASES = {
    "soft": (lambda: fisher_rank(lam=LAM), lambda f, p: soft(f)),
    "logdet": (
        lambda: fisher_rank(lam=LAM, phi="logdet"),
        lambda f, p: torch.logdet(torch.eye(len(f)) + f / LAM),
    ),
    "trace": (lambda: fisher_rank(phi="trace"), lambda f, p: torch.trace(f)),
    "adaptive": (lambda: fisher_rank(lam=LAM, metric="adaptive"), adaptive),
    "gauss_newton_trace": (gauss_newton_trace, lambda f, p: torch.trace(f)),
    "block": (lambda: block_rank(lam=LAM), by_layer),
    "diagonal": (
        lambda: block_rank(lam=LAM, approximation="diagonal"),
        lambda f, p: (f.diagonal() / (f.diagonal() + LAM)).sum(),
    ),
    "frobenius": (gauss_newton_frobenius, lambda f, p: f.square().sum().sqrt()),
}


def compare(measure, definition, net, loss, x, y):
    params = oracles.trainable(net)
    live = {k: p.detach().clone().requires_grad_() for k, p in params.items()}
    value = value_of(measure, net, recognise(loss), x, y, live)
    mine = torch.autograd.grad(value, list(live.values()), materialize_grads=True)

    def dense(p):
        return definition(oracles.fisher(net, loss, x, y, p), p)

    torch.testing.assert_close(value.detach(), dense(params), rtol=1e-9, atol=1e-12)
    wanted = grad(dense)(params)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for g, (name, w) in zip(mine, wanted.items(), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}")
    assert scale > 1e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", zoo.BUILD)
def test_value_and_gradient_are_those_of_the_dense_fisher(name, case):
    net, x = zoo.build(name)
    make, definition = CASES[case]
    loss = nn.CrossEntropyLoss()
    compare(make(), definition, net, loss, x, zoo.targets(net, x, loss))


@pytest.mark.parametrize("case", ["soft", "gauss_newton_trace"])
@pytest.mark.parametrize("loss", ["smoothed", "squared", "weighted", "binary"])
def test_value_and_gradient_under_other_losses(loss, case):
    net, x = zoo.build("mlp")
    if loss == "binary":
        criterion, y = nn.BCEWithLogitsLoss(), (net(x) + 1 > 0.5).double()
    else:
        criterion = zoo.class_weights(net, x) if loss == "weighted" else zoo.LOSSES[loss]
        y = zoo.targets(net, x, criterion)
    make, definition = CASES[case]
    compare(make(), definition, net, criterion, x, y)


def test_uncovered_parameters_can_be_taken_densely():
    net, x = zoo.build("transformer")
    loss = nn.CrossEntropyLoss()
    y = zoo.targets(net, x, loss)
    compare(fisher_rank(lam=LAM, uncovered="dense"), lambda f, p: soft(f), net, loss, x, y)
    with pytest.raises(Refused, match="no structure is known"):
        value_of(fisher_rank(), net, recognise(loss), x, y)


def test_power_and_its_zero_eigenvalues():
    net, x = zoo.build("mlp")
    loss = nn.CrossEntropyLoss()
    y = zoo.targets(net, x, loss)
    value = value_of(fisher_rank(phi="power", power=0.5), net, recognise(loss), x, y)
    wanted = torch.linalg.eigvalsh(oracles.fisher(net, loss, x, y, oracles.trainable(net)))
    torch.testing.assert_close(value.detach(), wanted[wanted > 1e-12].sqrt().sum(), rtol=1e-6, atol=0)
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_adaptive_rank_does_not_see_the_scale_of_nodes():
    net = oracles.small_net("relu", (4, 6, 3))
    x, y = oracles.data()
    ranks = {"adaptive": [], "euclidean": []}
    for alpha in (1.0, 7.0):
        with torch.no_grad():
            net.hidden1.weight[2] *= alpha
            net.hidden1.bias[2] *= alpha
            net.head.weight[:, 2] /= alpha
        for metric, found in ranks.items():
            found.append(value_of(fisher_rank(metric=metric), net, recognise(nn.CrossEntropyLoss()), x, y))
    torch.testing.assert_close(*ranks["adaptive"], rtol=1e-8, atol=0)
    assert abs(ranks["euclidean"][0] / ranks["euclidean"][1] - 1) > 1e-3


def test_two_scalars():
    """The linear net f = u v x, u = 2, v = 1/2, E x² = 3/2, λ = 0.3: one eigenvalue E x² (u² + v²)."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[1].weight.fill_(0.5)
    x = torch.tensor([[1.0], [2.0**0.5]])
    from flattrain.types import Loss

    half = Loss("half", lambda z, y: (z - y).square().mean() / 2, factor=lambda z: torch.ones(len(z), 1, 1))
    y = torch.zeros(2, 1)
    assert float(value_of(fisher_rank(lam=0.3), net, half, x, y)) == pytest.approx(0.955056180, abs=1e-9)
    adaptive = fisher_rank(lam=0.3, metric="adaptive")
    assert float(value_of(adaptive, net, half, x, y)) == pytest.approx(0.909090909, abs=1e-9)
    blocks = [fisher_rank(lam=0.3, layers=(name,)) for name in ("0", "1")]
    assert sum(float(value_of(b, net, half, x, y)) for b in blocks) == pytest.approx(1.507936508, abs=1e-9)


@pytest.mark.parametrize("make", [gauss_newton_trace, fisher_rank])
def test_a_sketch_has_the_trace_in_the_mean_in_value_and_gradient(make):
    net, x = zoo.build("mlp")
    loss = recognise(nn.CrossEntropyLoss())
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    more = {"phi": "trace"} if make is fisher_rank else {}
    exact = value_of(make(**more), net, loss, x, y)
    wanted = [exact.detach(), *torch.autograd.grad(exact, list(net.parameters()))]
    measure = make(columns="sketch", **more)
    draws = []
    shape = (*net(x).shape,)
    for k in range(1500):
        eps = {"sketch" if make is fisher_rank else "0": torch.randn(shape).sign()}
        eps = draw({n: next(iter(measure.draws(_seen(net, loss, x, y)).values())) for n in eps}, stream(k))
        value = value_of(measure, net, loss, x, y, noise={n: e.double() for n, e in eps.items()})
        draws.append([value.detach(), *torch.autograd.grad(value, list(net.parameters()))])
    for found, want in zip(zip(*draws, strict=True), wanted, strict=True):
        stacked = torch.stack(found)
        error = stacked.std(0) / len(draws) ** 0.5
        assert torch.all((stacked.mean(0) - want).abs() < 4.8 * error + 1e-12)
        assert torch.any(error > 0)


def _seen(net, loss, x, y):
    from flattrain.core.functional import see
    from flattrain.core.layers import covered_layers

    return see(net, loss, x, y, layers=covered_layers(net))


def test_gradient_covariance():
    for name in ("mlp", "convolution", "tied"):
        net, x = zoo.build(name)
        loss = nn.CrossEntropyLoss()
        y = zoo.targets(net, x, loss)
        rows = []
        for i in range(len(x)):
            g = torch.autograd.grad(loss(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters()))
            rows.append(torch.cat([v.flatten() for v in g]))
        wanted = torch.stack(rows).var(0, correction=0).sum()
        mine = value_of(gradient_covariance_trace(), net, recognise(loss), x, y)
        torch.testing.assert_close(mine.detach(), wanted, rtol=1e-10, atol=0)


def test_laws():
    net, x = zoo.build("convolution")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    for measure in (fisher_rank(lam=LAM), fisher_rank(columns="sketch"), gauss_newton_trace()):
        vmap_is_loop(measure, net, x, y)
    on_batch_is_reduce(fisher_rank(lam=LAM), net, x, y)


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluation_in_ragged_batches_is_that_of_the_whole_set(weighted, monkeypatch):
    from flattrain.training import evaluate as module

    net, x = zoo.build("mlp")
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    loss = zoo.class_weights(net, x) if weighted else nn.CrossEntropyLoss()
    network = Network(net, recognise(loss), oracles.trainable(net), {})
    measures = [fisher_rank(lam=LAM), gauss_newton_trace(), gradient_covariance_trace()]
    whole = [evaluate(m, network, x, y, (0,)).value for m in measures]
    monkeypatch.setattr(module, "CHUNK", 3)
    parts = [evaluate(m, network, x, y, (0,)).value for m in measures]
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=0)


def ranks_of(net, x, y):
    loss = recognise(nn.CrossEntropyLoss())
    found = {"full": value_of(fisher_rank(lam=LAM), net, loss, x, y)}
    for way in ("block", "ekfac", "diagonal"):
        found[way] = value_of(block_rank(lam=LAM, approximation=way), net, loss, x, y)
    return {k: float(v) for k, v in found.items()}


@pytest.mark.parametrize("name", ["mlp", "convolution", "residual", "groups", "tied"])
def test_the_order_of_approximations(name):
    net, x = zoo.build(name)
    found = ranks_of(net, x, zoo.targets(net, x, nn.CrossEntropyLoss()))
    slack = 1 + 1e-12
    assert found["full"] <= found["block"] * slack <= found["ekfac"] * slack**2
    assert found["block"] <= found["diagonal"] * slack
    assert found["full"] < 0.99 * found["diagonal"]


def test_ekfac_keeps_the_trace_and_is_exact_for_one_example():
    net, x = zoo.build("convolution")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    loss = recognise(nn.CrossEntropyLoss())
    trace = value_of(block_rank(approximation="ekfac", phi="trace"), net, loss, x, y)
    torch.testing.assert_close(trace, value_of(gauss_newton_trace(), net, loss, x, y), rtol=1e-10, atol=0)
    net, x = zoo.build("mlp")
    found = ranks_of(net, x[:1], y[:1])
    assert found["ekfac"] == pytest.approx(found["block"], rel=1e-9)


def test_batches_are_below_the_whole_set():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    loss = recognise(nn.CrossEntropyLoss())
    whole = value_of(fisher_rank(lam=LAM), net, loss, x[:6], y[:6])
    parts = [value_of(fisher_rank(lam=LAM), net, loss, x[k : k + 2], y[k : k + 2]) for k in (0, 2, 4)]
    assert sum(parts) / 3 < 0.95 * whole
