"""Problems of a few parameters whose flattest minima are known: what a rule prefers can be read off.

The data set has the k-th unit vector as its k-th example and 0 as every target; a model gives f_k(θ) for it.

    valley            L = F₁(z) x₁² + F₂(z) x₂², a term per example: on the minima x = 0 the Hessian has the
                      eigenvalues 2 F₁ > 2 F₂ > 0, and each of F₁, F₂, F₁ + F₂ is least at another z
                      (the form of Wen, Ma & Li 2022, arXiv 2211.05729, Figure 1; the functions are our own)
    quadratic         L = ½ Σ_k λ_k x_k²
    exponential_pair  L = ½ (e^z a₁² + c e^{−2z} a₂²): on the minima a = 0 the trace e^z + c e^{−2z} is least
                      where the two are 1.4 and 0.7
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from flattrain.problems.split import DataSet, Model, Split
from flattrain.ranges import Count, Positive, Refused, checked
from flattrain.types import Params

FIRST, SECOND = (1.0, 0.0), (-1.0, 1.0)  # where F₁ and F₂ are least
C = 1.4**2 * 0.7


@checked
def unit_vectors(*, train: Count = 2) -> DataSet:
    """`train` unit vectors with targets 0, the same for every seed; the test set is the training set."""

    def split(seed: int) -> Split:
        x, y = torch.eye(train), torch.zeros(train)
        return Split(x, y, x, y, 1)

    return split


def curvatures(z: Tensor) -> tuple[Tensor, Tensor]:
    """F₁ = 7 + ‖z − p‖² and F₂ = 1 + ½ ‖z − q‖², p = FIRST and q = SECOND; F₁ − F₂ ≥ 1 everywhere."""
    first, second = z - z.new_tensor(FIRST), z - z.new_tensor(SECOND)
    return 7 + first.square().sum(), 1 + second.square().sum() / 2


class Toy(nn.Module):
    """f_k(θ) for the k-th unit vector; `landmarks` names points in the space of some of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.landmarks: dict[str, dict[str, Tensor]] = {}

    def values(self) -> Tensor:
        """f (n,)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.values())[:, None]


class Valley(Toy):
    """f = (√(2 F₁) x₁, √(2 F₂) x₂), whose mean of squares is L."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.x = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        p, q = torch.tensor(FIRST, dtype=torch.float64), torch.tensor(SECOND, dtype=torch.float64)
        self.landmarks = {"top": {"z": p}, "smallest": {"z": q}, "trace": {"z": (2 * p + q) / 3}}

    def values(self) -> Tensor:
        return (2 * torch.stack(curvatures(self.z))).sqrt() * self.x


class Quadratic(Toy):
    """f_k = √(n λ_k / 2) x_k."""

    def __init__(self, eigenvalues: tuple[float, ...]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(len(eigenvalues)))
        self.eigenvalues = eigenvalues

    def values(self) -> Tensor:
        return (self.x.new_tensor(self.eigenvalues) * len(self.x) / 2).sqrt() * self.x


class ExponentialPair(Toy):
    """f = (e^{z/2} a₁, √c e^{−z} a₂)."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.z, self.a = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))
        points = {"trace": math.log(1.4), "logarithmic": logarithmic_minimiser(lr)}
        self.landmarks = {name: {"z": torch.tensor(at, dtype=torch.float64)} for name, at in points.items()}

    def values(self) -> Tensor:
        return torch.stack([(self.z / 2).exp() * self.a[0], C**0.5 * (-self.z).exp() * self.a[1]])


def logarithmic_minimiser(lr: float) -> float:
    """The z at which −Σ log(1 − ηλ/2) is least: where λ₁/(1 − ηλ₁/2) = 2λ₂/(1 − ηλ₂/2), by bisection.

    This is the regulariser of gradient noise of covariance κ∇²L at a large learning rate η, up to κ/2.
    """
    # Both eigenvalues must stay below 2/η; the slope rises from −∞ to ∞ between the two ends.
    low, high = math.log(lr * C / 2) / 2, math.log(2 / lr)
    if not low < high:
        raise Refused(f"exponential_pair: lr must leave both eigenvalues below 2/lr somewhere, got {lr:g}")
    for _ in range(200):
        z = (low + high) / 2
        first, second = math.exp(z), C * math.exp(-2 * z)
        if first * (1 - lr * second / 2) < 2 * second * (1 - lr * first / 2):
            low = z
        else:
            high = z
    return (low + high) / 2


@checked
def valley() -> Model:
    """z starts at two standard normals, x at 0.05 each."""

    def start(module: nn.Module, split: Split, generator: Generator) -> Params:
        z = torch.randn(2, generator=generator, dtype=split.train_x.dtype)
        return {"z": z, "x": torch.full_like(z, 0.05)}

    return _toy(Valley, 2, start)


@checked
def quadratic(*, eigenvalues: tuple[float, ...] = (1.0, 0.5, 0.25)) -> Model:
    """x starts at standard normals."""
    if min(eigenvalues, default=0) <= 0:
        raise Refused(f"quadratic: eigenvalues must be a list of numbers > 0, got {list(eigenvalues)}")

    def start(module: nn.Module, split: Split, generator: Generator) -> Params:
        return {"x": torch.randn(len(eigenvalues), generator=generator, dtype=split.train_x.dtype)}

    return _toy(lambda: Quadratic(eigenvalues), len(eigenvalues), start)


@checked
def exponential_pair(*, lr: Positive = 1.0) -> Model:
    """z starts uniform in (−0.1, 0.45), a at 0; `lr` is that of the training, for the landmark alone."""

    def start(module: nn.Module, split: Split, generator: Generator) -> Params:
        z = torch.rand((), generator=generator, dtype=split.train_x.dtype) * 0.55 - 0.1
        return {"z": z, "a": split.train_x.new_zeros(2)}

    return _toy(lambda: ExponentialPair(lr), 2, start)


def _toy(
    make: Callable[[], Toy], examples: int, start: Callable[[nn.Module, Split, Generator], Params]
) -> Model:
    def build(split: Split) -> nn.Module:
        if split.train_x.shape != (examples, examples):
            raise Refused(
                f"this model takes {examples} unit vectors (unit_vectors: {{train: {examples}}}), the data "
                f"set gives examples of shape {tuple(split.train_x.shape)}"
            )
        return make()

    return Model(build, start)
