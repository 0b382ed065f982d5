"""The two-layer ReLU nets of Wen, Li & Ma 2023 (section 2): one output, no bias in the head.

    none    f = w · relu(Wx + b)                      with or without the first-layer bias b; or with softplus
    layer   f = w · a / max(‖a‖, ε)                   a = relu(Wx + b)     (simplified LayerNorm)
    batch   f = w · (γ ⊙ a / √(mean_i a(x_i)²))       over the *whole training set* (simplified BatchNorm)

The paper gives no number for ε ("sufficiently small") and no initialisation; here ε = 1e-6 unless said
otherwise, and PyTorch's default initialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from flattrain.core import trees
from flattrain.problems import start
from flattrain.problems.split import Model, Split
from flattrain.ranges import Count, NonNegative, Positive, Refused, checked
from flattrain.types import Params


class TwoLayer(nn.Module):
    """f = w · relu(Wx + b), or with softplus in the place of relu."""

    held_norm: float | None = None  # of the hidden weights and biases together
    activation: Literal["relu", "softplus"] = "relu"

    def __init__(self, inputs: int, width: int, bias: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width, bias=bias)
        self.head = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.hidden(x)
        return self.head(z.relu() if self.activation == "relu" else F.softplus(z))

    def project(self, params: Params) -> Params:
        """Hidden weights and biases scaled to the held norm, if there is one."""
        if self.held_norm is None:
            return params
        hidden = {k: v for k, v in params.items() if k.startswith("hidden.")}
        scale = self.held_norm / trees.norm(hidden)
        return params | {k: v * scale for k, v in hidden.items()}


class LayerNormed(TwoLayer):
    """f = w · a / max(‖a‖, ε), a = relu(Wx + b)."""

    def __init__(self, inputs: int, width: int, bias: bool, clamp: float) -> None:
        super().__init__(inputs, width, bias)
        self.clamp = clamp

    def forward(self, x: Tensor) -> Tensor:
        a = self.hidden(x).relu()
        # The root is taken of the clamped square, whose derivative at a = 0 is finite.
        return self.head(a / a.square().sum(-1, keepdim=True).clamp(min=self.clamp**2).sqrt())


class TrainingSetNorm(nn.Module):
    """γ_j a_j / √(mean over the training set of a_j²); 0 for a unit that no training example activates."""

    couples_examples = True
    normalises = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def start(self) -> Params:
        return {"gamma": torch.ones_like(self.gamma)}

    def forward(self, a: Tensor, reference: Tensor) -> Tensor:
        size = reference.square().mean(0)
        alive = size > 0
        return self.gamma * alive * a / torch.where(alive, size, 1.0).sqrt()


class BatchNormed(TwoLayer):
    """Simplified BatchNorm; the training inputs are a buffer, so one example's pass sees all of them."""

    def __init__(self, inputs: int, width: int, bias: bool, examples: int) -> None:
        super().__init__(inputs, width, bias)
        self.norm = TrainingSetNorm(width)
        self.register_buffer("reference", torch.zeros(examples, inputs))
        self.reference: Tensor

    def forward(self, x: Tensor) -> Tensor:
        reference = F.linear(self.reference, self.hidden.weight, self.hidden.bias).relu()
        return self.head(self.norm(self.hidden(x).relu(), reference))


