"""How large the outputs are once what all classes share is taken out: the softmax does not see that.

mean ‖f_i − f̄_i‖,    f̄_i the mean of the K outputs of row i
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flattrain.core.roots import root
from flattrain.types import Estimate, Measure, Seen, Statistic


def _norm(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    centred = seen.outputs - seen.outputs.mean(-1, keepdim=True)
    return {"norm": root(centred.square().sum(-1)).mean()}


def logit_norm() -> Measure:
    """mean ‖f_i − f̄_i‖ over the rows of outputs."""
    return Measure(
        "logit_norm",
        _norm,
        lambda s: Estimate(s["norm"]),
        "mean over examples of the norm of the outputs (logits) less their mean",
        combine="examples",
    )
