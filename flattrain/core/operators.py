"""Curvature of the mean loss as matrix-free symmetric operators on flat vectors.

    Hessian        H v = ∇²L v                                        (Pearlmutter 1994)
    Gauss–Newton   G v = mean_i J_iᵀ S_i J_i v,   S_i = ∇²_f ℓ_i      (Schraudolph 2002)
    Fisher         F v = mean_i J_iᵀ S_i J_i v,   S_i by its type     (Kunstner et al. 2019)

        "type-2"      S_i = L_i L_iᵀ from the output Hessian: exact, and G for cross entropy or squared error
        "mc"          S_i = r r ᵀ with r the gradient at one label drawn from the model's own predictive
        "empirical"   S_i = r r ᵀ with r the gradient at the true label; it is no Fisher matrix at all unless
                      the model fits its labels in distribution

J_i is the Jacobian of the outputs f_i (K,) in the parameters. Batches are weighted by their counts, whatever
their sizes, and must come in the same order in every pass. A single batch is run once and its graph kept for
all products; several are run again for each. Parameters that the loss does not use give zeros; those which
are not in `params` are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattrain.core.probes import stream
from flattrain.core.trees import flatten, unflatten
from flattrain.ranges import Refused, suggest
from flattrain.types import Loss, Operator, Params

LossFn = Callable[[Params, Any, Tensor], Tensor]
Run = Callable[[Params, Any], Tensor]
Batches = Iterable[tuple[Any, Tensor]]
Product = Callable[[list[Tensor]], list[Tensor]]


def hessian(loss: LossFn, params: Params, batches: Batches) -> Operator:
    """∇²L, with `loss(params, x, y)` a mean over the examples."""

    def prepare(live: Params, x: Any, y: Tensor, number: int) -> Product:
        leaves = list(live.values())
        gradient = _grad([loss(live, x, y)], leaves, None, create=True)
        return lambda v: _grad(gradient, leaves, v)

    return _operator(prepare, params, batches)


def gauss_newton(run: Run, criterion: Loss, params: Params, batches: Batches) -> Operator:
    """G, with `run(params, x)` the outputs (n, K) and a loss whose output Hessian is known."""
    if criterion.factor is None:
        raise Refused(
            f"the output Hessian of the loss {criterion.name!r} is unknown; use cross entropy, squared error"
            " (flattrain.core.losses), or the Hessian or the empirical Fisher"
        )
    factor = criterion.factor

    def square(outputs: Tensor, y: Tensor, number: int) -> Tensor:
        return factor(outputs)

    return _sandwich(square, run, params, batches)


def fisher(
    run: Run,
    criterion: Loss,
    params: Params,
    batches: Batches,
    *,
    kind: Literal["type-2", "mc", "empirical"] = "type-2",
    generator: Generator | None = None,
) -> Operator:
    """F of the given type; "mc" takes its labels from `generator`, once for all products.

    "mc" is for evaluation only. As a penalty, labels drawn with the labels detached are right in value and
    84 % off in gradient, because the labels' own dependence on the parameters is lost.
    """
    if kind == "type-2":
        return gauss_newton(run, criterion, params, batches)
    if kind == "empirical":
        return _sandwich(lambda z, y, k: _slope(criterion, z, y), run, params, batches)
    if kind != "mc":
        raise Refused(f"fisher: kind must be one of 'type-2', 'mc', 'empirical', got {kind!r}")
    if generator is None or criterion.factor is None:
        raise Refused(
            "fisher: kind='mc' needs a generator, and a loss that is cross entropy or squared error"
        )
    key, factor = int(torch.randint(2**62, (), generator=generator)), criterion.factor

    def drawn(outputs: Tensor, y: Tensor, number: int) -> Tensor:
        chance = stream(key, "labels", number)
        if criterion.name == "cross_entropy":
            p = outputs.softmax(-1)
            label = torch.multinomial(p.cpu(), 1, generator=chance).to(p.device)
            return (p - torch.zeros_like(p).scatter(-1, label, 1.0)).unsqueeze(-1)
        # ℓ = (c/2)‖f − y‖² is a normal likelihood of variance 1/c: its gradient at a drawn y is √c ε = L ε.
        noise = torch.randn(outputs.shape, generator=chance, dtype=outputs.dtype).to(outputs.device)
        return factor(outputs) @ noise.unsqueeze(-1)

    return _sandwich(drawn, run, params, batches)


def _slope(criterion: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """∂ℓ_i/∂f_i (n, K, 1)."""
    at = outputs.detach().requires_grad_()
    (r,) = torch.autograd.grad(criterion.mean(at, y), at)
    return len(outputs) * r.unsqueeze(-1)


def _sandwich(
    root: Callable[[Tensor, Tensor, int], Tensor], run: Run, params: Params, batches: Batches
) -> Operator:
    """mean_i J_iᵀ L_i L_iᵀ J_i, with root(outputs, y, number of the batch) = L (n, K, C)."""

    def prepare(live: Params, x: Any, y: Tensor, number: int) -> Product:
        leaves = list(live.values())
        outputs = run(live, x)
        if outputs.ndim != 2:
            raise Refused(
                f"outputs of shape {tuple(outputs.shape)}: the Gauss–Newton matrix takes (n, outputs)"
            )
        factor = root(outputs.detach(), y, number)
        # J v is the derivative of u ↦ Jᵀu: two reverse sweeps over a graph that is kept.
        dual = torch.zeros_like(outputs, requires_grad=True)
        pulled = _grad([outputs], leaves, [dual], create=True)

        def product(v: list[Tensor]) -> list[Tensor]:
            (pushed,) = _grad(pulled, [dual], v)
            middle = factor @ (factor.mT @ pushed.unsqueeze(-1))
            return _grad([outputs], leaves, [middle.squeeze(-1) / len(outputs)])

        return product

    return _operator(prepare, params, batches)


def of_matrix(matrix: Tensor) -> Operator:
    """A symmetric matrix (dim, dim) as an operator, under the one name "matrix"."""
    return Operator(lambda v: matrix @ v, {"matrix": len(matrix)}, matrix.dtype, matrix.device)


def _operator(
    prepare: Callable[[Params, Any, Tensor, int], Product], params: Params, batches: Batches
) -> Operator:
    if iter(batches) is batches:
        raise Refused("the batches can be read only once; pass a list of (x, y), or a DataLoader")
    counts = [len(y) for _, y in batches]
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
        for number, (x, y) in enumerate(((None, torch.empty(counts[0])),) if kept else batches):
            parts = start(x, y, number)(direction)
            out += len(y) / sum(counts) * torch.cat([p.reshape(-1) for p in parts])
        return out.to(vector)

    return Operator(matvec, sizes, first.dtype, first.device)


def _grad(
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


def to_scipy(operator: Operator) -> Any:
    """The operator as a scipy.sparse.linalg.LinearOperator on numpy vectors."""
    from scipy.sparse.linalg import LinearOperator

    def matvec(vector: Any) -> Any:
        given = torch.as_tensor(vector.reshape(-1)).to(operator.device, operator.dtype)
        return operator(given).cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    return LinearOperator((operator.dim,) * 2, matvec=matvec, rmatvec=matvec, dtype=dtype)