@checked
def two_layer(
    *,
    width: Count = 500,
    bias: bool = True,
    activation: Literal["relu", "softplus"] = "relu",
    normalisation: Literal["none", "layer", "batch"] = "none",
    clamp: Positive = 1e-6,
    first_layer_scale: Positive = 1.0,
    first_layer_norm: Positive | None = None,
) -> Model:
    """A two-layer net; `first_layer_scale` multiplies the initial hidden weights and biases.

    `first_layer_norm` holds √(‖W‖² + ‖b‖²) at a value, by scaling after every step and at the start. The
    normalised nets do not depend on that norm, but their trace does: without it, growing the first layer
    brings any interpolator down to the floor.
    """
    if activation != "relu" and normalisation != "none":
        raise Refused(f"two_layer: activation {activation} goes with normalisation none, got {normalisation}")

    def build(split: Split) -> nn.Module:
        _need_one_output(split)
        inputs = split.train_x.shape[-1]
        net: TwoLayer
        if normalisation == "layer":
            net = LayerNormed(inputs, width, bias, clamp)
        elif normalisation == "batch":
            net = BatchNormed(inputs, width, bias, len(split.train_x))
        else:
            net = TwoLayer(inputs, width, bias)
        net.held_norm, net.activation = first_layer_norm, activation
        return net

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        params = start.default(module, split, generator)
        scaled = {k: v * first_layer_scale if k.startswith("hidden.") else v for k, v in params.items()}
        return project(module, scaled)

    def project(module: nn.Module, params: Params) -> Params:
        assert isinstance(module, TwoLayer)
        return module.project(params)

    def buffers(module: nn.Module, split: Split) -> Params:
        return {"reference": split.train_x} if normalisation == "batch" else {}

    return Model(build, initial, buffers, project)


def _need_one_output(split: Split) -> None:
    if split.outputs != 1 or split.train_x.ndim != 2:
        raise Refused(
            "two_layer has one output and takes vectors; the data set gives "
            f"{split.outputs} outputs and examples of shape {tuple(split.train_x.shape[1:])}"
        )


@checked
def memorising(*, margin: Positive = 0.999, perturbation: NonNegative = 0.0) -> Model:
    """The interpolator that gives each training point a neuron of its own (Wen et al. 2023, section 4.1).

    With r = √(‖x‖² + 1), unit directions x_i/√d and ε = `margin` · 2/√d, neuron i fires on x_i alone:
    w_i = √r x_i/(√d ε), b_i = √r (ε − √d)/ε, head y_i/√r. Its trace is the minimum 2 mean 2 r |y| over
    all interpolators, and it errs on every other point of the cube. `margin` stays below 1: at 1, points
    at Hamming distance 1 tie. `perturbation` is the standard deviation of Gaussian noise on every parameter,
    for a start beside it.
    """
    if margin >= 1:
        raise Refused(f"memorising: margin must be < 1, got {margin}: at 1 neighbouring points tie")

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        x, y = split.train_x, split.train_y
        d = x.shape[1]
        eps = margin * 2 / d**0.5
        root = (d + 1) ** 0.25
        exact = {
            "hidden.weight": root * x / (d**0.5 * eps),
            "hidden.bias": torch.full_like(y, root * (eps - d**0.5) / eps),
            "head.weight": (y / root)[None],
        }
        if not perturbation:
            return exact
        return {
            k: v + perturbation * torch.randn(v.shape, generator=generator, dtype=v.dtype)
            for k, v in exact.items()
        }

    def width(split: Split) -> int:
        if len(split.train_x.unique(dim=0)) < len(split.train_x):
            raise Refused(
                "memorising: the training points must be distinct, each has a neuron of its own; take a "
                "larger dim or fewer points"
            )
        return len(split.train_x)

    return _constructed(initial, width)


@checked
def generalising() -> Model:
    """The interpolator that is right on the whole cube: four neurons on ±x₁ ± x₂ (Wen et al. 2023, eq. 5,

    with r = (d + 1)^¼; the printed (d² + 1)^¼ does not reach the floor). Same minimal trace.
    """

    def initial(module: nn.Module, split: Split, generator: Generator) -> Params:
        d = split.train_x.shape[1]
        r = (d + 1) ** 0.25
        signs = split.train_x.new_tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        return {
            "hidden.weight": r * F.pad(signs, (0, d - 2)),
            "hidden.bias": -r * torch.ones_like(signs[:, 0]),
            "head.weight": (signs.prod(1) / r)[None],
        }

    return _constructed(initial, lambda split: 4)


def _constructed(
    initial: Callable[[nn.Module, Split, Generator], Params], width: Callable[[Split], int]
) -> Model:
    def build(split: Split) -> nn.Module:
        _need_one_output(split)
        return TwoLayer(split.train_x.shape[-1], width(split), bias=True)

    return Model(build, initial)
