"""Average-case sharpness by hand, its small-ρ limit by an explicit Hessian, its noise by its distribution."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from scipy import stats
from torch.func import functional_call
from torch.nn import functional as F

from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import draw, stream
from flattrain.measures.average_sharpness import average_sharpness
from flattrain.ranges import Refused


def named(rows, net):
    like = dict(net.named_parameters())
    return {f"{k}.{n}": p for k, row in enumerate(rows) for n, p in oracles.rebuild(row, like).items()}


def by_hand(net, x, y, rho, scale, normalise, rows, params):
    def loss(p):
        z = functional_call(net, p, (x,))
        if normalise:
            z = z - z.mean(1)[:, None]
            z = z / z.square().sum(1).sqrt()[:, None]
        return F.cross_entropy(z, y)

    total = 0
    for row in rows:
        step = oracles.rebuild(row, params)
        moved = {k: p + rho * step[k] * (p.abs() if scale == "adaptive" else 1) for k, p in params.items()}
        total = total + (loss(moved) - loss(params)) / len(rows)
    return total


@pytest.mark.parametrize("scale", ["plain", "adaptive"])
@pytest.mark.parametrize("logits", ["raw", "normalised"])
def test_value_and_gradient_are_those_of_the_definition(scale, logits):
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    size = sum(p.numel() for p in net.parameters())
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(5))
    measure = average_sharpness(rho=0.2, scale=scale, logits=logits, probes=3)
    gradient_is_that_of(
        lambda p: by_hand(net, x, y, 0.2, scale, logits == "normalised", rows, p),
        measure,
        net,
        x,
        y,
        noise=named(rows, net),
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_small_rho_gives_the_trace_of_the_scaled_hessian(norm):
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    w = oracles.flat(dict(net.named_parameters())).detach()
    size, rho = len(w), 2e-3
    # ±e_k over all k: the first order cancels, and the mean over 2P probes of εᵀDHDε is Tr(DHD)/P.
    unit = torch.erfinv(torch.tensor(0.5)) * 2**0.5 if norm == "linf" else torch.tensor(0.5)
    rows = torch.cat([unit * torch.eye(size), -unit * torch.eye(size)])
    for scale, d in (("adaptive", w.abs()), ("plain", torch.ones(size))):
        measure = average_sharpness(rho=rho, scale=scale, norm=norm, probes=2 * size)
        found = value_of(measure, net, cross_entropy, x, y, noise=named(rows, net)).detach()
        wanted = rho**2 / 2 * 0.25 / size * (d * h.diagonal() * d).sum()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_linf_noise_is_uniform_and_l2_noise_normal():
    """A linear loss reads the noise back: with outputs as loss the rise is ρε."""
    from flattrain.core.losses import recognise

    net = torch.nn.Linear(1, 1, bias=False)
    x, y = torch.ones(1, 1), torch.zeros(1)
    linear = recognise(lambda z, y: z.mean())
    for norm, distribution in (("linf", stats.uniform(-1, 2)), ("l2", stats.norm())):
        measure = average_sharpness(rho=0.5, scale="plain", norm=norm, probes=3000)
        seen = see(net, linear, x, y)
        with torch.no_grad():
            rises = measure.statistic(seen, draw(measure.draws(seen), stream(1), x.dtype))["rise"]
        assert stats.kstest((rises / 0.5).numpy(), distribution.cdf).pvalue > 0.01


def test_the_limit_lies_within_the_standard_error():
    net, (x, y) = oracles.small_net(), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    w = oracles.flat(dict(net.named_parameters())).detach()
    measure = average_sharpness(rho=0.05, probes=1500)
    seen = see(net, cross_entropy, x, y)
    with torch.no_grad():
        found = measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(2), x.dtype)))
    assert found.standard_error > 0
    assert abs(found.value - 0.05**2 / 2 * (w * w * h.diagonal()).sum()) < 4 * found.standard_error


def test_adaptive_noise_and_normalised_logits_ignore_what_leaves_the_function_alone():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    rows = torch.randn(
        2, sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(5)
    )

    def value(**settings):
        measure = average_sharpness(rho=0.3, probes=2, **settings)
        return float(value_of(measure, net, cross_entropy, x, y, noise=named(rows, net)).detach())

    before, plain = value(), value(scale="plain")
    with torch.no_grad():
        c = torch.tensor([0.2, 3.0, 1.0, 5.0, 0.5])  # unit by unit
        net.hidden1.weight.mul_(c[:, None])
        net.hidden1.bias.mul_(c)
        net.head.weight.div_(c)
    assert value() == pytest.approx(before, rel=1e-10)
    assert value(scale="plain") != pytest.approx(plain, rel=1e-2)
    before, raw = value(logits="normalised"), value()
    with torch.no_grad():
        net.head.weight.mul_(3)
        net.head.bias.mul_(3)
    assert value(logits="normalised") == pytest.approx(before, rel=1e-10)
    assert value() != pytest.approx(raw, rel=1e-2)


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    rows = torch.randn(
        2, sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(5)
    )
    for settings in ({}, {"norm": "linf", "logits": "normalised", "scale": "plain"}):
        measure = average_sharpness(probes=2, **settings)
        one_batch_is_many(measure, net, x, y, noise=named(rows, net))
        vmap_is_loop(measure, net, x, y)


def test_refusals():
    with pytest.raises(Refused, match="rho must be a number > 0"):
        average_sharpness(rho=0)
    with pytest.raises(Refused, match="scale must be one of 'plain', 'adaptive'"):
        average_sharpness(scale="relative")
