"""x uniform in the ball of radius √d, y = |x₁| − |x₂| (Wen, Li & Ma 2023, Appendix B.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Refused, Steps, checked


@checked
def ball(*, dim: Count = 10, train: Count = 100, test: Count = 2000, validation: Steps = 0) -> DataSet:
    """`train`, `test` and `validation` independent points per seed; smaller training sets are prefixes."""
    if dim < 2:
        raise Refused(f"ball: dim must be >= 2, got {dim}: the target is |x1| - |x2|")

    def split(seed: int) -> Split:
        train_x, test_x = (_ball(n, dim, seed, part) for n, part in ((train, "train"), (test, "test")))
        parts = Split(train_x, _target(train_x), test_x, _target(test_x), 1)
        if not validation:
            return parts
        x = _ball(validation, dim, seed, "validation")
        return parts._replace(validation_x=x, validation_y=_target(x))

    return split


def _ball(n: int, dim: int, seed: int, part: str) -> Tensor:
    generator = stream(seed, "ball", part)
    # Row by row: one draw of all of them would not begin like a shorter one.
    draws = torch.stack([torch.randn(dim + 2, generator=generator, dtype=torch.float64) for _ in range(n)])
    # The first d coordinates of a uniform point on the sphere in d + 2 dimensions fill the ball uniformly.
    inside = draws[:, :dim] / draws.square().sum(1, keepdim=True).sqrt()
    return (dim**0.5 * inside).to(torch.float32)


def _target(x: Tensor) -> Tensor:
    return x[:, 0].abs() - x[:, 1].abs()
