"""A linear model, which starts at zero: with a convex loss what it ends at does not depend on the start."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from flattrain.problems.split import Model, Split
from flattrain.ranges import checked


@checked
def linear(*, bias: bool = False) -> Model:
    """The layer `head` on flattened inputs, without a bias unless `bias` asks for one."""

    def build(split: Split) -> nn.Module:
        inputs = math.prod(split.train_x.shape[1:])
        return nn.Sequential(
            OrderedDict(flatten=nn.Flatten(), head=nn.Linear(inputs, split.outputs, bias=bias))
        )

    return Model(
        build,
        lambda module, split, generator: {k: torch.zeros_like(p) for k, p in module.named_parameters()},
    )
