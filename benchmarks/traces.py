"""The trace of the Hessian to a standard error of 5 %, as an evaluation.

Every method's cost per probe and the spread of one probe are measured; the time to 5 % is the cost of
(spread / 5 %)² probes, at least two. Several probes are timed at once, so that what is done once for all of
them counts as it does in use.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Literal

from benchmarks import peers
from benchmarks.cases import Group, Method, Problem, Work, problem
from flattrain.core.losses import cross_entropy
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.training.evaluate import evaluate
from flattrain.types import Measure, Network

PROBES, GOAL = 10, 0.05
DRAWS = {"MLP": 100, "MLP, tanh": 100}  # of one probe, for its spread
FEW = 30  # on the other networks


def value_of(measure: Measure, p: Problem, *key: int | str) -> float:
    network = Network(p.net, cross_entropy, dict(p.net.named_parameters()), dict(p.net.named_buffers()))
    return float(evaluate(measure, network, p.x, p.y, key).value)


@lru_cache(maxsize=4)
def true_trace(network: str) -> float:
    """Exact in a ReLU net, where Tr H = Tr G; else with 400 probes for the residual part."""
    p = problem(network)
    if network == "MLP, tanh":
        return value_of(hessian_trace(probes=400, form="control"), p, "truth")
    return value_of(gauss_newton_trace(), p)


def probing(p: Problem, estimate: Callable[[int], float]) -> Work:
    """estimate(k) is the mean of k fresh probes."""

    def found(ratio: float) -> dict[str, float]:
        draws = [estimate(1) for _ in range(DRAWS.get(p.network, FEW))]
        spread = statistics.stdev(draws) / abs(true_trace(p.network))
        return _columns(spread, max(2, math.ceil((spread / GOAL) ** 2)), ratio)

    return Work(lambda: estimate(PROBES), scalar=lambda: estimate(1), found=found, units=PROBES)


def _columns(spread: float, probes: int, ratio: float) -> dict[str, float]:
    return {
        "spread of a probe, %": 100 * spread,
        "probes to 5 %": probes,
        "plain steps to 5 %": probes * ratio,
    }


def exact(p: Problem) -> Work:
    def total() -> float:
        return value_of(gauss_newton_trace(), p)

    return Work(total, scalar=total, found=lambda ratio: _columns(0.0, 1, ratio))


def by_probes(name: str, make: Callable[[int], Measure]) -> Callable[[Problem], Work]:
    """Ours; `name` keeps the streams of the methods apart."""

    def work(p: Problem) -> Work:
        number = count()
        return probing(p, lambda k: value_of(make(k), p, name, next(number)))

    return work


def by_pyhessian(p: Problem) -> Work:
    def estimate(probes: int) -> float:
        # A tolerance of −∞ disables its stop rule, which ends at once when the running mean is negative.
        return statistics.mean(peers.pyhessian(p.net, p.x, p.y).trace(maxIter=probes, tol=-math.inf))

    return probing(p, estimate)


def by_curvlinops(kind: Literal["hessian", "ggn"]) -> Callable[[Problem], Work]:
    def work(p: Problem) -> Work:
        from curvlinops import hutchinson_trace

        def estimate(probes: int) -> float:
            return float(hutchinson_trace(peers.curvlinops_operator(p.net, p.x, p.y, kind), probes))

        return probing(p, estimate)

    return work


PEERS = (
    Method("PyHessian, Hutchinson", by_pyhessian, needs="pyhessian", check="mean"),
    Method("curvlinops, Hutchinson on H", by_curvlinops("hessian"), needs="curvlinops", check="mean"),
)
HUTCHINSON = Method("flattrain, Hutchinson", by_probes("H", lambda k: hessian_trace(probes=k)), check="mean")
RELU = (
    Method("flattrain, exact Gauss–Newton", exact, check="reference", remark="Tr H = Tr G in a ReLU net"),
    Method(
        "flattrain, Gauss–Newton sketches",
        by_probes("G", lambda k: gauss_newton_trace(columns="sketch", probes=k)),
        check="mean",
    ),
    HUTCHINSON,
    *PEERS,
    Method("curvlinops, Hutchinson on the GGN", by_curvlinops("ggn"), needs="curvlinops", check="mean"),
)
SMOOTH = (
    Method(
        "flattrain, exact Gauss–Newton and residual probes",
        by_probes("control", lambda k: hessian_trace(probes=k, form="control")),
        check="reference",
    ),
    HUTCHINSON,
    *PEERS,
)
TITLE = "Trace of the Hessian to a standard error of 5 %: evaluation, figures per probe"
GROUPS = (
    Group("trace-relu", TITLE, "MLP", RELU),
    Group("trace-resnet", TITLE, "BN-ResNet, eval mode", RELU),
    Group("trace-tanh", TITLE, "MLP, tanh", SMOOTH),
)
