"""Training steps with a curvature penalty: loss + weight · penalty, backward, SGD with momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.cases import Group, Method, Problem, Work, training
from flattrain.regularizers import (
    FisherRank,
    GaussNewtonTrace,
    HessianTrace,
    Penalty,
    Regularized,
    RelativeFlatness,
    SoftRank,
)

LAM = 1e-2  # of the soft ranks, the default


def ours(make: Callable[[float], Penalty]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        penalty = make(p.weight)
        objective = Regularized(p.net, F.cross_entropy, [penalty])

        def total() -> tuple[Tensor, float]:
            loss = objective(p.x, p.y)
            return loss, float(objective.logs[penalty.measure.name])

        return training(p, total)

    return work


def by_backpack(extension: str, penalty: Callable[[Any], Tensor]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        objective = peers.backpack_objective(p.net, p.x, p.y, extension, penalty)

        def total() -> tuple[Tensor, float]:
            loss, value = objective()
            return loss + p.weight * value, float(value.detach())

        return training(p, total)

    return work


def kronecker_soft_rank(factors: list[Tensor]) -> Tensor:
    """Σ_ij a_i b_j / (a_i b_j + λ) from BackPACK's factors [B, A] of a weight."""
    b, a = (torch.linalg.eigvalsh(factor).clamp(min=0) for factor in factors)
    spectrum = a[:, None] * b
    return (spectrum / (spectrum + LAM)).sum()


def by_hand(penalty: Callable[[Problem, Tensor], Tensor]) -> Callable[[Problem], Work]:
    """In plain PyTorch; penalty(problem, loss) is on the graph of the loss."""

    def work(p: Problem) -> Work:
        def total() -> tuple[Tensor, float]:
            loss = F.cross_entropy(p.net(p.x), p.y)
            value = penalty(p, loss)
            return loss + p.weight * value, float(value.detach())

        return training(p, total)

    return work


def head_hessian(p: Problem, loss: Tensor) -> Tensor:
    """Σ ⟨w_s, w_t⟩ Tr H_st from the head's whole Hessian, the released way of relative flatness."""
    head, features = p.net.head, p.x
    for part in list(p.net.children())[:-1]:
        features = part(features)

    def of_head(weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, weight, head.bias), p.y)

    h = torch.autograd.functional.hessian(of_head, head.weight, create_graph=True, vectorize=True)
    return ((head.weight @ head.weight.T) * h.diagonal(dim1=1, dim2=3).sum(-1)).sum()


def hutchinson(p: Problem, loss: Tensor) -> Tensor:
    """zᵀHz with one probe, by double backward."""
    live = list(p.net.parameters())
    gradient = torch.autograd.grad(loss, live, create_graph=True)
    z = [torch.randint_like(t, 2) * 2 - 1 for t in live]
    product = torch.autograd.grad(gradient, live, z, create_graph=True)
    return torch.stack([(a * b).sum() for a, b in zip(z, product, strict=True)]).sum()


DETACHED = Method("PyHessian, curvlinops, nngeometry, laplace", cannot="detached")
NO_BACKPACK = Method("BackPACK", cannot="absent")
RESIDUAL = Method("BackPACK KFLR", cannot="shortcuts")

HEAD = (
    Method("flattrain, closed form", ours(lambda w: RelativeFlatness("head", weight=w)), check="reference"),
    Method("PyTorch, the head's Hessian", by_hand(head_hessian)),
    NO_BACKPACK,
    DETACHED,
)
HIDDEN = (
    Method(
        "flattrain, exact (ReLU tail)",
        ours(lambda w: RelativeFlatness("hidden2", weight=w, form="relu")),
        check="reference",
    ),
    Method(
        "flattrain, one probe", ours(lambda w: RelativeFlatness("hidden2", weight=w, probes=1)), check="mean"
    ),
    NO_BACKPACK,
    DETACHED,
)
RANK = (
    Method("flattrain, exact", ours(lambda w: SoftRank(weight=w, lam=LAM)), check="reference"),
    Method(
        "flattrain, sketch",
        ours(lambda w: SoftRank(weight=w, lam=LAM, columns="sketch")),
        check="none",
        remark="biased low",
    ),
)
KFLR = Method("BackPACK KFLR, eigvalsh", by_backpack("KFLR", kronecker_soft_rank), needs="backpack")
FISHER_SKETCH = ours(lambda w: FisherRank(weight=w, lam=LAM, columns="sketch"))
FISHER = (
    Method(
        "flattrain, exact",
        ours(lambda w: FisherRank(weight=w, lam=LAM, columns="exact")),
        check="reference",
    ),
    Method("flattrain, sketch", FISHER_SKETCH, check="none", remark="biased low"),
    NO_BACKPACK,
    DETACHED,
)
EXACT_TRACE = Method(
    "flattrain, exact", ours(lambda w: GaussNewtonTrace(weight=w, columns="exact")), check="reference"
)
TRACE = (
    EXACT_TRACE,
    Method("flattrain, one sketch", ours(lambda w: GaussNewtonTrace(weight=w)), check="mean"),
)
PACKED_TRACE = (
    Method(
        "BackPACK DiagGGNExact",
        by_backpack("DiagGGNExact", torch.sum),
        needs="backpack",
    ),
    Method(
        "BackPACK DiagGGNMC, one sample",
        by_backpack("DiagGGNMC", torch.sum),
        needs="backpack",
        check="mean",
        remark="biased in gradient: its labels are drawn and detached",
    ),
)
HESSIAN = (
    Method(
        "flattrain, exact Gauss–Newton",
        EXACT_TRACE.work,
        check="reference",
        remark="Tr H = Tr G in a ReLU net",
    ),
    Method("flattrain, one probe", ours(lambda w: HessianTrace(weight=w, probes=1)), check="mean"),
    Method("PyTorch, one probe by double backward", by_hand(hutchinson), check="mean"),
    DETACHED,
)

BARE, EVAL, NORMLESS = "MLP, no biases", "BN-ResNet, eval mode", "ResNet-20, no norm"
GROUPS = (
    Group("head-mlp", "Relative flatness of the head: training step", "MLP", HEAD),
    Group("head-resnet", "Relative flatness of the head: training step", "BN-ResNet, train mode", HEAD),
    Group("hidden-mlp", "Relative flatness of the hidden 256×512 layer: training step", "MLP", HIDDEN),
    Group("rank-mlp", "KFAC soft rank of all layers: training step", BARE, (*RANK, KFLR, DETACHED), 1e-6),
    Group(
        "rank-resnet", "KFAC soft rank of all layers: training step", NORMLESS, (*RANK, RESIDUAL, DETACHED)
    ),
    Group("fisher-mlp", "Soft rank of the whole net's Fisher: training step", "MLP", FISHER),
    Group("fisher-resnet", "Soft rank of the whole net's Fisher: training step", EVAL, FISHER),
    Group("ggn-mlp", "Gauss–Newton trace: training step", "MLP", (*TRACE, *PACKED_TRACE, DETACHED)),
    Group("ggn-resnet", "Gauss–Newton trace: training step", EVAL, (*TRACE, *PACKED_TRACE, DETACHED)),
    Group("hessian-mlp", "Trace of the full Hessian: training step", "MLP", HESSIAN),
    Group("hessian-resnet", "Trace of the full Hessian: training step", EVAL, HESSIAN),
)
