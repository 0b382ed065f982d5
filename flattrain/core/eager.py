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


def standardised(x: Tensor, dims: list[int] | tuple[int, ...], eps: float) -> Tensor:
    """(x − mean) / sqrt(var + eps) over `dims`, from primitives."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


class LayerNorm(nn.LayerNorm):
    """(x − mean) / sqrt(var + eps) · weight + bias over the last dimensions, from primitives."""

    def forward(self, input: Tensor) -> Tensor:
        out = standardised(input, tuple(range(-len(self.normalized_shape), 0)), self.eps)
        if self.weight is not None:
            out = out * self.weight
        return out if self.bias is None else out + self.bias


def _batch_norm(self: nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """(x − mean) / sqrt(var + eps) · weight + bias per channel, from primitives, with torch's statistics."""
    x = input
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    if self.training or self.running_mean is None or self.running_var is None:
        dims = (0, *range(2, x.ndim))
        mean = x.mean(dims)
        variance = (x - mean.reshape(shape)).square().mean(dims)
        if self.training and self.running_mean is not None and self.running_var is not None:
            _move_statistics(self, mean.detach(), variance.detach(), x.numel() // x.shape[1])
    else:
        mean, variance = self.running_mean, self.running_var
    out = (x - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
    return out if self.weight is None else out * self.weight.reshape(shape) + self.bias.reshape(shape)


def _move_statistics(
    self: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: int
) -> None:
    assert self.running_mean is not None and self.running_var is not None
    assert self.num_batches_tracked is not None
    self.num_batches_tracked.add_(1)
    share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
    self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
    self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)


class BatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose derivatives are right to any order in training mode too."""

    forward = _batch_norm


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose derivatives are right to any order in training mode too."""

    forward = _batch_norm


def eager(module: nn.Module) -> nn.Module:
    """Turn torch's normalisations in the module into the right ones; parameters stay as they are."""
    swap = {
        nn.LayerNorm: LayerNorm,
        nn.BatchNorm1d: BatchNorm1d,
        nn.BatchNorm2d: BatchNorm2d,
    }
    for part in module.modules():
        part.__class__ = swap.get(type(part), type(part))
    return module


def unsafe(module: nn.Module) -> bool:
    """Whether three derivatives through this module are wrong."""
    if isinstance(module, LayerNorm | BatchNorm1d | BatchNorm2d):
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
            "does wrongly for LayerNorm and for BatchNorm in training mode; call "
            "flattrain.core.eager.eager(model) once, put BatchNorm in eval mode, or penalise a layer behind "
            "it"
        )
