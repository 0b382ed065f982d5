"""Random training labels (Zhang et al. 2017, arXiv 1611.03530): nothing to learn but the examples."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def randomised(labels: Tensor, share: float, classes: int, generator: Generator) -> Tensor:
    """Each of the labels (n,) is replaced, with probability `share`, by one drawn uniformly from all classes.

    So 1/classes of the replaced ones keep their label. With the same generator the labels that are replaced
    at a smaller share are among those at a larger one, with the same draws.
    """
    replaced = torch.rand(len(labels), generator=generator) < share
    drawn = torch.randint(0, classes, (len(labels),), generator=generator)
    return torch.where(replaced, drawn, labels)
