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
    from flattrain.optim import SAM
    from flattrain.ranges import Refused
    from flattrain.regularizers import HessianTrace, Regularized, RelativeFlatness, SoftRank

__version__ = "0.1.0"

_HOME = {
    "SAM": "flattrain.optim",
    "Refused": "flattrain.ranges",
    "Regularized": "flattrain.regularizers",
    "RelativeFlatness": "flattrain.regularizers",
    "SoftRank": "flattrain.regularizers",
    "HessianTrace": "flattrain.regularizers",
}

__all__ = ["SAM", "HessianTrace", "Refused", "Regularized", "RelativeFlatness", "SoftRank"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flattrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
