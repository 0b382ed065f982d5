"""Steps of the SAM family by optimizers: ours, and those that people use today.

Every row takes both passes through the network's own forward and backward and steps by SGD with momentum. The
*widespread SAM* is the algorithm of davda54/sam, written anew: a clone of the weights, e = ρ g/‖g‖ as tensors
of its own, and the clone put in the place of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import RATE, Group, Method, Problem, Work
from flattrain.optim import ASAM, GSAM, SAM, WSAM, FriendlySAM, GradientNormPenalty, LookSAM, StableSAM

RHO = 0.05
SGD = {"lr": RATE, "momentum": 0.9}
PORT = "pytorch_optimizer"


def _closure(p: Problem) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = F.cross_entropy(p.net(p.x), p.y)
        loss.backward()
        return loss

    return closure


def _work(p: Problem, step: Callable[[], object], units: int = 1) -> Work:
    def value() -> Tensor:
        step()
        return torch.cat([t.grad.flatten() for t in p.net.parameters()])

    return Work(step, value, units=units)


def ours(kind: Any, units: int = 1, **settings: Any) -> Callable[[Problem], Work]:
    def build(p: Problem) -> Work:
        optimizer = kind(p.net.named_parameters(), torch.optim.SGD, rho=RHO, **settings, **SGD)
        closure = _closure(p)

        def step() -> None:
            for _ in range(units):
                optimizer.step(closure)

        return _work(p, step, units)

    return build


def by_hand(p: Problem) -> Work:
    """Two gradients and three sweeps, with nothing checked and the weights put back by subtraction."""
    live = list(p.net.parameters())
    optimizer = torch.optim.SGD(live, **SGD)

    def step() -> None:
        up = torch.autograd.grad(F.cross_entropy(p.net(p.x), p.y), live)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(up)))
        moves = torch._foreach_mul(up, float(RHO / norm))
        with torch.no_grad():
            torch._foreach_add_(live, moves)
        at = torch.autograd.grad(F.cross_entropy(p.net(p.x), p.y), live)
        with torch.no_grad():
            torch._foreach_sub_(live, moves)
        for t, g in zip(live, at, strict=True):
            t.grad = g
        optimizer.step()

    return _work(p, step)


def widespread(p: Problem) -> Work:
    live = list(p.net.parameters())
    optimizer, closure = torch.optim.SGD(live, **SGD), _closure(p)

    def step() -> None:
        optimizer.zero_grad()
        closure()
        with torch.no_grad():
            norm = torch.norm(torch.stack([t.grad.norm(p=2) for t in live]), p=2)
            scale, before = RHO / (norm + 1e-12), [t.data.clone() for t in live]
            for t in live:
                t.add_(t.grad * scale.to(t))
        optimizer.zero_grad()
        closure()
        for t, old in zip(live, before, strict=True):
            t.data = old
        optimizer.step()

    return _work(p, step)


def ported(name: str, units: int = 1, **settings: Any) -> Callable[[Problem], Work]:
    """One of pytorch_optimizer, as its documentation uses it: a first backward, then step(closure)."""

    def build(p: Problem) -> Work:
        import pytorch_optimizer

        kind = getattr(pytorch_optimizer, name)
        optimizer, closure = (
            kind(p.net.parameters(), torch.optim.SGD, rho=RHO, **settings, **SGD),
            _closure(p),
        )

        def step() -> None:
            for _ in range(units):
                optimizer.zero_grad()
                closure()
                optimizer.step(closure)

        return _work(p, step, units)

    return build


PLAIN = (
    Method("flattrain SAM", ours(SAM), check="reference"),
    Method("two gradients by hand", by_hand),
    Method("widespread SAM", widespread),
    Method("pytorch_optimizer SAM", ported("SAM"), needs=PORT),
)
OTHERS = "its own convention"
FAMILY = (
    Method("flattrain LookSAM, k = 5", ours(LookSAM, 5, every=5), check="none"),
    Method("pytorch_optimizer LookSAM, k = 5", ported("LookSAM", 5, k=5), PORT, "", "none", OTHERS),
    Method("flattrain ASAM", ours(ASAM), check="none"),
    Method("pytorch_optimizer adaptive SAM", ported("SAM", adaptive=True), PORT, "", "none", OTHERS),
    Method("flattrain FriendlySAM", ours(FriendlySAM), check="none"),
    Method("pytorch_optimizer FriendlySAM", ported("FriendlySAM"), PORT, "", "none", OTHERS),
    Method("flattrain GSAM", ours(GSAM), check="none"),
    Method("flattrain WSAM", ours(WSAM), check="none"),
    Method("flattrain GradientNormPenalty", ours(GradientNormPenalty), check="none"),
    Method("flattrain StableSAM", ours(StableSAM), check="none"),
)
GROUPS = (
    Group("sam-mlp", "SAM: training step", "MLP", PLAIN, 1e-7),
    Group("sam-resnet", "SAM: training step", "BN-ResNet, train mode", PLAIN, 1e-6),
    Group("family-mlp", "The SAM family: training step", "MLP", FAMILY),
    Group("family-resnet", "The SAM family: training step", "BN-ResNet, train mode", FAMILY),
)
