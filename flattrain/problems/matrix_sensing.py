"""Recovery of a low-rank matrix from linear measurements, and the deep linear nets that are trained on it.

    b_i = ⟨A_i, M*⟩,   A_i with independent standard normal entries,   f(A) = ⟨A, W_L … W_1⟩

M* is a product of two Gaussian factors, scaled to nuclear norm 1. Measurements of M* determine it long before
there are as many as entries, if one looks for low rank; the net has no such wish of its own. Gatmiry et al.
2023 (arXiv 2306.13239) study the trace of the Hessian over its interpolators.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import einsum
from torch import Generator, Tensor, nn

from flattrain.core.probes import stream
from flattrain.problems.flattest_factors import flattest_factors
from flattrain.problems.nuclear_norm import least_nuclear_norm
from flattrain.problems.split import DataSet, Model, Split
from flattrain.ranges import Count, Positive, Refused, Steps, checked
from flattrain.types import Params


@checked
def matrix_sensing(
    *,
    size: Count = 20,
    rank: Count = 2,
    train: Count = 200,
    test: Count = 1000,
    validation: Steps = 0,
    measurements: Literal["gaussian", "entries"] = "gaussian",
) -> DataSet:
    """`train`, `test` and `validation` measurements of a size × size matrix, per seed.

    The mean squared error on the test set estimates ‖M − M*‖_F², since E ⟨A, Δ⟩² = ‖Δ‖_F². Training sets are
    prefixes of one another, as in every sweep over n. With `measurements="entries"` the training set is every
    entry once, times size: mean vec(A) vec(A)ᵀ is the identity exactly, not only in expectation.
    """
    if rank > size:
        raise Refused(f"matrix_sensing: rank must be at most size = {size}, got {rank}")
    if measurements == "entries" and train != size**2:
        raise Refused(f"matrix_sensing: every entry once needs train = size² = {size**2}, got {train}")

    def split(seed: int) -> Split:
        generator = stream(seed, "sensing", "matrix")
        left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for _ in range(2))
        target = left @ right.mT
        target = target / torch.linalg.matrix_norm(target, "nuc")
        train_x, test_x, held_x = (
            torch.randn(n, size, size, generator=stream(seed, "sensing", part))
            for n, part in ((train, "train"), (test, "test"), (validation, "validation"))
        )
        if measurements == "entries":
            train_x = size * torch.eye(train, dtype=test_x.dtype).view(train, size, size)
        train_y, test_y, held_y = (
            einsum(a, target.to(a.dtype), "n i j, i j -> n") for a in (train_x, test_x, held_x)
        )
        parts = Split(train_x, train_y, test_x, test_y, 1)
        return parts._replace(validation_x=held_x, validation_y=held_y) if validation else parts

    return split


class DeepLinear(nn.Module):
    """f(A) = ⟨A, W_L … W_1⟩ for matrices A (n, rows, columns); outputs (n, 1)."""

    def __init__(self, rows: int, columns: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [columns, *[width] * (depth - 1), rows]
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        self.factors = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)

    def product(self) -> Tensor:
        """W_L … W_1 (rows, columns)."""
        whole = self.factors[0]
        for factor in list(self.factors)[1:]:
            whole = factor @ whole
        return whole

    def forward(self, x: Tensor) -> Tensor:
        return einsum(x, self.product(), "n i j, i j -> n")[:, None]


@checked
def deep_linear(
    *,
    depth: Count = 3,
    width: Count | None = None,
    gain: Positive = 1.0,
    factors: Literal["normal", "flattest"] = "normal",
    balance: Positive = 1.0,
) -> Model:
    """L = `depth` factors; `width` of the inner ones, by default the matrix's.

    normal    entries start with deviation gain · (size · width^(L−1))^(−1/(2L)), so that E‖W_L … W_1‖_F² =
              gain^2L times the square matrix's size.
    flattest  constructed, not trained: the factors of least trace under isotropic measurements, of the matrix
              of least nuclear norm that meets the training measurements. W_1 is multiplied by `balance` and
              W_L divided by it: the same matrix, sharper. `gain` has no part in it.
    """
    if depth < 2:
        raise Refused(f"deep_linear: depth must be >= 2, got {depth}: one factor is linear regression")

    def build(split: Split) -> nn.Module:
        shape = tuple(split.train_x.shape[1:])
        if len(shape) != 2:
            raise Refused(f"deep_linear takes matrices as inputs; these are of shape {shape}")
        return DeepLinear(*shape, width or max(shape), depth)

    def start(module: nn.Module, split: Split, generator: Generator) -> Params:
        if factors == "flattest":
            found = least_nuclear_norm(split.train_x, split.train_y).matrix
            each = flattest_factors(found, depth, width or max(found.shape))
            each = [balance * each[0], *each[1:-1], each[-1] / balance]
            return {f"factors.{k}": w.to(split.train_y.dtype) for k, w in enumerate(each)}
        rows, inner = split.train_x.shape[1], width or max(split.train_x.shape[1:])
        scale = gain * (rows * inner ** (depth - 1)) ** (-1 / (2 * depth))
        return {
            name: scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in module.named_parameters()
        }

    return Model(build, start)
