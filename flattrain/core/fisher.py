"""The Gauss–Newton matrix and three Fisher matrices of the mean loss, as matrix-free operators.

    Gauss–Newton   G v = mean_i J_iᵀ S_i J_i v,   S_i = ∇²_f ℓ_i      (Schraudolph 2002)
    Fisher         F v = mean_i J_iᵀ S_i J_i v,   S_i by its type     (Kunstner et al. 2019)

        "type-2"      S_i = L_i L_iᵀ from the output Hessian: exact, and G for cross entropy or squared error
        "mc"          S_i = r r ᵀ with r the gradient at one label drawn from the model's own predictive
        "empirical"   S_i = r r ᵀ with r the gradient at the true label; it is no Fisher matrix at all unless
                      the model fits its labels in distribution

Of outputs (n, T, K) i runs over rows, each with a label of its own (core.losses).

J_i is the Jacobian of the outputs f_i (K,) in the parameters: J v by the derivative of u ↦ Jᵀu, so that every
product is two reverse sweeps over one graph and no matrix of examples × parameters is formed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from flattrain.core.losses import root_of, sketch_of
from flattrain.core.operators import Batches, Product, assemble, derivative
from flattrain.core.probes import stream
from flattrain.core.weights import mass, row_scale, row_weights
from flattrain.ranges import Refused
from flattrain.types import Loss, Operator, Params

Run = Callable[[Params, Any], Tensor]


def gauss_newton(run: Run, criterion: Loss, params: Params, batches: Batches) -> Operator:
    """G, with `run(params, x)` the outputs (n, …, K) and a loss whose output Hessian is known."""

    def square(outputs: Tensor, y: Tensor, number: int) -> Tensor:
        return root_of(criterion, outputs, y, "the Gauss–Newton matrix")

    if criterion.factor is None:
        square(torch.empty(0), torch.empty(0), 0)  # refused before anything runs
    return _sandwich(square, criterion, run, params, batches)


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
        return _sandwich(lambda z, y, k: _slope(criterion, z, y), criterion, run, params, batches)
    if kind != "mc":
        raise Refused(f"fisher: kind must be one of 'type-2', 'mc', 'empirical', got {kind!r}")
    if generator is None or criterion.sketch is None:
        raise Refused(
            "fisher: kind='mc' needs a generator, and a loss that is cross entropy or squared error"
        )
    key = int(torch.randint(2**62, (), generator=generator))

    def drawn(outputs: Tensor, y: Tensor, number: int) -> Tensor:
        chance = stream(key, "labels", number)
        if criterion.name == "cross_entropy":
            p = outputs.softmax(-1)
            label = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=chance).to(p.device)
            r = p - torch.zeros_like(p).scatter(-1, label.reshape(*p.shape[:-1], 1), 1.0)
            scale = row_scale(criterion, outputs, y)
            return r[..., None] if scale is None else (r * scale.sqrt()[..., None])[..., None]
        # ℓ = (c/2)‖f − y‖² is a normal likelihood of variance 1/c: its gradient at a drawn y is √c ε = L ε.
        noise = torch.randn(outputs.shape, generator=chance, dtype=outputs.dtype).to(outputs.device)
        return sketch_of(criterion, outputs, y, noise, "fisher").unsqueeze(-1)

    return _sandwich(drawn, criterion, run, params, batches)


def _slope(criterion: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """√w ∂ℓ/∂f of each row (n, …, K, 1)."""
    at = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (r,) = torch.autograd.grad(criterion.mean(at, y) * len(at), at)
    w = row_weights(criterion, outputs, y)
    return (r if w is None else r * w.where(w > 0, 1.0).rsqrt()[..., None])[..., None]


def _sandwich(
    root: Callable[[Tensor, Tensor, int], Tensor],
    criterion: Loss,
    run: Run,
    params: Params,
    batches: Batches,
) -> Operator:
    """mean_i J_iᵀ L_i L_iᵀ J_i, with root(outputs, y, number of the batch) = L (n, …, K, C)."""

    def prepare(live: Params, x: Any, y: Tensor, number: int) -> Product:
        leaves = list(live.values())
        outputs = run(live, x)
        if outputs.ndim < 2:
            raise Refused(
                f"outputs of shape {tuple(outputs.shape)}: the Gauss–Newton matrix takes (n, outputs)"
            )
        factor = root(outputs.detach(), y, number)
        # J v is the derivative of u ↦ Jᵀu: two reverse sweeps over a graph that is kept.
        dual = torch.zeros_like(outputs, requires_grad=True)
        pulled = derivative([outputs], leaves, [dual], create=True)

        def product(v: list[Tensor]) -> list[Tensor]:
            (pushed,) = derivative(pulled, [dual], v)
            middle = factor @ (factor.mT @ pushed.unsqueeze(-1))
            return derivative([outputs], leaves, [middle.squeeze(-1) / len(outputs)])

        return product

    return assemble(prepare, params, batches, lambda y: mass(criterion, y))
