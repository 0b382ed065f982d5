"""The Hessian of the mean loss as a matrix-free symmetric operator on flat vectors, and what is made of one.

    hessian     H v = Σ_b (n_b / n) ∇²L_b v        (Pearlmutter 1994)
    block       the rows and columns of some parameters
    adaptive    D H D,  D = diag |θ|               (Kwon et al. 2021)
    averaged    Σ_r (n_r / n) A_r                  over the processes r of torch.distributed

Batches are weighted by their counts, whatever their sizes (by their mass, where the loss has class weights),
and must come in the same order in every pass. A single batch is run once and its graph kept for all
products; several are run again for each. Parameters that the loss does not use give zeros; those which are
not in `params` are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattrain.core.trees import flatten, unflatten
from flattrain.ranges import Refused, suggest
from flattrain.types import Operator, Params

LossFn = Callable[[Params, Any, Tensor], Tensor]
Batches = Iterable[tuple[Any, Tensor]]
Product = Callable[[list[Tensor]], list[Tensor]]


def hessian(
    loss: LossFn, params: Params, batches: Batches, mass: Callable[[Tensor], float] = len
) -> Operator:
    """∇²L, with `loss(params, x, y)` a mean over the examples; mass(y) is what a batch counts."""

    def prepare(live: Params, x: Any, y: Tensor, number: int) -> Product:
        leaves = list(live.values())
        gradient = derivative([loss(live, x, y)], leaves, None, create=True)
        return lambda v: derivative(gradient, leaves, v)

    return assemble(prepare, params, batches, mass)


def of_matrix(matrix: Tensor) -> Operator:
    """A symmetric matrix (dim, dim) as an operator, under the one name "matrix"."""
    return Operator(lambda v: matrix @ v, {"matrix": len(matrix)}, matrix.dtype, matrix.device)


def assemble(
    prepare: Callable[[Params, Any, Tensor, int], Product],
    params: Params,
    batches: Batches,
    mass: Callable[[Tensor], float],
) -> Operator:
    """Σ_b (n_b / n) A_b, with prepare(live parameters, x, y, number of the batch) = the product with A_b."""
    if iter(batches) is batches:
        raise Refused("the batches can be read only once; pass a list of (x, y), or a DataLoader")
    counts = [mass(y) for _, y in batches]
    if not sum(counts):
        raise Refused("no examples: curvature needs at least one batch of (x, y)")
    first = next(iter(params.values()), None)
    if first is None:
        raise Refused("no trainable parameters; check requires_grad")
    sizes = {name: p.numel() for name, p in params.items()}
    kept: list[Product] = []

    def start(x: Any, y: Tensor, number: int) -> Product:
        if kept:
            return kept[0]
        live = {k: p.detach().requires_grad_() for k, p in params.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            ready = prepare(live, x, y, number)
        if len(counts) == 1:
            kept.append(ready)
        return ready

    def matvec(vector: Tensor) -> Tensor:
        if vector.shape != (sum(sizes.values()),):
            raise Refused(f"a vector of shape {tuple(vector.shape)} for an operator of {sum(sizes.values())}")
        direction = list(unflatten(vector.to(first), params).values())
        out = torch.zeros_like(vector, dtype=first.dtype)
        for number, (x, y) in enumerate(((None, torch.empty(0)),) if kept else batches):
            if not counts[number]:  # all of its labels are ignored: it has no mean
                continue
            parts = start(x, y, number)(direction)
            out += counts[number] / sum(counts) * torch.cat([p.reshape(-1) for p in parts])
        return out.to(vector)

    return Operator(matvec, sizes, first.dtype, first.device)


def derivative(
    values: list[Tensor], leaves: list[Tensor], along: list[Tensor] | None, create: bool = False
) -> list[Tensor]:
    """Σ along · ∂values/∂leaves on a graph that is kept; zeros for what does not depend on the leaves."""
    live = [k for k, v in enumerate(values) if v.requires_grad]
    if not live:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(
        torch.autograd.grad(
            [values[k] for k in live],
            leaves,
            None if along is None else [along[k] for k in live],
            create_graph=create,
            retain_graph=True,
            materialize_grads=True,
        )
    )


def block(operator: Operator, names: Iterable[str]) -> Operator:
    """The diagonal block of the named parameters, or of whole layers ("head" for head.weight and head.bias).

    A product costs what the whole one does; where only the block is wanted, give `hessian` those parameters.
    """
    chosen: dict[str, int] = {}
    for name in names:
        found = {k: n for k, n in operator.sizes.items() if k == name or k.startswith(f"{name}.")}
        if not found:
            raise Refused(f"no parameter or layer {name!r}{suggest(name, operator.sizes)}")
        chosen |= found
    sizes = {k: n for k, n in operator.sizes.items() if k in chosen}
    inside = torch.cat([torch.full((n,), k in sizes) for k, n in operator.sizes.items()])

    def matvec(vector: Tensor) -> Tensor:
        whole = vector.new_zeros(len(inside))
        whole[inside] = vector
        return operator(whole)[inside]

    return Operator(matvec, sizes, operator.dtype, operator.device)


def adaptive(operator: Operator, params: Params) -> Operator:
    """D A D with D = diag |θ|: invariant when a parameter is rescaled against another (Kwon et al. 2021)."""
    scale = flatten({k: params[k].detach().abs() for k in operator.sizes})
    return Operator(
        lambda v: scale.to(v) * operator(scale.to(v) * v), operator.sizes, operator.dtype, operator.device
    )


def averaged(operator: Operator, examples: float, group: distributed.ProcessGroup | None = None) -> Operator:
    """Σ_r (n_r / n) A_r over the processes r, each of which has A_r on the n_r `examples` it holds.

    All processes ask for the same products, one by one: give their generators the same seed.
    """
    total = torch.tensor(float(examples), dtype=torch.float64, device=operator.device)
    distributed.all_reduce(total, group=group)
    share = examples / float(total)

    def matvec(vector: Tensor) -> Tensor:
        mark = vector.sum()  # travels along, to tell vectors apart
        out = share * torch.cat([operator(vector), mark.reshape(1)])
        distributed.all_reduce(out, group=group)
        if not (out[-1] - mark).abs() <= 1e-2 * vector.norm():
            raise Refused(
                "averaged: the processes multiply different vectors; give their generators one seed"
            )
        return out[:-1]

    return Operator(matvec, operator.sizes, operator.dtype, operator.device)


def to_scipy(operator: Operator) -> Any:
    """The operator as a scipy.sparse.linalg.LinearOperator on numpy vectors."""
    from scipy.sparse.linalg import LinearOperator

    def matvec(vector: Any) -> Any:
        given = torch.as_tensor(vector.reshape(-1)).to(operator.device, operator.dtype)
        return operator(given).cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    return LinearOperator((operator.dim,) * 2, matvec=matvec, rmatvec=matvec, dtype=dtype)
