"""What a network's measures are when its head is multiplied by a constant after training.

    W → cW,   b → cb,   so that the logits z become cz

No prediction changes, and with it no zero-one error; the loss does, and so does the relative flatness of the
head, κ(c) = c² mean ‖φ‖² Tr(W Wᵀ S(cz)), S = ∇²_z ℓ. A measure that is to be compared between networks can
be taken at a common loss instead, at c = β with

    L(βz) = L₀,   L the mean loss over the examples it is evaluated on

which takes away whatever scale the head has, as L(β·cz) = L(βc·z). Under cross entropy L(βz) is convex in
β and begins at log K, so there is one crossing on the way down; where L₀ is never reached the measure is nan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flattrain.core.functional import tapped
from flattrain.core.tail import is_head
from flattrain.measures.loss import error, loss
from flattrain.measures.norms import weight_norm
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Contrast, Estimate, Measure, Seen, Statistic

Of = Literal["loss", "error", "relative_flatness", "weight_norm"]
DOUBLINGS = 40  # of the scale in search of the loss


@checked
def rescaled(
    *,
    of: Literal["loss", "error", "relative_flatness", "weight_norm"] = "loss",
    factor: Positive = 1.0,
    layer: str = "head",
) -> Measure:
    """What `of` is when the weight and the bias of the head `layer` are multiplied by `factor`."""
    inner = _measure(of, layer)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        return inner.statistic(_scaled(seen, layer, factor), {})

    words = f"{inner.definition}, weight and bias of {layer!r} multiplied by {factor:g}"
    return replace(inner, name="rescaled", statistic=statistic, definition=words, layers=(layer,))


@checked
def rescaled_loss_gap(*, factor: Positive = 1.0, layer: str = "head") -> Contrast:
    """L on held-out examples less L on the training examples, the head multiplied by `factor`."""
    one = rescaled(of="loss", factor=factor, layer=layer)
    words = (
        "mean loss on held-out examples less that on training examples, weight and bias of "
        f"{layer!r} multiplied by {factor:g}"
    )
    return Contrast("rescaled_loss_gap", one, one, words)


@checked
def matched_relative_flatness(
    *, loss: Positive = 0.1, factor: Positive = 1.0, layer: str = "head"
) -> Measure:
    """κ of the head at the temperature at which the mean loss of the examples is `loss`.

    factor : of the head beforehand, which makes no difference.
    """
    inner = relative_flatness(layer=layer, form="head")

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        given = _scaled(seen, layer, factor)
        beta = scale_at(given, loss)
        if beta is None:
            return {"kappa": seen.loss.new_tensor(math.nan)}
        return inner.statistic(_scaled(given, layer, beta), {})

    before = "" if factor == 1 else f", the head multiplied by {factor:g} beforehand"
    return replace(
        inner,
        name="matched_relative_flatness",
        statistic=statistic,
        reduce=lambda s: Estimate(s["kappa"]),
        definition=f"{inner.definition}, at the scale of {layer!r} where the mean loss is {loss:g}{before}",
        combine="whole",
    )


def scale_at(seen: Seen, level: float) -> float | None:
    """The smallest β > 0 with L(βz) = `level`, by bisection; None where there is none."""
    z = seen.outputs.detach()

    def beyond(beta: float) -> tuple[bool, bool]:
        """Whether L is down at the level, and whether it is there or no longer falls."""
        with torch.enable_grad():
            at = torch.tensor(beta, dtype=z.dtype, device=z.device, requires_grad=True)
            value = seen.criterion.mean(at * z, seen.target)
            (slope,) = torch.autograd.grad(value, at)
        down = bool(value <= level)
        return down, down or bool(slope >= 0)

    low, high = 0.0, 1.0
    if beyond(low)[1]:
        return None
    for _ in range(DOUBLINGS):
        if beyond(high)[1]:
            break
        low, high = high, 2 * high
    # By convexity nothing up to the crossing, or up to the minimum where there is none, is beyond it.
    while high - low > torch.finfo(z.dtype).eps * high:
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle)[1] else (middle, high)
    return high if beyond(high)[0] else None


def _measure(of: Of, layer: str) -> Measure:
    if of == "relative_flatness":
        return relative_flatness(layer=layer, form="head")
    if of == "weight_norm":
        return weight_norm(layer=layer)
    return loss() if of == "loss" else error()


def _scaled(seen: Seen, layer: str, c: float) -> Seen:
    """The pass of the network with a head of c times the weight and c times the bias."""
    tap = tapped(seen, layer)
    if not is_head(seen, tap):
        raise Refused(
            f"layer {layer!r} does not give the outputs, under cross entropy or squared error; "
            "multiplying it by a constant would change what the network predicts: name the last layer"
        )
    outputs = c * seen.outputs
    bias = None if tap.bias is None else c * tap.bias
    return seen._replace(
        params={k: c * p if k.startswith(f"{layer}.") else p for k, p in seen.params.items()},
        outputs=outputs,
        loss=seen.criterion.mean(outputs, seen.target),
        taps={**seen.taps, layer: tap._replace(output=outputs, weight=c * tap.weight, bias=bias)},
    )
