"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 10 classes. No download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Fraction, Refused, Steps, checked

SIZE = 1797
RESERVED = 797  # for testing, where there is a validation split


@checked
def digits(
    *,
    train: Count = 1000,
    test: Count = 797,
    validation: Steps = 0,
    targets: Literal["classes", "one_hot"] = "classes",
    flipped: Fraction = 0.0,
) -> DataSet:
    """A random split per seed; pixels scaled to [0, 1]. `one_hot` targets, 0 and 1, are for squared errors.

    With validation > 0, 797 images are reserved for testing, the same for every seed, and training and
    validation examples are drawn, disjoint, from the other 1,000: nothing that is chosen with one seed has
    seen the test examples of another.

    flipped : share of the labels, of test examples as of training ones, that are replaced by one of the nine
              other classes; which ones, and by what, is drawn for each seed.
    """
    if not validation and train + test > SIZE:
        raise Refused(f"digits: train + test must be <= {SIZE}, got {train} + {test}")
    if validation and (test > RESERVED or train + validation > SIZE - RESERVED):
        raise Refused(
            f"digits: with a validation split, test must be <= {RESERVED} and train + validation <= "
            f"{SIZE - RESERVED}, got {test} and {train} + {validation}"
        )
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.int64)

    def labels(seed: int) -> Tensor:
        noisy = _flip(y, flipped, stream(seed, "digits", "flipped")) if flipped else y
        return F.one_hot(noisy, 10).to(x.dtype) if targets == "one_hot" else noisy

    if validation:
        return _reserved(x, labels, train, test, validation)

    def split(seed: int) -> Split:
        order = torch.randperm(SIZE, generator=stream(seed, "digits"))
        a, b, seen = order[:train], order[train : train + test], labels(seed)
        return Split(x[a], seen[a], x[b], seen[b], 10)

    return split


def _flip(y: Tensor, share: float, generator: Generator) -> Tensor:
    """Each label, with probability `share`, moved on by 1 to 9 classes."""
    moved = torch.rand(len(y), generator=generator) < share
    by = torch.randint(1, 10, (len(y),), generator=generator)
    return (y + moved * by) % 10


def _reserved(x: Tensor, labels: Callable[[int], Tensor], train: int, test: int, validation: int) -> DataSet:
    """Splits whose test examples are those of every seed."""
    order = torch.randperm(SIZE, generator=stream("digits", "reserved"))
    b, pool = order[:RESERVED][:test], order[RESERVED:]

    def split(seed: int) -> Split:
        mine = pool[torch.randperm(len(pool), generator=stream(seed, "digits"))]
        a, v, y = mine[:train], mine[len(mine) - validation :], labels(seed)
        return Split(x[a], y[a], x[b], y[b], 10, x[v], y[v])

    return split
