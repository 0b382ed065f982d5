"""Small standard networks: a multi-layer perceptron and a convolutional net."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import Generator, nn

from flattrain.core.eager import LayerNorm
from flattrain.problems import start
from flattrain.problems.split import Model, Split
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Params

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
}


@checked
def mlp(
    *,
    widths: tuple[int, ...] = (64,),
    activation: Literal["relu", "tanh", "softplus", "gelu"] = "relu",
    normalisation: Literal["none", "layer"] = "none",
    bias: Literal["all", "first", "none"] = "all",
    node_scale: Positive = 1.0,
    head_norm: Positive | None = None,
    head_norm_at_most: Positive | None = None,
) -> Model:
    """Linear layers `hidden1`, `hidden2`, … and `head` on flattened inputs; `bias` says which have one.

    With `normalisation="layer"` a LayerNorm `norm1`, `norm2`, … stands before each activation. `node_scale`
    multiplies the initial weights and biases into the first hidden units and divides those out of them: of
    ReLU units the function is the same. After every step the weight of the head is scaled to the Frobenius
    norm `head_norm`, or down to `head_norm_at_most`.
    """
    if head_norm is not None and head_norm_at_most is not None:
        raise Refused("mlp: give head_norm or head_norm_at_most, not both")
    if not widths or min(widths) < 1:
        raise Refused(f"mlp: widths must be a list of whole numbers >= 1, got {list(widths)}")
    if node_scale != 1 and (activation != "relu" or normalisation != "none"):
        raise Refused("mlp: node_scale keeps the function of relu units without normalisation only")

    def build(split: Split) -> nn.Module:
        sizes = [math.prod(split.train_x.shape[1:]), *widths]
        parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for k, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            parts[f"hidden{k}"] = nn.Linear(inputs, outputs, bias == "all" or (bias == "first" and k == 1))
            if normalisation == "layer":
                parts[f"norm{k}"] = LayerNorm(outputs)
            parts[f"act{k}"] = ACTIVATIONS[activation]()
        parts["head"] = nn.Linear(sizes[-1], split.outputs, bias == "all")
        return nn.Sequential(parts)

    def project(module: nn.Module, params: Params) -> Params:
        if head_norm is None and head_norm_at_most is None:
            return params
        weight = params["head.weight"]
        norm = weight.square().sum().sqrt()
        to = head_norm if head_norm is not None else norm.clamp(max=head_norm_at_most)
        return params | {"head.weight": weight * (to / norm)}

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        params = start.default(module, split, generator)
        after = "hidden2.weight" if len(widths) > 1 else "head.weight"
        into = {k: v * node_scale for k, v in params.items() if k.startswith("hidden1.")}
        return project(module, params | into | {after: params[after] / node_scale})

    return Model(build, initial, project=project)


@checked
def cnn(*, channels: tuple[int, ...] = (8, 16)) -> Model:
    """3×3 convolutions, each with ReLU and 2×2 max-pooling, then the linear `head`."""
    if not channels or min(channels) < 1:
        raise Refused(f"cnn: channels must be a list of whole numbers >= 1, got {list(channels)}")

    def build(split: Split) -> nn.Module:
        shape = tuple(split.train_x.shape[1:])
        if len(shape) != 3:
            raise Refused(f"cnn takes images (channels, height, width), the data set gives {shape}")
        side = min(shape[1:]) >> len(channels)
        if side < 1:
            raise Refused(f"cnn: {len(channels)} poolings are too many for images of {shape[1:]}")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for k, (inputs, outputs) in enumerate(pairwise((shape[0], *channels)), start=1):
            parts[f"conv{k}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
            parts[f"act{k}"] = nn.ReLU()
            parts[f"pool{k}"] = nn.MaxPool2d(2)
        parts["flatten"] = nn.Flatten()
        pixels = math.prod(s >> len(channels) for s in shape[1:])
        parts["head"] = nn.Linear(channels[-1] * pixels, split.outputs)
        return nn.Sequential(parts)

    return Model(build, start.default)
