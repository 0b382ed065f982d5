"""The top eigenvalue of a trained net's Hessian: its price in gradients, and the error reached.

Tolerances mean different things: the residual in Lanczos and eigsh, the change between iterations in power
iteration. What counts is the true relative error, against Lanczos to a residual of 1e-8 in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache
from itertools import count

import torch

from benchmarks import peers
from benchmarks.cases import TRAINED, Group, Method, Problem, Work, problem
from flattrain.core.losses import cross_entropy
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


def lanczos(p: Problem, tolerance: float, number: int) -> float:
    network = Network(p.net, cross_entropy, dict(p.net.named_parameters()), {})
    measure = top_eigenvalue(tolerance=tolerance, max_products=400)
    return float(evaluate(measure, network, p.x, p.y, (number,)).value)


@lru_cache(maxsize=1)
def truth(network: str) -> float:
    return lanczos(problem(network, torch.float64), 1e-8, 0)


def power_iteration(p: Problem, tolerance: float, number: int) -> float:
    return float(peers.pyhessian(p.net, p.x, p.y).eigenvalues(maxIter=1000, tol=tolerance)[0][0])


def eigsh(p: Problem, ncv: int | None, number: int) -> float:
    import numpy as np
    from scipy.sparse.linalg import eigsh as solve

    operator = peers.curvlinops_operator(p.net, p.x, p.y, "hessian").to_scipy()
    start = np.random.default_rng(number).standard_normal(operator.shape[0]).astype(operator.dtype)
    return float(solve(operator, k=1, which="LA", tol=1e-3, ncv=ncv, v0=start)[0][0])


def seeking(solve: Callable[[Problem, int], float]) -> Callable[[Problem], Work]:
    """solve(problem, number) starts from a vector of its own in every run."""

    def work(p: Problem) -> Work:
        number = count()
        got: list[float] = []

        def found(ratio: float) -> dict[str, float]:
            errors = [abs(value / truth(p.network) - 1) for value in got]
            return {"relative error": statistics.median(errors), "worst": max(errors)}

        return Work(lambda: got.append(solve(p, next(number))), found=found)

    return work


METHODS = (
    *(
        Method(
            f"flattrain, Lanczos to a residual of {tolerance:.0e}",
            seeking(lambda p, k, tolerance=tolerance: lanczos(p, tolerance, k)),
            check="none",
        )
        for tolerance in (1e-3, 1e-2, 3e-2)
    ),
    *(
        Method(
            f"PyHessian, tol {tolerance:.0e}",
            seeking(lambda p, k, tolerance=tolerance: power_iteration(p, tolerance, k)),
            needs="pyhessian",
            check="none",
        )
        for tolerance in (1e-3, 1e-4, 1e-5)
    ),
    *(
        Method(
            f"curvlinops and scipy's eigsh, tol 1e-03, ncv {ncv or 'default'}",
            seeking(lambda p, k, ncv=ncv: eigsh(p, ncv, k)),
            needs="curvlinops",
            check="none",
        )
        for ncv in (None, 8)
    ),
)
GROUPS = tuple(
    Group(key, "Top eigenvalue: evaluation", network, METHODS, baseline="gradient")
    for key, network in zip(("top-mlp", "top-resnet"), TRAINED, strict=True)
)
