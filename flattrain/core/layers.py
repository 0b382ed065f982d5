"""The layers whose per-example gradients have a structure to exploit, and what that structure is.

For one example and a vector g pulled back to a layer's output, the gradient of the layer's weight is a sum
over S positions of outer products,

    ∂/∂W = Σ_s left_s right_sᵀ

    linear      left = g (K),            right = φ (D)           S = 1, or the tokens of a sequence
    convolution left = g (K/G),          right = a patch (D/G)   S = output positions, for each of G groups
    embedding   left = one-hot (V),      right = g (D)           S = tokens

and of an affine normalisation z = γ ⊙ x̂ + β it is the vector Σ_s g ⊙ x̂, Σ_s g. Shapes: n examples, C pulled
back vectors for each (1 in what does not depend on them): left (n, C, G, S, K), right (n, C, G, S, D).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.core.eager import BatchNorm1d, LayerNorm, standardised
from flattrain.ranges import Refused, suggest
from flattrain.types import Tap

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM = (nn.LayerNorm, LayerNorm, nn.GroupNorm, *_BATCH_NORM, BatchNorm1d)
# By the forward that runs, so that a subclass with one of its own is not mistaken for its parent.
_FORWARDS = {kind.forward for kind in (nn.Linear, nn.Embedding, *_CONV, *_NORM)}


class Outer(NamedTuple):
    """Per-example gradients Σ_s left_s right_sᵀ of a weight.

    With a bias, right has a last column of ones that is not stored: `ones` is 1, and inner products add it.
    """

    left: Tensor  # (n, C or 1, G, S, K)
    right: Tensor  # (n, C or 1, G, S, D)
    ones: int = 0

    def whole(self) -> Tensor:
        """right with its column of ones."""
        if not self.ones:
            return self.right
        return torch.cat([self.right, torch.ones_like(self.right[..., :1])], -1)


class Direct(NamedTuple):
    """Per-example gradients as they are, of a parameter with few entries."""

    vectors: Tensor  # (n, C, P)


def covered(part: nn.Module) -> bool:
    """Whether the layer has parameters and a structure that is known."""
    if type(part).forward not in _FORWARDS or not list(part.parameters(recurse=False)):
        return False
    return not (isinstance(part, nn.Embedding) and (part.max_norm is not None or part.scale_grad_by_freq))


def covered_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the covered layers; those inside fused attention do not run as modules and are left out."""
    fused = [n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return tuple(
        name
        for name, part in module.named_modules()
        if covered(part) and not any(name.startswith(f"{outer}.") for outer in fused)
    )


def resolve(module: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """The modules behind layer names, with a clear refusal for a wrong name."""
    every = dict(module.named_modules())
    known = covered_layers(module)
    for name in layers:
        if name in known:
            continue
        if name in every:
            raise Refused(
                f"layer {name!r} is a {type(every[name]).__name__}; a linear, convolutional, embedding or "
                f"normalisation layer with parameters is needed{suggest(name, known)}"
            )
        raise Refused(f"the model has no layer {name!r}{suggest(name, known)}")
    return {name: every[name] for name in layers}


def with_ties(module: nn.Module, layers: Iterable[str]) -> tuple[str, ...]:
    """The layers and those that share a parameter with one of them."""
    chosen = resolve(module, layers)
    held = {id(p) for part in chosen.values() for p in part.parameters(recurse=False)}
    tied = [
        name
        for name, part in module.named_modules()
        if name not in chosen and any(id(p) in held for p in part.parameters(recurse=False))
    ]
    return tuple(resolve(module, [*chosen, *tied]))


def patches(layer: Any, x: Tensor) -> Tensor:
    """The patches of a convolution's input (n, C, *space) as rows (n, G, S, D), D = C/G · kernel."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, kernel, stride, dilation in zip(
            padded.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    shifted = []
    for offsets in product(*map(range, layer.kernel_size)):
        where: list[Any] = [
            slice(o * d, o * d + s * (size - 1) + 1, s)
            for o, d, s, size in zip(offsets, layer.dilation, layer.stride, sizes, strict=True)
        ]
        shifted.append(padded[(slice(None), slice(None), *where)].flatten(2))
    return rearrange(torch.stack(shifted, 2), "n (g c) k s -> n g s (c k)", g=layer.groups)


def normalised(layer: Any, x: Tensor) -> Tensor:
    """x̂ of an affine normalisation z = γ ⊙ x̂ + β, with the channel (or the normalised shape) last."""
    if isinstance(layer, nn.GroupNorm):
        groups = x.unflatten(1, (layer.num_groups, -1)).flatten(2)
        return standardised(groups, (-1,), layer.eps).reshape(x.shape).movedim(1, -1)
    if isinstance(layer, nn.LayerNorm):
        return standardised(x, tuple(range(-len(layer.normalized_shape), 0)), layer.eps)
    if layer.training or layer.running_mean is None:
        raise Refused("a BatchNorm in training mode has no per-example gradient; put it in eval mode")
    return (x.movedim(1, -1) - layer.running_mean) * torch.rsqrt(layer.running_var + layer.eps)


def is_normalisation(layer: nn.Module) -> bool:
    """Whether the layer is z = γ ⊙ x̂ + β."""
    return isinstance(layer, _NORM)


def normalisation_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the trainable γ and β of the normalisations in a module, found by their types.

    A normalisation of one's own says so with a class attribute `normalises = True`.
    """
    return tuple(
        f"{name}.{key}" if name else key
        for name, part in module.named_modules()
        if isinstance(part, (*_NORM, nn.RMSNorm, nn.modules.batchnorm._NormBase))
        or getattr(part, "normalises", False)
        for key, p in part.named_parameters(recurse=False)
        if p.requires_grad
    )


def sides(tap: Tap, g: Tensor) -> Outer:
    """The weight's gradients for pulled back vectors g (C, n, *z); of a layer that is not a normalisation."""
    layer: Any = tap.module
    if isinstance(layer, nn.Embedding):
        # Not F.one_hot, which looks at the indices and so does not run under vmap.
        hot = (tap.input[..., None] == torch.arange(layer.num_embeddings, device=g.device)).to(g.dtype)
        if layer.padding_idx is not None:
            hot = hot * (tap.input != layer.padding_idx).unsqueeze(-1)
        return Outer(_positions(hot)[:, None, None], _positions(g.transpose(0, 1), 2)[:, :, None])
    if isinstance(layer, _CONV):
        left = rearrange(g.flatten(3), "c n (g k) s -> n c g s k", g=layer.groups)
        return Outer(left, patches(layer, tap.input)[:, None])
    return Outer(_positions(g.transpose(0, 1), 2)[:, :, None], _positions(tap.input)[:, None, None])


def is_convolution(layer: nn.Module) -> bool:
    """Whether the layer is a convolution of one, two or three dimensions."""
    return isinstance(layer, _CONV)


def padded(layer: Any, x: Tensor) -> tuple[Tensor, Any]:
    """The input of a convolution and the zero padding that is left to do."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), 0


def convolution_backward(
    layer: Any,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: Any,
    groups: int,
    wanted: Literal["input", "weight"],
) -> Tensor:
    """The gradient in x or in the weight of a convolution strided and dilated as the layer is."""
    ndim = len(layer.stride)
    mask = (wanted == "input", wanted == "weight", False)
    padding = [padding] * ndim if isinstance(padding, int) else padding
    found: Tensor = torch.ops.aten.convolution_backward(
        g, x, weight, None, layer.stride, padding, layer.dilation, False, [0] * ndim, groups, mask
    )[mask.index(True)]
    return found


def convolution_gradients(tap: Tap, g: Tensor) -> Tensor:
    """The gradients of a convolution's weight themselves (n, C, P): a convolution with a group per example.

    Cheaper than patches wherever there are more positions than output channels.
    """
    layer: Any = tap.module
    c, n, groups = len(g), len(tap.input), layer.groups
    x, padding = padded(layer, tap.input)
    shape = (n * c * layer.out_channels, layer.in_channels // groups, *layer.kernel_size)
    found = convolution_backward(
        layer,
        rearrange(g, "c n (g k) ... -> (n g c k) ...", g=groups)[None],
        x.flatten(0, 1)[None],
        g.new_empty(shape),  # only its shape counts; torch.nn.grad expands a number, which is then copied
        padding,
        n * groups,
        "weight",
    )
    return rearrange(found.flatten(1), "(n g c k) d -> n c (g k d)", n=n, g=groups, c=c)


def affine(tap: Tap, g: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of γ and β (n, C, P) of a normalisation."""
    layer: Any = tap.module
    shift = g.transpose(0, 1)
    if not isinstance(layer, nn.LayerNorm):
        shift = shift.movedim(2, -1)
    scale = shift * normalised(layer, tap.input)[:, None]
    keep = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else 1
    summed = [t.flatten(2, -keep - 1).sum(2) if t.ndim > 2 + keep else t for t in (scale, shift)]
    return summed[0].flatten(2), summed[1].flatten(2)


def _positions(t: Tensor, lead: int = 1) -> Tensor:
    """(*lead, *positions, D) -> (*lead, S, D)."""
    return t.unsqueeze(lead) if t.ndim == lead + 1 else t.flatten(lead, -2)
