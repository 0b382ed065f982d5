"""Points between the centre and the sphere, with labels that have nothing to do with them.

    x = h(R) U,   h(r) = 1 − (1 − r)^{1/α},   R uniform on [0, 1], U uniform on the unit sphere

The isotropic family of Liang et al. (arXiv 2510.18120): a large α heaps the mass at the centre, α = 0 is the
sphere. Labels of training and test points are independent of x: what a net learns of them is noise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, NonNegative, Steps, checked


@checked
def radial(
    *,
    dim: Count = 5,
    train: Count = 256,
    test: Count = 2000,
    validation: Steps = 0,
    alpha: NonNegative = 0.0,
    labels: Literal["normal", "sign"] = "normal",
) -> DataSet:
    """`train`, `test` and `validation` independent points per seed, with labels standard normal or ±1.

    Directions, radii R and labels of a seed do not depend on α, so a sweep over it is paired.
    """

    def split(seed: int) -> Split:
        train_x, train_y = _points(train, dim, alpha, labels, seed, "train")
        test_x, test_y = _points(test, dim, alpha, labels, seed, "test")
        parts = Split(train_x, train_y, test_x, test_y, 1)
        if not validation:
            return parts
        x, y = _points(validation, dim, alpha, labels, seed, "validation")
        return parts._replace(validation_x=x, validation_y=y)

    return split


def _points(n: int, dim: int, alpha: float, labels: str, seed: int, part: str) -> tuple[Tensor, Tensor]:
    generator = stream(seed, "radial", part)
    directions = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    r = torch.rand(n, generator=generator, dtype=torch.float64)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    height = 1 - (1 - r) ** (1 / alpha) if alpha else torch.ones_like(r)
    # Double precision is kept: an exact interpolator of single-precision points is not one of these.
    return height[:, None] * directions, y if labels == "normal" else torch.where(y > 0, 1.0, -1.0).to(y)
