"""How far the parameters are from a point that a problem names: where some measure of flatness is least.

    distance = ‖θ_S − p‖, over the parameters S that the landmark p has

`landmarks` are those of the model (`problems.toys`); a recipe's come from its model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.roots import root
from flattrain.ranges import Refused
from flattrain.types import Estimate, Measure, Seen, Statistic

Landmarks = Mapping[str, Mapping[str, Tensor]]


def distance_to_top(*, landmarks: Landmarks | None = None) -> Measure:
    """From where the largest eigenvalue of the Hessian is least."""
    return _distance("top", "the largest eigenvalue", landmarks)


def distance_to_smallest(*, landmarks: Landmarks | None = None) -> Measure:
    """From where the smallest eigenvalue that is not 0 is least."""
    return _distance("smallest", "the smallest nonzero eigenvalue", landmarks)


def distance_to_trace(*, landmarks: Landmarks | None = None) -> Measure:
    """From where the trace is least."""
    return _distance("trace", "the trace", landmarks)


def distance_to_logarithmic(*, landmarks: Landmarks | None = None) -> Measure:
    """From where −Σ log(1 − ηλ/2) is least."""
    return _distance("logarithmic", "the logarithmic form of a large learning rate", landmarks)


def _distance(name: str, least: str, landmarks: Landmarks | None) -> Measure:
    if landmarks is None or name not in landmarks:
        raise Refused(f"distance_to_{name}: the model names no such point")
    point = landmarks[name]

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        squares = [(seen.params[k] - at.to(seen.params[k])).square().sum() for k, at in point.items()]
        return {"squared": torch.stack(squares).sum()}

    return Measure(
        f"distance_to_{name}",
        statistic,
        lambda s: Estimate(root(s["squared"])),
        f"distance of the parameters from the minimum at which {least} is least",
    )
