"""Other packages compute the same numbers, each by its own code: factors, soft rank, traces, products.

Skipped where a package is not installed (the extra `bench`, and what `benchmarks.curvature` names).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.cases import Problem
from benchmarks.factors import invariants
from benchmarks.penalties import by_backpack, kronecker_soft_rank, ours
from flattrain.core.functional import see
from flattrain.core.kfac import factors
from flattrain.core.layers import covered_layers
from flattrain.core.losses import cross_entropy
from flattrain.regularizers import GaussNewtonTrace, SoftRank
from flattrain.training.curvature import curvature

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def dense():
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.Flatten(),
        nn.Linear(36, 3, bias=False),
    )  # fmt: skip


def problem(make, *shape):
    torch.manual_seed(0)
    return Problem(make(), torch.randn(7, *shape), torch.randint(3, (7,)), weight=1.0)


CASES = {"dense": (dense, 6), "convolutional": (convolutional, 2, 6, 6)}


@pytest.fixture(params=CASES)
def small(request):
    return problem(*CASES[request.param])


def our_factors(p):
    seen = see(p.net, cross_entropy, p.x, p.y, layers=covered_layers(p.net))
    found = factors(seen).values()
    return {str(k): (a[0], b[0]) for k, (a, b) in enumerate(found)}


def need(package):
    return pytest.importorskip(package, exc_type=ImportError)


TAKEN = {
    "curvlinops": lambda p: peers.curvlinops_factors(p.net, p.x, p.y, "type-2"),
    "nngeometry": lambda p: peers.nngeometry_factors(p.net, p.x, p.y, "exact"),
    "laplace": lambda p: peers.laplace_factors(p.net, p.x, p.y, "exact"),
}


@pytest.mark.parametrize("package", TAKEN)
def test_kronecker_factors(small, package):
    need(package)
    mine = invariants(our_factors(small))
    torch.testing.assert_close(invariants(TAKEN[package](small)), mine, **TIGHT)


def test_kronecker_factors_beside_backpack():
    need("backpack")
    p = problem(dense, 6)
    theirs = peers.backpack_factors(*peers.backpacked(p.net), p.x, p.y, "exact")
    torch.testing.assert_close(invariants(theirs), invariants(our_factors(p)), **TIGHT)


def test_backpack_means_another_factor_of_a_convolution():
    need("backpack")
    p = problem(*CASES["convolutional"])
    seen = see(p.net, cross_entropy, p.x, p.y, layers=covered_layers(p.net))
    (a, _), (_, b) = (next(iter(factors(seen, sharing=way).values())) for way in ("expand", "reduce"))
    theirs = peers.backpack_factors(*peers.backpacked(p.net), p.x, p.y, "exact")["0"]
    positions = 9
    torch.testing.assert_close(theirs[0], positions * a[0].detach(), **TIGHT)
    torch.testing.assert_close(theirs[1], b[0].detach(), **TIGHT)


@pytest.mark.parametrize(
    ("extension", "penalty", "own"),
    [
        ("KFLR", kronecker_soft_rank, lambda w: SoftRank(weight=w, lam=1e-2)),
        ("DiagGGNExact", torch.sum, lambda w: GaussNewtonTrace(weight=w, columns="exact")),
    ],
    ids=["soft rank", "Gauss–Newton trace"],
)
def test_penalties_and_their_gradients_beside_backpack(extension, penalty, own):
    need("backpack")
    mine = ours(own)(problem(dense, 6))
    theirs = by_backpack(extension, penalty)(problem(dense, 6))
    assert theirs.scalar() == pytest.approx(mine.scalar(), rel=1e-9)
    torch.testing.assert_close(theirs.value(), mine.value(), **TIGHT)


@pytest.mark.parametrize(("kind", "theirs"), [("hessian", "hessian"), ("gauss_newton", "ggn")])
def test_products_beside_curvlinops(small, kind, theirs):
    need("curvlinops")
    operator = curvature(small.net, nn.CrossEntropyLoss(), [(small.x, small.y)], kind=kind)
    other = peers.curvlinops_operator(small.net, small.x, small.y, theirs)
    v = torch.randn(operator.dim)
    torch.testing.assert_close(operator.matvec(v), other @ v, **TIGHT)


def test_the_trace_of_the_gauss_newton_matrix_beside_curvlinops(small):
    need("curvlinops")
    other = peers.curvlinops_operator(small.net, small.x, small.y, "ggn")
    matrix = other @ torch.eye(other.shape[0])
    mine = ours(lambda w: GaussNewtonTrace(weight=w, columns="exact"))(small)
    assert mine.scalar() == pytest.approx(float(matrix.trace()), rel=1e-9)
