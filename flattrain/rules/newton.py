"""Newton's step, for convex problems of a few parameters.

    (H + μI)⁻¹ g,    g the gradient, H its Jacobian in the parameters, μ the damping

With sgd at lr 1 it is Newton's method, and what the inner rule adds to the gradient is in H as well:
`[newton, {weight_decay: {lam: 0.1}}]` goes to the minimiser of L + 0.05 ‖θ‖². H is formed: P pullbacks and
P² numbers. Undamped it is the minimiser in one step where L is quadratic, and refuses no saddle.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev

from flattrain.ranges import NonNegative, Refused, checked
from flattrain.types import Batch, GradFn, Logs, Params, Rule

MOST = 2_000  # parameters


@checked
def newton(*, damping: NonNegative = 1e-3) -> Rule:
    """(H + `damping` I)⁻¹ g over all parameters."""

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            sizes = {name: p.numel() for name, p in params.items()}
            count = sum(sizes.values())
            if count > MOST:
                raise Refused(f"newton: the Hessian of {count:,} parameters is too large to form")

            def flat(theta: Tensor) -> tuple[Tensor, tuple[Tensor, Logs]]:
                parts = dict(zip(sizes, theta.split(list(sizes.values())), strict=True))
                g, logs = grad_fn({name: parts[name].reshape(p.shape) for name, p in params.items()}, batch)
                out = torch.cat([g[name].flatten() for name in sizes])
                return out, (out, logs)

            at = torch.cat([p.flatten() for p in params.values()])
            hessian, (g, logs) = jacrev(flat, has_aux=True)(at)
            eye = torch.eye(len(at), dtype=at.dtype, device=at.device)
            step = torch.linalg.solve(hessian + damping * eye, g)
            parts = zip(params.items(), step.split(list(sizes.values())), strict=True)
            return {name: part.reshape(p.shape) for (name, p), part in parts}, logs

        return gradient

    return Rule(wrap)
