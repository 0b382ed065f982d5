"""Per-example SAM (m-sharpness with m = 1; Foret et al. 2021) in two passes over the batch.

    loss = mean_i ℓ_i(θ + ρ g_i/‖g_i‖),    g_i = ∇ℓ_i(θ) held fixed

Each example ascends on its own, yet no example has weights of its own: with g_i = Σ_s left_s right_sᵀ in a
linear layer (core.layers) its ascended layer maps

    φ' ↦ W φ' + b + s_i Σ_s left_s (⟨right_s, φ'⟩ + 1),    s_i = ρ/‖g_i‖

and the norms are ghost norms. A convolution's gradients are formed, and its second pass is one convolution
with a group per example. Cost on a dense net: less than SAM's, where a loop costs one step per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.core import ghost
from flattrain.core.functional import Forward, call, see
from flattrain.core.layers import (
    Outer,
    covered_layers,
    is_convolution,
    is_normalisation,
    normalised,
    padded,
)
from flattrain.types import Loss, Seen


class Ascended(NamedTuple):
    """The mean loss with every example ascended, to call `.backward()` on, and the loss before."""

    loss: Tensor
    before: Tensor


def per_example_sam(
    module: nn.Module, criterion: Loss, x: Any, y: Tensor, *, rho: float, forward: Forward = call
) -> Ascended:
    """mean_i ℓ_i(θ + ρ g_i/‖g_i‖); where g_i = 0 there is nowhere to ascend. Gradients are those of m = 1."""
    seen = see(module, criterion, x, y, layers=covered_layers(module), forward=forward)
    (slopes,) = torch.autograd.grad(seen.loss * len(seen.outputs), seen.outputs, retain_graph=True)
    parts = _gradients(seen, slopes)
    norm = ghost.squares(part.piece for part in parts.values())[:, 0].sqrt()
    step = torch.where(norm > 0, rho / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    with _ascended(seen, parts, step):
        outputs = forward(module, x)
    return Ascended(criterion.mean(outputs, y), seen.loss.detach())


def _gradients(seen: Seen, slopes: Tensor) -> dict[int, ghost.Part]:
    ghost.need_covered(seen, "per-example SAM", "refuse")
    with torch.no_grad():
        fixed = seen._replace(differentiable=False)
        pulled = ghost.pull(fixed, [slopes], "per-example SAM")
        return ghost.by_parameter(fixed, pulled, lambda tap: is_convolution(tap.module))


@contextmanager
def _ascended(seen: Seen, parts: dict[int, ghost.Part], step: Tensor) -> Iterator[None]:
    """Within it the layers compute with each example's own ascended weights."""
    changed = []
    try:
        for layer in {id(t.module): t.module for t in seen.taps.values()}.values():
            own: Any = layer
            found = [
                None if p is None else parts.get(id(p)) for p in (own.weight, getattr(own, "bias", None))
            ]
            if any(part is not None for part in found):
                own.forward = partial(_forward_of(own), own, found[0], found[1], step)
                changed.append(own)
        yield
    finally:
        for own in changed:
            del own.forward


def _forward_of(layer: nn.Module) -> Callable[..., Tensor]:
    if is_convolution(layer):
        return _convolution
    if is_normalisation(layer):
        return _normalisation
    return _embedding if isinstance(layer, nn.Embedding) else _linear


def _linear(
    layer: Any, weight: ghost.Part | None, bias: ghost.Part | None, step: Tensor, x: Tensor
) -> Tensor:
    out = F.linear(x, layer.weight, layer.bias)
    if weight is not None:
        left, right, ones = _sides(weight)
        if x.ndim == 2 and left.shape[1] == 1:
            inner = (x * right[:, 0]).sum(1, keepdim=True) + ones
            out = out + inner * (step[:, None] * left[:, 0])
        else:
            rows = x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)
            moved = torch.baddbmm(rows.new_full((), ones), rows, right.transpose(1, 2)) @ left
            out = out + (step[:, None, None] * moved).reshape(out.shape)
    return out + _shift(bias, step, out.ndim) if bias is not None else out


def _embedding(
    layer: Any, weight: ghost.Part | None, bias: ghost.Part | None, step: Tensor, x: Tensor
) -> Tensor:
    out = F.embedding(x, layer.weight, layer.padding_idx)
    if weight is None:
        return out
    left, right, _ = _sides(weight)
    where = x.flatten(1)[:, None].expand(-1, left.shape[1], -1)
    moved = left.gather(2, where).transpose(1, 2) @ right
    return out + (step[:, None, None] * moved).reshape(out.shape)


def _convolution(
    layer: Any, weight: ghost.Part | None, bias: ghost.Part | None, step: Tensor, x: Tensor
) -> Tensor:
    n, size = len(x), layer.weight.numel()
    moved = None if weight is None else _moved(weight, step)
    kernels = layer.weight.expand(n, *layer.weight.shape)
    shift = layer.bias
    if moved is not None:
        kernels = kernels + moved[:, :size].reshape(kernels.shape)
        if moved.shape[1] > size:
            shift = layer.bias + moved[:, size:]
    if bias is not None:
        shift = layer.bias + _moved(bias, step)
    x, padding = padded(layer, x)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.kernel_size) - 1]
    out = convolve(
        x.flatten(0, 1)[None],
        kernels.flatten(0, 1),
        None if shift is None else shift.expand(n, -1).flatten(),
        layer.stride,
        padding,
        layer.dilation,
        layer.groups * n,
    )
    return out.unflatten(1, (n, -1))[0]


def _normalisation(
    layer: Any, weight: ghost.Part | None, bias: ghost.Part | None, step: Tensor, x: Tensor
) -> Tensor:
    hat = normalised(layer, x)
    scale, shift = layer.weight, layer.bias
    lead = [1] * (hat.ndim - 1 - scale.ndim)
    if weight is not None:
        moved = _moved(weight, step)
        scale = scale + moved[:, : scale.numel()].reshape(-1, *lead, *scale.shape)
        if moved.shape[1] > layer.weight.numel():
            shift = shift + moved[:, layer.weight.numel() :].reshape(-1, *lead, *shift.shape)
    if bias is not None:
        moved = _moved(bias, step)
        shift = shift + moved.reshape(-1, *lead, *layer.bias.shape)
    out = hat * scale if shift is None else hat * scale + shift
    return out if isinstance(layer, nn.LayerNorm) else out.movedim(-1, 1)


def _sides(part: ghost.Part) -> Outer:
    """left (n, S, K) and right (n, S, D) of a linear layer or embedding."""
    assert isinstance(part.piece, Outer)
    left, right, ones = part.piece
    return Outer(left[:, 0, 0], right[:, 0, 0], ones)


def _moved(part: ghost.Part, step: Tensor) -> Tensor:
    """Each example's own displacement s_i g_i of a parameter (n, P)."""
    return step[:, None] * ghost.matrix(part.piece)[:, 0]


def _shift(bias: ghost.Part, step: Tensor, ndim: int) -> Tensor:
    moved = _moved(bias, step)
    return moved.reshape(len(moved), *[1] * (ndim - 2), -1)
