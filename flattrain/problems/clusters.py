"""A mixture of Gaussians whose labels are those of the clusters, or vary inside of them.

    x = μ_k + ε,   ε standard normal,   μ_k normal of standard deviation s,   k uniform over the clusters
    y = k mod 2,   turned into the other class where cos(πν t) < 0,   t = ⟨u_k, ε⟩, u_k a random unit vector

With frequency ν = 0 labels are locally constant. With ν > 0 each cluster falls into bands across u_k, 1/ν
standard deviations wide, the middle one of its own class: as t is standard normal, the share of points with
the other class is 2 Σ_j (−1)^j P(t > (j + ½)/ν), j = 0, 1, …
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, NonNegative, Positive, checked


@checked
def clusters(
    *,
    frequency: NonNegative = 0.0,
    train: Count = 200,
    test: Count = 2000,
    dim: Count = 10,
    count: Count = 4,
    spread: Positive = 2.0,
) -> DataSet:
    """`train` and `test` independent points from `count` clusters; ν is `frequency`, s is `spread`.

    The clusters and the points of a seed do not depend on the frequency, so a sweep over it is paired.
    """

    def split(seed: int) -> Split:
        generator = stream(seed, "clusters")
        centres = spread * torch.randn(count, dim, generator=generator)
        directions = torch.randn(count, dim, generator=generator)
        directions = directions / directions.norm(dim=1, keepdim=True)

        def part(n: int, name: str) -> tuple[Tensor, Tensor]:
            own = stream(seed, "clusters", name)
            k = torch.randint(0, count, (n,), generator=own)
            noise = torch.randn(n, dim, generator=own)
            t = (noise * directions[k]).sum(1)
            turned = (math.pi * frequency * t).cos() < 0
            return centres[k] + noise, (k + turned) % 2

        return Split(*part(train, "train"), *part(test, "test"), 2)

    return split
