"""flattrain: differentiable flatness regularizers, sharpness-aware rules, and a laboratory for claims.

    from flattrain.regularizers import Regularized, RelativeFlatness, SoftRank, HessianTrace
    from flattrain.optim import SAM
    python -m flattrain recipe=two_layer_relu

The names below are imported on first use, so that `import flattrain` costs nothing beyond Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flattrain.core.coverage import coverage
    from flattrain.core.eager import eager
    from flattrain.optim import SAM
    from flattrain.ranges import Refused
    from flattrain.regularizers import (
        FisherRank,
        GaussNewtonTrace,
        HessianTrace,
        Regularized,
        RelativeFlatness,
        SoftRank,
    )
    from flattrain.training.curvature import curvature
    from flattrain.training.measured import measured
    from flattrain.training.representativeness import representativeness

__version__ = "0.1.0"

_HOME = {
    "SAM": "flattrain.optim",
    "Refused": "flattrain.ranges",
    "Regularized": "flattrain.regularizers",
    "RelativeFlatness": "flattrain.regularizers",
    "SoftRank": "flattrain.regularizers",
    "HessianTrace": "flattrain.regularizers",
    "FisherRank": "flattrain.regularizers",
    "GaussNewtonTrace": "flattrain.regularizers",
    "measured": "flattrain.training.measured",
    "representativeness": "flattrain.training.representativeness",
    "curvature": "flattrain.training.curvature",
    "coverage": "flattrain.core.coverage",
    "eager": "flattrain.core.eager",
}

__all__ = [
    "SAM",
    "FisherRank",
    "GaussNewtonTrace",
    "HessianTrace",
    "Refused",
    "Regularized",
    "RelativeFlatness",
    "SoftRank",
    "coverage",
    "curvature",
    "eager",
    "measured",
    "representativeness",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flattrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
