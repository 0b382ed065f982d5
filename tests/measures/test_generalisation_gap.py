"""Gap estimates against dense matrices, and the gap itself where it is known: ridge regression."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import value_of
from torch import nn

from flattrain.core.functional import see
from flattrain.core.layers import covered_layers
from flattrain.core.losses import recognise
from flattrain.measures.generalisation_gap import gap_estimate, gap_report, gap_statistic
from flattrain.training.evaluate import evaluate
from flattrain.types import Network

LAM = 0.05


def dense(net, loss, x, y):
    params = oracles.trainable(net)
    f = oracles.fisher(net, loss, x, y, params)
    rows = []
    for i in range(len(x)):
        g = torch.autograd.grad(loss(net(x[i : i + 1]), y[i : i + 1]), [*net.parameters()])
        rows.append(torch.cat([v.flatten() for v in g]))
    rows = torch.stack(rows)
    theta = torch.cat([p.flatten() for p in params.values()])
    return f, rows, theta


@pytest.mark.parametrize("name", ["mlp", "convolution", "tied"])
def test_estimates_are_those_of_dense_matrices(name):
    net, x = zoo.build(name)
    loss = nn.CrossEntropyLoss()
    y = zoo.targets(net, x, loss)
    f, rows, theta = dense(net, loss, x, y)
    n, p = rows.shape
    c = torch.cov(rows.T, correction=0)
    inverse = torch.linalg.inv(f + LAM * torch.eye(p))
    rank = torch.trace(f @ inverse) / n
    kappa = torch.trace(c) / torch.trace(f)
    wanted = {"tic": torch.trace(c @ inverse) / n, "rank": rank, "kappa_rank": kappa * rank}
    for kind, value in wanted.items():
        mine = value_of(gap_estimate(kind=kind, lam=LAM), net, recognise(loss), x, y)
        assert float(mine) == pytest.approx(float(value), rel=1e-9), kind
    seen = see(net, recognise(loss), x, y, layers=covered_layers(net))
    report = gap_report(gap_statistic(seen, {}, "refuse"), LAM)
    assert report.kappa == pytest.approx(float(kappa), rel=1e-9)
    gradient = rows.mean(0) + LAM * theta
    assert report.stationarity == pytest.approx(float(gradient.norm()), rel=1e-8)
    assert report.relative_lam == pytest.approx(LAM / float(torch.linalg.eigvalsh(f)[-1]), rel=1e-9)
    assert report.most == min(p, n * (net(x).shape[1] - 1))
    assert any("not at a minimiser" in caution for caution in report.cautions)


def test_batches_give_the_value_of_the_whole_set(monkeypatch):
    from flattrain.training import evaluate as module

    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    network = Network(net, recognise(nn.CrossEntropyLoss()), oracles.trainable(net), {})
    whole = evaluate(gap_estimate(kind="tic", lam=LAM), network, x, y, (0,)).value
    monkeypatch.setattr(module, "CHUNK", 3)
    parts = evaluate(gap_estimate(kind="tic", lam=LAM), network, x, y, (0,)).value
    assert parts == pytest.approx(whole, rel=1e-11)


def test_ridge_regression_has_the_gap_of_its_effective_parameters():
    """Fixed design, unit noise, half squared error: the in-sample gap is rank_λ(XᵀX/n)/n exactly."""
    from flattrain.types import Loss

    n, d, repeats = 40, 6, 4000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    truth = torch.randn(d, generator=generator)
    half = Loss("half", lambda z, y: (z - y).square().mean() / 2, factor=lambda z: torch.ones(len(z), 1, 1))
    noise = torch.randn(repeats, n, generator=generator)
    again = torch.randn(repeats, n, generator=generator)
    solve = torch.linalg.solve(x.T @ x / n + LAM * torch.eye(d), x.T / n)
    y = x @ truth + noise
    residual = y - y @ solve.T @ x.T
    gap = ((residual - noise + again).square() - residual.square()).mean(1) / 2
    net = nn.Sequential(nn.Linear(d, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_((y[0] @ solve.T)[None])
    mine = value_of(gap_estimate(kind="rank", lam=LAM), net, half, x, y[0][:, None])
    error = float(gap.std() / repeats**0.5)
    assert abs(float(mine) - float(gap.mean())) < 4 * error
    assert error < 0.05 * float(mine)


def test_over_confidence_is_said():
    net, x = zoo.build("mlp")
    with torch.no_grad():
        net[2].weight *= 0.01
    y = net(x).argmax(1)
    seen = see(net, recognise(nn.CrossEntropyLoss()), x, y, layers=covered_layers(net))
    report = gap_report(gap_statistic(seen, {}, "refuse"), LAM)
    assert report.kappa > 0.0
    with torch.no_grad():
        net[2].weight *= 800
        y = net(x).argmax(1)
    seen = see(net, recognise(nn.CrossEntropyLoss()), x, y, layers=covered_layers(net))
    report = gap_report(gap_statistic(seen, {}, "refuse"), LAM)
    assert any("over-confident" in caution for caution in report.cautions), report
