"""PyTorch's default initialisation, drawn from an explicit generator.

nn.Linear and nn.Conv2d draw weights and biases from U(−1/√fan_in, 1/√fan_in); nn.LayerNorm starts at γ = 1
and β = 0.
"""

from __future__ import annotations

import torch
from torch import Generator, nn

from flattrain.problems.split import Split
from flattrain.ranges import Refused
from flattrain.types import Params


def default(module: nn.Module, split: Split, generator: Generator) -> Params:
    """Parameters of every linear and convolutional layer, in the order of the module."""
    params: Params = {}
    for name, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        if not own:
            continue
        prefix = f"{name}." if name else ""
        if isinstance(part, nn.Linear | nn.Conv2d):
            bound = part.weight[0].numel() ** -0.5
            for key, p in own.items():
                draw = torch.rand(p.shape, generator=generator, dtype=p.dtype)
                params[prefix + key] = (2 * draw - 1) * bound
        elif isinstance(part, nn.LayerNorm):
            params |= {prefix + key: torch.full_like(p, float(key == "weight")) for key, p in own.items()}
        elif hasattr(part, "start"):
            params |= {prefix + key: value for key, value in part.start().items()}
        else:
            raise Refused(f"no initialisation is known for layer {name!r} ({type(part).__name__})")
    return params
