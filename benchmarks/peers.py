"""The same quantities by other packages, at the versions that were compared (see `benchmarks.curvature`).

Each function imports its package when called. Kronecker factors are {number of the layer: (A, B)} of a
network without biases, where every package means the same by them; how the two share a scale is its own.
(Of a convolution BackPACK means another thing: it sums the pulled back vectors over positions before it takes
their covariance, as "reduce" does, but not the patches, and leaves out 1/positions.)
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Factors = dict[str, tuple[Tensor, Tensor]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _numbered(pairs: Any) -> Factors:
    return {str(k): (a, b) for k, (a, b) in enumerate(pairs)}


def curvlinops_factors(net: Any, x: Tensor, y: Tensor, kind: Literal["type-2", "mc"]) -> Factors:
    from curvlinops import KFACLinearOperator

    params = [p for p in net.parameters() if p.requires_grad]
    operator = KFACLinearOperator(
        net, nn.CrossEntropyLoss(), params, [(x, y)], fisher_type=kind, check_deterministic=False
    )
    operator.compute_kronecker_factors()
    inputs, outputs = operator._input_covariances, operator._gradient_covariances
    return _numbered((inputs[name], outputs[name]) for name, _ in net.named_modules() if name in outputs)


def nngeometry_factors(net: Any, x: Tensor, y: Tensor, kind: Literal["exact", "mc"]) -> Factors:
    from nngeometry.metrics import FIM, FIM_MonteCarlo
    from nngeometry.object import PMatKFAC

    take = FIM if kind == "exact" else FIM_MonteCarlo
    found = take(model=net, loader=(x, y), representation=PMatKFAC, variant="classif_logits")
    return _numbered(found.data.values())


def laplace_factors(net: Any, x: Tensor, y: Tensor, kind: Literal["exact", "mc"]) -> Factors:
    from laplace.curvature.asdl import AsdlGGN

    with _quiet():
        _, kron = AsdlGGN(net, "classification", stochastic=kind == "mc").kron(x, y, N=len(x))
    return _numbered((a, b / len(x)) for b, a in kron.kfacs)


def backpacked(net: Any) -> tuple[Any, Any]:
    """The network and cross entropy, taught to BackPACK. A network can be taught once only."""
    from backpack import extend

    nested = any(list(part.children()) for part in net.children())  # blocks have to be taken to pieces
    mode = net.training
    return extend(net, use_converter=nested).train(mode), extend(nn.CrossEntropyLoss())


def backpack_factors(net: Any, loss_fn: Any, x: Tensor, y: Tensor, kind: Literal["exact", "mc"]) -> Factors:
    from backpack import backpack
    from backpack.extensions import KFAC, KFLR

    net.zero_grad()
    with _quiet(), backpack(KFLR() if kind == "exact" else KFAC()):
        loss_fn(net(x), y).backward()
    pairs = [p.kflr if kind == "exact" else p.kfac for p in net.parameters()]
    return _numbered((a, b) for b, a in pairs)


def backpack_objective(
    net: Any, x: Tensor, y: Tensor, extension: str, penalty: Callable[[Any], Tensor]
) -> Callable[[], tuple[Tensor, Tensor]]:
    """() -> (loss, Σ penalty(what the extension leaves on each parameter)), both on the graph."""
    from backpack import backpack, extensions

    net, loss_fn = backpacked(net)
    kind = getattr(extensions, extension)()

    def objective() -> tuple[Tensor, Tensor]:
        net.zero_grad()
        with _quiet(), backpack(kind):
            loss = loss_fn(net(x), y)
            loss.backward(create_graph=True)
        total = torch.stack([penalty(getattr(p, kind.savefield)) for p in net.parameters()]).sum()
        net.zero_grad()  # what follows takes the gradient of the loss once more, with the penalty's
        return loss, total

    return objective


def pyhessian(net: Any, x: Tensor, y: Tensor) -> Any:
    from pyhessian import hessian

    with _quiet():
        return hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def curvlinops_operator(net: Any, x: Tensor, y: Tensor, kind: Literal["hessian", "ggn"]) -> Any:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    make = HessianLinearOperator if kind == "hessian" else GGNLinearOperator
    params = [p for p in net.parameters() if p.requires_grad]
    return make(net, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
