"""scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 10 classes. No download."""

from __future__ import annotations

import torch

from flattrain.core.probes import stream
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Refused, checked

SIZE = 1797


@checked
def digits(*, train: Count = 1000, test: Count = 797) -> DataSet:
    """A random split per seed; pixels scaled to [0, 1]."""
    if train + test > SIZE:
        raise Refused(f"digits: train + test must be <= {SIZE}, got {train} + {test}")
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.int64)

    def split(seed: int) -> Split:
        order = torch.randperm(SIZE, generator=stream(seed, "digits"))
        a, b = order[:train], order[train : train + test]
        return Split(x[a], y[a], x[b], y[b], 10)

    return split
