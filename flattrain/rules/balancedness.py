"""Balancedness-aware regularization, BAR (Li, Zhang & He 2024, arXiv 2410.14802): SAM's effect on factors.

    two parameters that enter as a product, f(x yᵀ) or f(xᵀ y);    balancedness 𝓑 = ½ (‖x‖² − ‖y‖²)

SGD's flow keeps 𝓑, SAM's drives it towards 0. BAR does so without a second gradient: before the base step
x ← (1 − αη) x, y ← (1 + αη) y, or the reverse:

    obar    x shrinks if ‖x‖ >= ‖y‖             for f(xᵀ y), where SAM's rate is proportional to 𝓑
    nbar    x shrinks if ‖∇_x‖ < ‖∇_y‖          for f(x yᵀ), the sign of SAM's rate ρ (‖g_x‖² − ‖g_y‖²)/‖g‖

A rule returns gradients, so here it is the gradient (g_x + αx, g_y − αy): under plain SGD that is the paper's
form, in which g is taken before the scaling; momentum and Adam would average or normalise the term. The
paper's α decays to 0, linearly or like a cosine, from a scale of 0.2, 0.5, 1 or 2 (the default here is ours):
put a schedule around the rule, its share scales α.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flattrain.ranges import NonNegative, Refused, checked, suggest
from flattrain.types import Batch, GradFn, Logs, Params, Rule


@checked
def obar(*, x: str, y: str, alpha: NonNegative = 0.5) -> Rule:
    """Shrink the longer of the parameters named x and y, grow the other."""
    return _bar(x, y, alpha, lambda params, g: _length(params[x]) >= _length(params[y]))


@checked
def nbar(*, x: str, y: str, alpha: NonNegative = 0.5) -> Rule:
    """Shrink the one of the shorter gradient, grow the other."""
    return _bar(x, y, alpha, lambda params, g: _length(g[x]) < _length(g[y]))


def _bar(x: str, y: str, alpha: float, shrinks: Callable[[Params, Params], Tensor]) -> Rule:
    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            for name in (x, y):
                if name not in params:
                    raise Refused(f"bar: no parameter {name!r}{suggest(name, params)}")
            g, logs = grad_fn(params, batch)
            size = alpha * batch.moment.strength
            if size == 0:
                return g, logs
            rate = torch.where(shrinks(params, g), size, -size).to(params[x].dtype)
            return {**g, x: g[x] + rate * params[x], y: g[y] - rate * params[y]}, logs

        return gradient

    return Rule(wrap)


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v)
    return length
