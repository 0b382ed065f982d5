"""The losses of recipes, by name and settings; what they are is in `core.losses`."""

from __future__ import annotations

from torch import nn

from flattrain.core import losses
from flattrain.ranges import Fraction, checked
from flattrain.types import Loss


@checked
def cross_entropy(*, label_smoothing: Fraction = 0.0) -> Loss:
    """Softmax cross entropy against (1 − ε) of the label and ε of the uniform distribution."""
    if label_smoothing == 0:
        return losses.cross_entropy
    return losses.recognise(nn.CrossEntropyLoss(label_smoothing=label_smoothing))


@checked
def squared_error() -> Loss:
    """mean over examples of Σ_k (f_k − y_k)²."""
    return losses.squared_error


@checked
def mean_squared_error() -> Loss:
    """mean over examples and outputs of (f_k − y_k)²."""
    return losses.mean_squared_error


@checked
def half_squared_error() -> Loss:
    """½ mean over examples of Σ_k (f_k − y_k)²."""
    return losses.half_squared_error


@checked
def binary_cross_entropy() -> Loss:
    """mean over examples of log(1 + e^f) − y f, targets 0 and 1."""
    return losses.binary_cross_entropy


@checked
def smoothed_logistic() -> Loss:
    """mean over examples of the label-smoothed logistic loss, targets ±1."""
    return losses.smoothed_logistic
