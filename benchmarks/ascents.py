"""Training steps with every example at ascended weights of its own: per-example SAM (m = 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, vmap
from torch.func import functional_call, grad
from torch.nn import functional as F

from benchmarks.cases import RATE, Group, Method, Problem, Work, training
from flattrain.core.ghost_sam import per_example_sam
from flattrain.core.losses import cross_entropy

RHO = 0.05


def ghost(p: Problem) -> Work:
    return training(p, lambda: (per_example_sam(p.net, cross_entropy, p.x, p.y, rho=RHO).loss, 0.0))


def _flat(net: Any) -> Tensor:
    return torch.cat([t.grad.flatten() for t in net.parameters()])


def _by_gradients(p: Problem, gradients: Any) -> Work:
    """A step whose gradients `gradients()` leaves in `.grad`."""
    optimizer = torch.optim.SGD(p.net.parameters(), lr=RATE, momentum=0.9)

    def step() -> None:
        gradients()
        optimizer.step()

    def value() -> Tensor:
        gradients()
        return _flat(p.net)

    return Work(step, value)


def loop(p: Problem) -> Work:
    live = list(p.net.parameters())

    def gradients() -> None:
        total = [torch.zeros_like(t) for t in live]
        for i in range(len(p.x)):
            x, y = p.x[i : i + 1], p.y[i : i + 1]
            before = [t.detach().clone() for t in live]
            up = torch.autograd.grad(F.cross_entropy(p.net(x), y), live)
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in up]))
            with torch.no_grad():
                torch._foreach_add_(live, torch._foreach_mul(up, float(RHO / norm)))
            at = torch.autograd.grad(F.cross_entropy(p.net(x), y), live)
            with torch.no_grad():
                torch._foreach_copy_(live, before)
                torch._foreach_add_(total, at, alpha=1 / len(p.x))
        for t, g in zip(live, total, strict=True):
            t.grad = g

    return _by_gradients(p, gradients)


def vectorised(p: Problem) -> Work:
    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(p.net, params, (x[None],)), y[None])

    def ascended(params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        up = grad(loss)(params, x, y)
        scale = RHO / torch.stack([g.square().sum() for g in up.values()]).sum().sqrt()
        return grad(loss)({k: t + scale * up[k] for k, t in params.items()}, x, y)

    def gradients() -> None:
        params = {k: t.detach() for k, t in p.net.named_parameters()}
        found = vmap(ascended, (None, 0, 0))(params, p.x, p.y)
        for k, t in p.net.named_parameters():
            t.grad = found[k].mean(0)

    return _by_gradients(p, gradients)


EACH = (
    Method("flattrain, ghost", ghost, check="reference"),
    Method("PyTorch, loop over examples", loop),
    Method("PyTorch, vmap(grad)", vectorised),
)
GROUPS = (
    Group("each-mlp", "Per-example SAM (m = 1): training step", "MLP", EACH),
    Group("each-resnet", "Per-example SAM (m = 1): training step", "ResNet-20, no norm", EACH),
)
