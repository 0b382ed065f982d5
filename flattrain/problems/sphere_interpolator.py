"""Two-layer ReLU nets f(x) = Σ_k v_k relu(w_k · x + b_k) + β: constructed on the sphere, or to be trained.

The construction interpolates any labels |y_i| ≤ D of n points on the unit sphere, is as flat as any net of
this form can be, λ₁ ≤ 1 + (D² + 2)/n for the loss ½(f − y)², and is 0 almost everywhere else (Liang et al.,
arXiv 2510.18120, state that such a net exists; the weights and the constant here are derived).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from flattrain.problems.networks import mlp
from flattrain.problems.split import Model, Split
from flattrain.ranges import Count, NonNegative, Positive, Refused, checked
from flattrain.types import Params


@checked
def sphere_interpolator(*, margin: Positive = 0.999) -> Model:
    """A unit for each training point, which it alone activates.

    With m_k = max_{j≠k} x_k · x_j, ε_k = `margin` · (1 − m_k) and s_k = |y_k|/ε_k: w_k = s_k x_k,
    b_k = −s_k (1 − ε_k), v_k = sign y_k. `margin` stays below 1: at 1 the nearest point is on the kink.
    """
    if margin >= 1:
        raise Refused(
            f"sphere_interpolator: margin must be < 1, got {margin}: at 1 neighbours are on the kink"
        )

    def build(split: Split) -> nn.Module:
        x = _vectors(split)
        if (x.square().sum(1) - 1).abs().max() > 1e-5:
            raise Refused("sphere_interpolator: the training points must lie on the unit sphere")
        if len(x.unique(dim=0)) < len(x):
            raise Refused("sphere_interpolator: the training points must be distinct")
        return mlp(widths=(len(x),)).build(split)

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        x, y = split.train_x, split.train_y
        nearest = (x @ x.T).fill_diagonal_(-1).amax(1)
        reach = margin * (1 - nearest)
        scale = y.abs() / reach
        return {
            "hidden1.weight": scale[:, None] * x,
            "hidden1.bias": -scale * (1 - reach),
            "head.weight": y.sign()[None],
            "head.bias": torch.zeros_like(y[:1]),
        }

    return Model(build, initial)


@checked
def unit_start(*, width: Count = 256, size: NonNegative = 0.5) -> Model:
    """The same net with w_k uniform on the unit sphere, v_k = ± size/√width, and biases 0 at the start."""

    def build(split: Split) -> nn.Module:
        _vectors(split)
        return mlp(widths=(width,)).build(split)

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        x = _vectors(split)
        w = torch.randn(width, x.shape[1], generator=generator, dtype=x.dtype)
        signs = torch.randint(0, 2, (1, width), generator=generator).to(x.dtype) * 2 - 1
        return {
            "hidden1.weight": w / w.norm(dim=1, keepdim=True),
            "hidden1.bias": torch.zeros_like(w[:, 0]),
            "head.weight": signs * size / width**0.5,
            "head.bias": torch.zeros_like(w[:1, 0]),
        }

    return Model(build, initial)


def _vectors(split: Split) -> Tensor:
    if split.outputs != 1 or split.train_x.ndim != 2:
        raise Refused("a net on the sphere has one output and takes vectors")
    return split.train_x
