"""Second Taylor coefficients against the dense Hessian: values, and gradients by reverse mode through it."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattrain.core.eager import LayerNorm
from flattrain.core.jet import Jet, along, second


class Lines(nn.Module):
    """A net whose forward is the given function of itself and x, for the ways code is written."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def tied():
    net = Lines(lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))),
                a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3))  # fmt: skip
    net.b.weight = net.a.weight
    return net


def residual(m, x):
    out = m.bn(m.conv(x))
    out += m.short(x)
    out = F.relu(out, inplace=True)
    out = torch.cat([out, F.max_pool2d(out, 3, 1, 1)], 1)
    return m.head(out.mean((2, 3)) / 2.0 + 1.0)


def arithmetic(m, x):
    h = m.a(x)
    h = h * torch.sigmoid(h) - 0.3 * h.T.contiguous().T + (1 - h) @ m.b.weight
    scale = h.detach().abs().max() if h.shape[0] > 1 and float(h.sum()) < 1e9 else 1
    h = torch.where(h > 0, h.pow(3), -2 / (2 + h.exp())) / scale
    top, _ = h.max(-1, keepdim=True)
    return m.b(torch.stack([h, top.expand_as(h)]).sum(0))


IMAGE = (3, 2, 4, 4)
CASES = {
    "tanh": (lambda: oracles.small_net("tanh", (4, 5, 4, 3)), (6, 4)),
    "relu": (lambda: oracles.small_net("relu", (4, 5, 4, 3)), (6, 4)),
    "softplus": (lambda: oracles.small_net("softplus", (4, 5, 4, 3)), (6, 4)),
    "tied": (tied, (6, 4)),
    "arithmetic": (lambda: Lines(arithmetic, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), (6, 4)),
    "residual": (
        lambda: Lines(residual, conv=nn.Conv2d(2, 3, 3, padding=1), bn=nn.BatchNorm2d(3),
                      short=nn.Conv2d(2, 3, 1, bias=False), head=nn.Linear(6, 3)).eval(), IMAGE),
    "batch norm in training": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)), (6, 4)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)), (6, 4)),
    "group norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)), (6, 4)),
    "sequence": (
        lambda: Lines(lambda m, x: m.head(m.norm(m.embed((x.abs() * 9).long() % 5)).mean(1)),
                      embed=nn.Embedding(5, 4), norm=LayerNorm(4), head=nn.Linear(4, 3)), (6, 3)),
    "attention": (
        lambda: Lines(lambda m, x: m.head(m.a(x, x, x, need_weights=False)[0].mean(1)),
                      a=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)), (3, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "loss", [F.cross_entropy, lambda z, y: (z - F.one_hot(y, z.shape[-1])).square().mean()]
)
def test_second_coefficients_are_quadratic_forms_of_the_dense_hessian(case, loss):
    build, shape = CASES[case]
    torch.manual_seed(1)
    net, x = build(), torch.randn(shape)
    if isinstance(net, Lines) and hasattr(net, "bn"):
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.5, 2)
    y = torch.arange(len(x)) % 3
    like = {k: p.detach() for k, p in net.named_parameters()}
    z = {k: torch.randn_like(p) for k, p in like.items()}
    buffers = dict(net.named_buffers())

    def copy():
        return {k: b.clone() for k, b in buffers.items()}

    with sdpa_kernel(SDPBackend.MATH):

        def value(v):
            return loss(functional_call(net, {**oracles.rebuild(v, like), **copy()}, (x,)), y)

        def dense(vector):
            if "norm" in case:  # torch's vmapped second derivatives of normalisations are wrong
                at = vector.clone().requires_grad_()
                (slope,) = torch.autograd.grad(value(at), at, create_graph=True)
                return torch.autograd.grad(slope @ oracles.flat(z), at)[0] @ oracles.flat(z)
            return oracles.flat(z) @ hessian(value)(vector) @ oracles.flat(z)

        live = {k: p.clone().requires_grad_() for k, p in like.items()}
        outputs = functional_call(net, {**along(live, z), **copy()}, (x,))
        assert isinstance(outputs, Jet) and torch.isfinite(outputs.c0).all()
        mine = second(loss(outputs, y))
        wanted = dense(oracles.flat(like))
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
        gradient = oracles.flat(
            dict(
                zip(live, torch.autograd.grad(mine, list(live.values()), materialize_grads=True), strict=True)
            )
        )
        if "norm" in case:  # and so are its third derivatives
            exact = oracles.finite_difference(dense, oracles.flat(like), 1e-3)
            torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))
        else:
            exact = torch.func.grad(dense)(oracles.flat(like))
            torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-11)


def test_what_carries_no_derivatives_is_refused_by_name():
    jet = Jet(torch.ones(3), torch.ones(3))
    with pytest.raises(NotImplementedError, match="__setitem__"):
        torch.zeros(3)[0] = jet[0]
    with pytest.raises(NotImplementedError, match="add_"):
        torch.zeros(3).add_(jet)
    with pytest.raises(NotImplementedError, match=r"\.data"):
        _ = jet.data
    assert float(second(torch.ones(()))) == 0 and float(second(jet.sum())) == 0


def test_in_place_operations_keep_the_primal():
    at, z = torch.tensor([2.0, -3.0], requires_grad=True), torch.tensor([1.0, 2.0])
    jet = Jet(at, z)
    same = jet.pow_(3)
    assert same is jet and torch.equal(at, torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(jet.c1, 3 * at.square() * z)
    torch.testing.assert_close(jet.c2, 6 * at * z.square())
