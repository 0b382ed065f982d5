"""The networks of the curvature benchmark, and what a group of methods on one of them is.

MLP        784-512-256-10, ReLU (or tanh), batch 128
BN-ResNet  3×32×32, 16/32/64 channels, three blocks each, batch 64; the plain step is in train mode, methods
           that need separable examples take it in eval mode
ResNet-20  the same without normalisation and without biases

Also the MLP and the ResNet-20 after 300 steps on 1,000 images of MNIST where FLATTRAIN_DATA is set, else on
synthetic data; the ResNet-20 sees them in a frame, 32×32, three times. Otherwise inputs are standard normal
and labels random. The learning rate is so small that every method stays at the same weights, while its step
does all the arithmetic.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flattrain.problems.idx import mnist

RATE = 1e-6


class Problem(NamedTuple):
    net: Any  # an nn.Module, whose attributes are modules too
    x: Tensor
    y: Tensor
    weight: float = 1e-3  # of the penalty
    network: str = ""


class Work(NamedTuple):
    """run     : what is timed; it does `units` of the work.
    value   : what must equal the reference's, e.g. the gradient of the step.
    scalar  : for methods with noise: a number whose mean must be the reference's.
    found   : ratio to the plain step -> numbers for columns of their own.
    """

    run: Callable[[], object]
    value: Callable[[], Tensor] | None = None
    scalar: Callable[[], float] | None = None
    found: Callable[[float], dict[str, float]] | None = None
    units: int = 1


@dataclass(frozen=True)
class Method:
    """A way to do a group's work; `needs` is the module it imports, `cannot` says why it has no figure."""

    name: str
    work: Callable[[Problem], Work] | None = None
    needs: str = ""
    cannot: str = ""
    check: Literal["reference", "equal", "mean", "none"] = "equal"
    remark: str = ""


@dataclass(frozen=True)
class Group:
    key: str
    title: str
    network: str
    methods: tuple[Method, ...]
    tolerance: float = 1e-9  # of "equal", in float64; "mean" must be within four standard errors
    baseline: Literal["step", "gradient"] = "step"


def mlp(activation: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    net = nn.Sequential()
    for name, part in (
        ("hidden1", nn.Linear(784, 512, bias)), ("act1", activation()),
        ("hidden2", nn.Linear(512, 256, bias)), ("act2", activation()),
        ("head", nn.Linear(256, 10, bias)),
    ):  # fmt: skip
        net.add_module(name, part)
    return net


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.first = _convolution(inputs, outputs, 3, stride, norm)
        self.second = _convolution(outputs, outputs, 3, 1, norm)
        self.shortcut = nn.Identity() if stride == 1 else _convolution(inputs, outputs, 1, stride, norm)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.second(self.inner(self.first(x))) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: bool) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs)) if norm else nn.Sequential(layer)


def resnet(norm: bool) -> nn.Sequential:
    net, width = nn.Sequential(_convolution(3, 16, 3, 1, norm), nn.ReLU()), 16
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            net.add_module(f"block{stage}{block}", Block(width, channels, norm))
            width = channels
    for name, part in (
        ("pool", nn.AvgPool2d(8)),
        ("flatten", nn.Flatten()),
        ("head", nn.Linear(64, 10, bias=norm)),
    ):
        net.add_module(name, part)
    return net


TRAINED = {"MLP, trained": "MLP", "ResNet-20, no norm, trained": "ResNet-20, no norm"}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": mlp,
    "MLP, no biases": lambda: mlp(bias=False),
    "MLP, tanh": lambda: mlp(nn.Tanh),
    "BN-ResNet, train mode": lambda: resnet(norm=True),
    "BN-ResNet, eval mode": lambda: resnet(norm=True).eval(),
    "ResNet-20, no norm": lambda: resnet(norm=False),
}


def problem(network: str, dtype: torch.dtype = torch.float32, weight: float = 1e-3) -> Problem:
    """The same weights and data at every call, up to rounding."""
    if network in TRAINED:
        net, x, y = _trained(network)
        return Problem(copy.deepcopy(net).to(dtype), x.to(dtype), y, weight, network)
    torch.manual_seed(0)
    dense = network.startswith("MLP")
    x = torch.randn(128, 784) if dense else torch.randn(64, 3, 32, 32)
    y = torch.randint(10, (len(x),))
    return Problem(NETWORKS[network]().to(dtype), x.to(dtype), y, weight, network)


@lru_cache(maxsize=1)
def _trained(network: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network after 300 steps on 1,000 examples, and a batch of them."""
    torch.manual_seed(0)
    if "FLATTRAIN_DATA" in os.environ:
        split = mnist(train=1000)(0)
        x, y = split.train_x.flatten(1), split.train_y
    else:
        x = torch.randn(1000, 784)
        y = (x @ torch.randn(784, 10)).argmax(1)
    dense = network.startswith("MLP")
    if not dense:
        x = F.pad(x.view(-1, 1, 28, 28), (2, 2, 2, 2)).repeat(1, 3, 1, 1)
    net, size = NETWORKS[TRAINED[network]](), 128 if dense else 64
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05 if dense else 0.01, momentum=0.9)
    for _ in range(300):
        chosen = torch.randint(len(x), (size,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return net, x[:size], y[:size]


def training(p: Problem, objective: Callable[[], tuple[Tensor, float]]) -> Work:
    """A step of SGD with momentum on `objective() -> (loss to call backward on, penalty's value)`."""
    optimizer = torch.optim.SGD(p.net.parameters(), lr=RATE, momentum=0.9)

    def gradient() -> Tensor:
        optimizer.zero_grad()
        objective()[0].backward()
        return torch.cat([t.grad.flatten() for t in p.net.parameters() if t.grad is not None])

    def step() -> None:
        optimizer.zero_grad()
        objective()[0].backward()
        optimizer.step()

    return Work(step, gradient, lambda: objective()[1])


def plain(group: Group) -> Callable[[], object]:
    """The plain step, or its gradient, that all figures of a group are ratios to."""
    p = problem(group.network.replace("eval", "train"))
    if group.baseline == "gradient":
        live = list(p.net.parameters())
        return lambda: torch.autograd.grad(F.cross_entropy(p.net(p.x), p.y), live)
    return training(p, lambda: (F.cross_entropy(p.net(p.x), p.y), 0.0)).run
