"""Normalisations whose third derivatives are right, and the guard that refuses the ones whose are not.

Differentiating `nn.LayerNorm`, or `nn.BatchNorm` in training mode, three times is silently wrong in
torch 2.13 (relative error 0.02 to 3; pytorch#175754, #186256). A penalty on curvature does exactly that.
Written with primitives, the same layers are right to any order; parameters and state dicts are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flattrain.ranges import Refused
from flattrain.types import Measure, Seen


class LayerNorm(nn.LayerNorm):
    """(x − mean) / sqrt(var + eps) · weight + bias over the last dimensions, from primitives."""

    def forward(self, input: Tensor) -> Tensor:
        dims = tuple(range(-len(self.normalized_shape), 0))
        centred = input - input.mean(dims, keepdim=True)
        out = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + self.eps)
        if self.weight is not None:
            out = out * self.weight
        return out if self.bias is None else out + self.bias


def unsafe(module: nn.Module) -> bool:
    """Whether three derivatives through this module are wrong."""
    if isinstance(module, LayerNorm):
        return False
    return isinstance(module, nn.LayerNorm) or _batch_norm_in_training(module)


def couples(module: nn.Module) -> bool:
    """Whether the module makes one example's output depend on the other examples."""
    return getattr(module, "couples_examples", False) or _batch_norm_in_training(module)


def _batch_norm_in_training(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training


def need_separable(seen: Seen, what: str) -> None:
    """Refuse a tapped layer behind which examples of a batch are tied together: the forms that take one

    example at a time do not hold there.
    """
    for layer, behind in seen.norms_after.items():
        coupled = [name for name, part in behind if couples(part)] if layer in seen.taps else []
        if coupled:
            raise Refused(
                f"{what} of {layer!r}: {', '.join(coupled)} behind it ties the examples of a batch "
                "together, so the loss is not separable; put BatchNorm in eval mode or take a layer behind it"
            )


def need_examples_apart(seen: Seen, what: str) -> None:
    """Refuse a network that ties the examples of a batch together anywhere."""
    coupled = [name for name, part in seen.norms if couples(part)]
    if coupled:
        raise Refused(
            f"{what}: {', '.join(dict.fromkeys(coupled))} ties the examples of a batch together, so "
            "the output for one example depends on the others; put BatchNorm in eval mode"
        )


def guard(measure: Measure, seen: Seen) -> None:
    """Refuse a penalty whose gradient would be silently wrong, naming the layers and the ways out."""
    behind = seen.norms if measure.after is None else seen.norms_after[measure.after]
    wrong = [name for name, part in behind if unsafe(part)]
    if measure.order >= 3 and wrong:
        raise Refused(
            f"{measure.name} differentiates {', '.join(dict.fromkeys(wrong))} three times, which torch "
            "does wrongly for LayerNorm and for BatchNorm in training mode; use "
            "flattrain.core.eager.LayerNorm, put BatchNorm in eval mode, or penalise a layer behind it"
        )
