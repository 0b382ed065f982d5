"""Kronecker factors of shared weights against their definitions, from explicit per-position gradients."""

from __future__ import annotations

import pytest
import torch
import zoo
from laws import on_batch_is_reduce, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.nn import functional as F

from flattrain.core.functional import see
from flattrain.core.kfac import factors
from flattrain.core.layers import covered_layers
from flattrain.core.losses import recognise
from flattrain.measures.soft_rank import soft_rank

LOSS = nn.CrossEntropyLoss()


def positions(net, x, y):
    """{layer: (φ' (n, S, D), g (K, n, S, K'))} of linear and plain convolutional layers, by F.unfold."""
    seen = see(net, recognise(LOSS), x, y, layers=[n for n, m in net.named_modules() if _plain(m)])
    p = seen.outputs.softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
    out = {}
    for name, tap in seen.taps.items():
        grads = []
        for c in range(root.shape[-1]):
            (g,) = torch.autograd.grad(seen.outputs, tap.output, root[..., c], retain_graph=True)
            grads.append(g)
        g = torch.stack(grads)
        if isinstance(tap.module, nn.Conv2d):
            m = tap.module
            phi = F.unfold(tap.input, m.kernel_size, m.dilation, m.padding, m.stride).transpose(1, 2)
            g = g.flatten(3).transpose(2, 3)
        else:
            phi = tap.input if tap.input.ndim == 3 else tap.input[:, None]
            g = g if g.ndim == 4 else g[:, :, None]
        if tap.bias is not None:
            phi = torch.cat([phi, torch.ones(*phi.shape[:2], 1)], -1)
        out[name] = (phi, g)
    return out


def _plain(module):
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["mlp", "convolution", "padded", "transformer"])
def test_factors_are_their_definitions(name, sharing):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSS)
    explicit = positions(net, x, y)
    seen = see(net, recognise(LOSS), x, y, layers=list(explicit))
    mine = factors(seen, sharing=sharing, uncovered="ignore")
    assert set(mine) == set(explicit)
    for layer, (phi, g) in explicit.items():
        n, s = phi.shape[:2]
        if sharing == "reduce":
            phi, g = phi.mean(1, keepdim=True), g.sum(2, keepdim=True)
        a = sum(torch.outer(phi[i, t], phi[i, t]) for i in range(n) for t in range(phi.shape[1]))
        a = a / n / (s if sharing == "expand" else 1)
        b = sum(torch.outer(v, v) for v in g.reshape(-1, g.shape[-1])) / n
        torch.testing.assert_close(mine[layer][0].matrix()[0], a, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(mine[layer][1].matrix()[0], b, rtol=1e-11, atol=1e-13)


def test_grouped_convolutions_are_a_layer_per_group():
    net, x = zoo.build("convolution")
    seen = see(net, recognise(LOSS), x, zoo.targets(net, x, LOSS), layers=["two"])
    a, b = (f.matrix() for f in factors(seen, uncovered="ignore")["two"])
    assert a.shape == (2, 8, 8) and b.shape == (2, 2, 2)


def test_a_linear_net_under_squared_error_is_exact():
    """KFAC (expand) is exact for deep linear nets under squared error."""
    from flattrain.measures.block_rank import block_rank

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    criterion = recognise(nn.MSELoss())
    kfac = value_of(soft_rank(lam=0.05), net, criterion, x, y)
    torch.testing.assert_close(kfac, value_of(block_rank(lam=0.05), net, criterion, x, y), rtol=1e-10, atol=0)


@pytest.mark.parametrize("phi", ["logdet", "power", "trace"])
def test_other_penalties_by_the_explicit_kronecker_product(phi):
    net, x = zoo.build("convolution")
    y = zoo.targets(net, x, LOSS)
    measure = soft_rank(lam=0.05, phi=phi, layers=("one",))
    a, b = (
        f.matrix()[0]
        for f in factors(see(net, recognise(LOSS), x, y, layers=["one"]), uncovered="ignore")["one"]
    )
    values = torch.linalg.eigvalsh(torch.kron(a, b)).clamp(min=0)
    wanted = {"logdet": (1 + values / 0.05).log(), "power": values.sqrt(), "trace": values}[phi].sum()
    mine = value_of(measure, net, recognise(LOSS), x, y)
    torch.testing.assert_close(mine, wanted, rtol=1e-6 if phi == "power" else 1e-10, atol=0)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["convolution", "padded", "tied"])
def test_laws_for_shared_weights(name, sharing):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSS)
    on_batch_is_reduce(soft_rank(lam=0.05, sharing=sharing), net, x, y)
    if name != "tied":
        vmap_is_loop(soft_rank(lam=0.05, sharing=sharing, columns="sketch"), net, x, y)


def test_columns_one_after_the_other_are_columns_together():
    """Factors of convolutions that are not differentiated are summed column by column."""
    net, x = zoo.build("residual")
    y = zoo.targets(net, x, LOSS)
    seen = see(net, recognise(LOSS), x, y, layers=covered_layers(net))
    together = factors(seen)
    apart = factors(seen._replace(differentiable=False))
    assert list(apart) == list(together)
    summed = 0
    for layer, (a, b) in together.items():
        torch.testing.assert_close(apart[layer][0].matrix(), a.matrix(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(apart[layer][1].matrix(), b.matrix(), rtol=1e-12, atol=1e-13)
        summed += b.rows is not None and apart[layer][1].rows is None
    assert summed


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["mlp", "convolution", "padded", "tied"])
def test_an_ignored_example_is_not_there(name, sharing):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSS).clamp(min=1)
    y[1] = y[4] = 0
    measure, criterion = soft_rank(lam=0.05, sharing=sharing), recognise(nn.CrossEntropyLoss(ignore_index=0))
    kept = y > 0
    wanted = value_of(measure, net, recognise(LOSS), x[kept], y[kept])
    torch.testing.assert_close(value_of(measure, net, criterion, x, y), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["convolution", "padded", "tied", "transformer"])
def test_weighted_batches_combine(name):
    net, x = zoo.build(name)
    criterion = recognise(zoo.class_weights(net, x))
    measure = soft_rank(lam=0.05, uncovered="ignore")
    one_batch_is_many(measure, net, x, zoo.targets(net, x, LOSS), criterion)
