"""One number of one network: which examples it is taken on, and by how many processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flattrain.problems.split import Split
from flattrain.training.evaluate import chunks, contrast_on
from flattrain.training.evaluate_ranks import evaluate_together
from flattrain.training.ranks import Ranks
from flattrain.types import Contrast, Estimate, Network, Quantity, Timing


def row(seed: int, step: int, quantity: str, found: Estimate) -> dict[str, Any]:
    """One number of one seed, as the table has it."""
    value, error = float(found.value), float(found.standard_error)
    return {"seed": seed, "step": step, "quantity": quantity, "value": value, "standard_error": error}


def estimate(
    measure: Quantity,
    network: Network,
    split: Split,
    name: str,
    key: tuple[int, int],
    ranks: Ranks,
) -> Estimate:
    """An eigenvalue of a matrix that is not finite does not exist: the run diverged, and its row says nan."""
    seed, step = key
    try:
        if isinstance(measure, Contrast):
            held_out, train = chunks(split.test_x, split.test_y), chunks(split.train_x, split.train_y)
            return contrast_on(measure, network, train, held_out, (seed, measure.train.name, step))
        x, y = _examples(split, name)
        if isinstance(measure, Timing):
            return measure.ratio(network, x, y)
        return evaluate_together(measure, network, x, y, (seed, name, step), ranks)
    except torch.linalg.LinAlgError:
        return Estimate(math.nan, math.nan)


def on(part: str, quantity: str) -> bool:
    """Whether a quantity is taken on this part of the data, as its name begins."""
    return quantity.startswith(f"{part}_")


def _examples(split: Split, quantity: str) -> tuple[Tensor, Tensor]:
    """The examples that a quantity is taken on."""
    if on("test", quantity):
        return split.test_x, split.test_y
    if not on("validation", quantity):
        return split.train_x, split.train_y
    assert split.validation_x is not None and split.validation_y is not None  # lab.recipe has seen to it
    return split.validation_x, split.validation_y
