"""Kronecker factors of the Fisher of all layers, as an evaluation: exact, and by one sketch or drawn label.

What is compared is A ⊗ B: the directions of both factors and the product of their norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.cases import Group, Method, Problem, Work
from flattrain.core.losses import cross_entropy
from flattrain.measures.soft_rank import soft_rank
from flattrain.training.evaluate import evaluate
from flattrain.types import Estimate, Network


def ours(columns: Literal["exact", "sketch"]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        # The soft rank's statistic is the factors; here they are all that is wanted of it.
        measure = replace(soft_rank(columns=columns), reduce=lambda s: Estimate(s))
        network = Network(p.net, cross_entropy, dict(p.net.named_parameters()), {})
        number = count()

        def factors() -> peers.Factors:
            found = evaluate(measure, network, p.x, p.y, (next(number),)).value
            pairs = [(found[k][0], found[f"{k[:-2]}.B"][0]) for k in found if k.endswith(".A")]
            return {str(k): pair for k, pair in enumerate(pairs)}

        return as_work(factors)

    return work


def by(
    take: Callable[[torch.nn.Module, Tensor, Tensor, str], peers.Factors], kind: str
) -> Callable[[Problem], Work]:
    return lambda p: as_work(lambda: take(p.net, p.x, p.y, kind))


def by_backpack(kind: Literal["exact", "mc"]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        net, loss_fn = peers.backpacked(p.net)
        return as_work(lambda: peers.backpack_factors(net, loss_fn, p.x, p.y, kind))

    return work


def as_work(factors: Callable[[], peers.Factors]) -> Work:
    return Work(
        factors,
        lambda: invariants(factors()),
        lambda: float(torch.stack([(a.trace() * b.trace()).detach() for a, b in factors().values()]).sum()),
    )


def invariants(factors: peers.Factors) -> Tensor:
    """Per layer A/‖A‖, B/‖B‖ and log ‖A‖‖B‖, which determine A ⊗ B."""
    parts = []
    for a, b in factors.values():
        norms = a.norm(), b.norm()
        parts += [a.flatten() / norms[0], b.flatten() / norms[1], (norms[0] * norms[1]).log()[None]]
    return torch.cat(parts).detach()


EXACT = (
    Method("flattrain, exact", ours("exact"), check="reference"),
    Method("curvlinops type-2", by(peers.curvlinops_factors, "type-2"), needs="curvlinops"),
    Method("nngeometry, exact", by(peers.nngeometry_factors, "exact"), needs="nngeometry"),
    Method("laplace AsdlGGN, exact", by(peers.laplace_factors, "exact"), needs="laplace"),
)
NOISY = (
    Method("flattrain, one sketch", ours("sketch"), check="mean"),
    Method(
        "curvlinops mc",
        by(peers.curvlinops_factors, "mc"),
        needs="curvlinops",
        check="none",
        remark="the same labels in every call",
    ),
    Method("nngeometry, Monte Carlo", by(peers.nngeometry_factors, "mc"), needs="nngeometry", check="mean"),
    Method("laplace AsdlGGN, stochastic", by(peers.laplace_factors, "mc"), needs="laplace", check="mean"),
)
PACKED = Method("BackPACK KFLR", by_backpack("exact"), needs="backpack")
PACKED_NOISY = Method("BackPACK KFAC, one sample", by_backpack("mc"), needs="backpack", check="mean")
OTHER = Method("BackPACK KFLR, KFAC", cannot="convention")
TITLE = "KFAC factors of all layers: evaluation"
GROUPS = (
    Group("factors-mlp", TITLE, "MLP, no biases", (*EXACT, PACKED, *NOISY, PACKED_NOISY)),
    Group("factors-resnet", TITLE, "ResNet-20, no norm", (*EXACT, *NOISY, OTHER)),
)
