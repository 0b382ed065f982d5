"""Evaluations of the Hessian as an operator: its trace to a standard error of 5 %, and its top eigenvalue.

For the trace every method's cost per probe and the spread of one probe are measured; the time to 5 % is the
cost of (spread / 0.05)² probes. For the eigenvalue, the error is against Lanczos to 1e-8 in float64.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import lru_cache
from itertools import count

import torch

from benchmarks import peers
from benchmarks.cases import TRAINED, Group, Method, Problem, Work, problem
from flattrain.core.losses import cross_entropy
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.training.evaluate import evaluate
from flattrain.types import Measure, Network, Spectral

PROBES, DRAWS, GOAL = 10, 40, 0.05


def value_of(measure: Measure | Spectral, p: Problem, number: int) -> float:
    network = Network(p.net, cross_entropy, dict(p.net.named_parameters()), dict(p.net.named_buffers()))
    return float(evaluate(measure, network, p.x, p.y, (number,)).value)


def probing(estimate: Callable[[int], float]) -> Work:
    """estimate(k) is the mean of k fresh probes."""

    def found(ratio: float) -> dict[str, float]:
        draws = [estimate(1) for _ in range(DRAWS)]
        spread = statistics.stdev(draws) / abs(statistics.mean(draws))
        probes = max(2, math.ceil((spread / GOAL) ** 2))
        return {"spread of a probe, %": 100 * spread, "probes": probes, "to 5 %": probes * ratio}

    return Work(lambda: estimate(PROBES), scalar=lambda: estimate(1), found=found, units=PROBES)


def our_trace(make: Callable[[int], Measure]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        number = count()
        return probing(lambda k: value_of(make(k), p, next(number)))

    return work


def exact_trace(p: Problem) -> Work:
    def total() -> float:
        return value_of(gauss_newton_trace(), p, 0)

    return Work(
        total,
        scalar=total,
        found=lambda ratio: {"spread of a probe, %": 0.0, "probes": 1, "to 5 %": ratio},
    )


def by_pyhessian(p: Problem) -> Work:
    # A tolerance of −∞ disables its stop rule, which ends early when the running mean is negative.
    return probing(
        lambda k: statistics.mean(
            peers.pyhessian(p.net, p.x, p.y).trace(maxIter=k, tol=-math.inf),
        )
    )


def by_curvlinops(kind: str) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        from curvlinops import hutchinson_trace

        return probing(
            lambda k: float(hutchinson_trace(peers.curvlinops_operator(p.net, p.x, p.y, kind), num_matvecs=k))
        )

    return work


@lru_cache(maxsize=1)
def true_eigenvalue() -> float:
    return value_of(
        top_eigenvalue(tolerance=1e-8, max_products=400), problem(TRAINED, dtype=torch.float64), 0
    )


def seeking(solve: Callable[[int], float]) -> Work:
    """solve(number) starts from a vector of its own each time."""
    number, got = count(), []

    def found(ratio: float) -> dict[str, float]:
        truth = true_eigenvalue()
        errors = [abs(value / truth - 1) for value in got]
        return {"relative error": statistics.median(errors), "worst": max(errors)}

    return Work(lambda: got.append(solve(next(number))), found=found)


def our_eigenvalue(tolerance: float) -> Callable[[Problem], Work]:
    measure = top_eigenvalue(tolerance=tolerance)
    return lambda p: seeking(lambda number: value_of(measure, p, number))


def power_iteration(tolerance: float) -> Callable[[Problem], Work]:
    def solve(p: Problem) -> float:
        return float(peers.pyhessian(p.net, p.x, p.y).eigenvalues(maxIter=1000, tol=tolerance)[0][0])

    return lambda p: seeking(lambda number: solve(p))


def eigsh(ncv: int | None) -> Callable[[Problem], Work]:
    def solve(p: Problem, number: int) -> float:
        import numpy as np
        from scipy.sparse.linalg import eigsh

        operator = peers.curvlinops_operator(p.net, p.x, p.y, "hessian").to_scipy()
        start = np.random.default_rng(number).standard_normal(operator.shape[0]).astype(operator.dtype)
        return float(eigsh(operator, k=1, which="LA", tol=1e-3, ncv=ncv, v0=start)[0][0])

    return lambda p: seeking(lambda number: solve(p, number))


PEERS = (
    Method("PyHessian, Hutchinson", by_pyhessian, needs="pyhessian", check="mean"),
    Method("curvlinops, Hutchinson on H", by_curvlinops("hessian"), needs="curvlinops", check="mean"),
)
RELU = (
    Method("flattrain, exact Gauss–Newton", exact_trace, check="reference"),
    Method(
        "flattrain, Gauss–Newton sketches",
        our_trace(lambda k: gauss_newton_trace(columns="sketch", probes=k)),
        check="mean",
    ),
    Method("flattrain, Hutchinson", our_trace(lambda k: hessian_trace(probes=k)), check="mean"),
    *PEERS,
    Method("curvlinops, Hutchinson on the GGN", by_curvlinops("ggn"), needs="curvlinops", check="mean"),
    Method("BackPACK", cannot="diagonal"),
)
SMOOTH = (
    Method(
        "flattrain, exact Gauss–Newton + residual probes",
        our_trace(lambda k: hessian_trace(probes=k, form="control")),
        check="reference",
    ),
    Method("flattrain, Hutchinson", our_trace(lambda k: hessian_trace(probes=k)), check="mean"),
    *PEERS,
)
TOP = (
    Method("flattrain, Lanczos to a residual of 1e-3", our_eigenvalue(1e-3), check="none"),
    Method("flattrain, Lanczos to a residual of 3e-2", our_eigenvalue(3e-2), check="none"),
    Method("PyHessian, tol 1e-3 (default)", power_iteration(1e-3), needs="pyhessian", check="none"),
    Method("PyHessian, tol 1e-5", power_iteration(1e-5), needs="pyhessian", check="none"),
    Method("curvlinops + eigsh, tol 1e-3", eigsh(None), needs="curvlinops", check="none"),
    Method("curvlinops + eigsh, tol 1e-3, ncv 8", eigsh(8), needs="curvlinops", check="none"),
)
TITLE = "Trace of the Hessian to a standard error of 5 %: evaluation, cost per probe"
GROUPS = (
    Group("trace-relu", TITLE, "MLP", RELU),
    Group("trace-resnet", TITLE, "BN-ResNet, eval mode", RELU),
    Group("trace-tanh", TITLE, "MLP, tanh", SMOOTH),
    Group("top", "Top eigenvalue of the Hessian: evaluation", TRAINED, TOP, baseline="gradient"),
)
