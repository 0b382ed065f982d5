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
from flattrain.core.coverage import need_covered
from flattrain.core.functional import Forward, call, outputs_at, see
from flattrain.core.layers import (
    Outer,
    convolution_backward,
    covered_layers,
    is_convolution,
    is_normalisation,
    normalised,
    padded,
)
from flattrain.types import Loss, Params, Seen


class Ascended(NamedTuple):
    """The mean loss with every example ascended, to call `.backward()` on, and the loss before."""

    loss: Tensor
    before: Tensor


def per_example_sam(
    module: nn.Module,
    criterion: Loss,
    x: Any,
    y: Tensor,
    *,
    rho: float,
    params: Params | None = None,
    forward: Forward = call,
) -> Ascended:
    """mean_i ℓ_i(θ + ρ g_i/‖g_i‖); where g_i = 0 there is nowhere to ascend. Gradients are those of m = 1.

    With `params` the call is functional, also under vmap, for the modules that `functional_too` names.
    """
    seen = see(module, criterion, x, y, layers=covered_layers(module), params=params, forward=forward)
    (slopes,) = torch.autograd.grad(seen.loss * len(seen.outputs), seen.outputs, retain_graph=True)
    parts = _gradients(seen, slopes)
    norm = ghost.squares(part.piece for part in parts.values())[:, 0].sqrt()
    step = torch.where(norm > 0, rho / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    with _ascended(seen, parts, step):
        outputs = forward(module, x) if params is None else outputs_at(module, forward, params, {}, x)
    return Ascended(criterion.mean(outputs, y), seen.loss.detach())


def functional_too(module: nn.Module) -> bool:
    """Whether `params` may be given: every parameter is known and trained, and none is a convolution's.

    The second pass of a convolution is an `autograd.Function`, which torch.func does not take.
    """
    layers = [module.get_submodule(name) for name in covered_layers(module)]
    known = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    served = all(p.requires_grad and id(p) in known for p in module.parameters())
    return served and not any(map(is_convolution, layers))


def _gradients(seen: Seen, slopes: Tensor) -> dict[int, ghost.Part]:
    need_covered(seen, "per-example SAM")
    with torch.no_grad():
        fixed = seen._replace(differentiable=False)
        pulled = ghost.pull(fixed, [slopes], "per-example SAM")
        return ghost.by_parameter(fixed, pulled, lambda tap: is_convolution(tap.module))


@contextmanager
def _ascended(seen: Seen, parts: dict[int, ghost.Part], step: Tensor) -> Iterator[None]:
    """Within it the layers compute with each example's own ascended weights."""
    changed, kernels = [], _kernels(seen, parts, step)
    try:
        for tap in {id(t.module): t for t in seen.taps.values()}.values():
            own: Any = tap.module
            found = [None if p is None else parts.get(id(p)) for p in (tap.weight, tap.bias)]
            if any(part is not None for part in found):
                if is_convolution(own):
                    own.forward = partial(_convolution, own, kernels.get(id(tap.weight)), found[1], step)
                else:
                    own.forward = partial(_forward_of(own), own, found[0], found[1], step)
                changed.append(own)
        yield
    finally:
        for own in changed:
            del own.forward


def _kernels(seen: Seen, parts: dict[int, ghost.Part], step: Tensor) -> dict[int, Tensor]:
    """{id of a convolution's W: W + s_i g_i (n, P), then s_i g_i of its bias}, where the g_i were.

    A kernel for each example is the largest thing here, and gradients and kernels are not needed together.
    """
    weights = {id(tap.weight): tap.weight for tap in seen.taps.values() if is_convolution(tap.module)}
    found = {k: ghost.matrix(parts[k].piece)[:, 0].mul_(step[:, None]) for k in weights if k in parts}
    with torch.no_grad():
        for k, moved in found.items():
            moved[:, : weights[k].numel()].add_(weights[k].flatten())
    return found


def _forward_of(layer: nn.Module) -> Callable[..., Tensor]:
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


def _convolution(layer: Any, own: Tensor | None, bias: ghost.Part | None, step: Tensor, x: Tensor) -> Tensor:
    size, shift = layer.weight.numel(), layer.bias
    if own is None:
        out = layer._conv_forward(x, layer.weight, None)
    else:
        out = _OwnKernels.apply(*padded(layer, x), layer.weight, own[:, :size], layer)
        if own.shape[1] > size:
            shift = layer.bias + own[:, size:]
    if bias is not None:
        shift = layer.bias + _moved(bias, step)
    if shift is None:
        return out
    return out + shift.reshape(-1, out.shape[1], *[1] * (out.ndim - 2))


class _OwnKernels(torch.autograd.Function):
    """A convolution with a kernel per example, that differs from W by a constant.

    One convolution with a group per example, but the gradient in W is that of an ordinary one: no gradient of
    each kernel is formed, to be summed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: Any, weight: Tensor, own: Tensor, layer: Any) -> Tensor:
        n = len(x)
        kernels = own.reshape(n * len(weight), *weight.shape[1:])
        ctx.save_for_backward(x, weight, kernels)
        ctx.layer, ctx.padding = layer, padding
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.kernel_size) - 1]
        grouped = x.flatten(0, 1)[None]
        out = convolve(grouped, kernels, None, layer.stride, padding, layer.dilation, layer.groups * n)
        return out.unflatten(1, (n, -1))[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, kernels), (g,) = ctx.saved_tensors, cotangents
        layer, padding, of_x, of_weight = ctx.layer, ctx.padding, None, None
        if ctx.needs_input_grad[0]:
            sides = g.flatten(0, 1)[None], x.flatten(0, 1)[None]
            of_x = convolution_backward(layer, *sides, kernels, padding, layer.groups * len(x), "input")
            of_x = of_x.reshape(x.shape)
        if ctx.needs_input_grad[2]:
            of_weight = convolution_backward(layer, g, x, weight, padding, layer.groups, "weight")
        return of_x, None, of_weight, None, None


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
