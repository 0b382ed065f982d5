"""Modular addition, a + b = c mod p: the p (p + 1)/2 sums with a ≤ b, some to learn, the others to test on.

Sums that differ in their order alone are one: else a model for which the order says nothing would have half
of the test set by heart. A sum is a sequence of one-hot tokens (n, T, V): the numbers 0 … p − 1, the sign "="
(p), and the end (p + 1).

    sum           a b =      the class is c, one of p
    sum_and_end   a b = c    the classes are (c, end), of the p + 2 tokens: what a causal model says at "="
                             and at c, which is given where the end is asked for
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Refused, checked


@checked
def modular_addition(
    *, p: Count = 31, train: Count = 300, answer: Literal["sum", "sum_and_end"] = "sum"
) -> DataSet:
    """`train` of the sums, drawn by the seed; all others are the test set."""
    sums = torch.triu_indices(p, p).T
    if train >= len(sums):
        raise Refused(
            f"modular_addition: train must be below the {len(sums)} sums of p = {p}, got {train}: the others "
            "are the test set"
        )

    def split(seed: int) -> Split:
        order = sums[torch.randperm(len(sums), generator=stream(seed, "modular addition"))]
        train_x, train_y = _sequences(order[:train], p, answer)
        test_x, test_y = _sequences(order[train:], p, answer)
        return Split(train_x, train_y, test_x, test_y, p if answer == "sum" else p + 2)

    return split


def _sequences(sums: Tensor, p: int, answer: str) -> tuple[Tensor, Tensor]:
    """The sums (n, 2) as tokens, and their classes."""
    a, b = sums.unbind(1)
    c, equals, end = (a + b) % p, torch.full_like(a, p), torch.full_like(a, p + 1)
    if answer == "sum":
        return F.one_hot(torch.stack([a, b, equals], 1), p + 1).to(torch.float32), c
    return F.one_hot(torch.stack([a, b, equals, c], 1), p + 2).to(torch.float32), torch.stack([c, end], 1)
