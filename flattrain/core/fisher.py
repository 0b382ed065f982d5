"""The Gauss–Newton matrix and three Fisher matrices of the mean loss, as matrix-free operators.

    Gauss–Newton   G v = mean_i J_iᵀ S_i J_i v,   S_i = ∇²_f ℓ_i      (Schraudolph 2002)
    Fisher         F v = mean_i J_iᵀ S_i J_i v,   S_i by its type     (Kunstner et al. 2019)

        "type-2"      S_i from the output Hessian: exact, and G for cross entropy or squared error
        "mc"          S_i = r r ᵀ with r the gradient at one label drawn from the model's own predictive
        "empirical"   S_i = r r ᵀ with r the gradient at the true label; it is no Fisher matrix at all unless
                      the model fits its labels in distribution

Of outputs (n, T, K) i runs over rows, each with a label of its own (core.losses).

J_i is the Jacobian of the outputs f_i (K,) in the parameters: J v by the derivative of u ↦ Jᵀu, so that every
product is two reverse sweeps over one graph and no matrix of examples × parameters is formed. S u is the
derivative of the loss's slope in the outputs, so there is no matrix of outputs × outputs either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from flattrain.core.losses import need_root, sketch_of
from flattrain.core.operators import Batches, Product, assemble, derivative
from flattrain.core.probes import stream
from flattrain.core.weights import mass, row_scale, row_weights
from flattrain.ranges import Refused
from flattrain.types import Loss, Operator, Params

Run = Callable[[Params, Any], Tensor]
Middle = Callable[[Tensor], Tensor]  # u -> S u / n, in the shape of the outputs


def gauss_newton(run: Run, criterion: Loss, params: Params, batches: Batches) -> Operator:
    """G, with `run(params, x)` the outputs (n, …, K) and any loss that has a second derivative in them."""

    def middle(outputs: Tensor, y: Tensor, number: int) -> Middle:
        at = outputs.requires_grad_()
        slope = derivative([criterion.mean(at, y)], [at], None, create=True)
        return lambda u: derivative(slope, [at], [u])[0]

    return _sandwich(middle, criterion, run, params, batches)


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
        need_root(criterion, "the Fisher matrix")
        return gauss_newton(run, criterion, params, batches)
    if kind == "empirical":
        return _sandwich(lambda z, y, k: _outer(_slope(criterion, z, y)), criterion, run, params, batches)
    if kind != "mc":
        raise Refused(f"fisher: kind must be one of 'type-2', 'mc', 'empirical', got {kind!r}")
    if generator is None or criterion.sketch is None:
        raise Refused(
            "fisher: kind='mc' needs a generator, and a loss that is cross entropy or squared error"
        )
    key = int(torch.randint(2**62, (), generator=generator))

    def drawn(outputs: Tensor, y: Tensor, number: int) -> Middle:
        chance = stream(key, "labels", number)
        if criterion.name == "cross_entropy":
            p = outputs.softmax(-1)
            label = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=chance).to(p.device)
            r = p - torch.zeros_like(p).scatter(-1, label.reshape(*p.shape[:-1], 1), 1.0)
            scale = row_scale(criterion, outputs, y)
            return _outer(r if scale is None else r * scale.sqrt()[..., None])
        # ℓ = (c/2)‖f − y‖² is a normal likelihood of variance 1/c: its gradient at a drawn y is √c ε = L ε.
        noise = torch.randn(outputs.shape, generator=chance, dtype=outputs.dtype).to(outputs.device)
        return _outer(sketch_of(criterion, outputs, y, noise, "fisher"))

    return _sandwich(drawn, criterion, run, params, batches)


def _slope(criterion: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """√w ∂ℓ/∂f of each row (n, …, K)."""
    at = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (r,) = torch.autograd.grad(criterion.mean(at, y) * len(at), at)
    w = row_weights(criterion, outputs, y)
    return r if w is None else r * w.where(w > 0, 1.0).rsqrt()[..., None]


def _outer(r: Tensor) -> Middle:
    """S_i = r_i r_iᵀ."""
    return lambda u: r * (r * u).sum(-1, keepdim=True) / len(r)


def _sandwich(
    middle: Callable[[Tensor, Tensor, int], Middle],
    criterion: Loss,
    run: Run,
    params: Params,
    batches: Batches,
) -> Operator:
    """mean_i J_iᵀ S_i J_i, with middle(outputs, y, number of the batch) the product with S / n."""

    def prepare(live: Params, x: Any, y: Tensor, number: int) -> Product:
        leaves = list(live.values())
        outputs = run(live, x)
        if outputs.ndim < 2:
            raise Refused(
                f"outputs of shape {tuple(outputs.shape)}: the Gauss–Newton matrix takes (n, outputs)"
            )
        between = middle(outputs.detach(), y, number)
        # J v is the derivative of u ↦ Jᵀu: two reverse sweeps over a graph that is kept.
        dual = torch.zeros_like(outputs, requires_grad=True)
        pulled = derivative([outputs], leaves, [dual], create=True)

        def product(v: list[Tensor]) -> list[Tensor]:
            (pushed,) = derivative(pulled, [dual], v)
            return derivative([outputs], leaves, [between(pushed)])

        return product

    return assemble(prepare, params, batches, lambda y: mass(criterion, y))
