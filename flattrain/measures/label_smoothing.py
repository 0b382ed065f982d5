"""Label smoothing as a penalty: what the cross entropy rises by when the targets become uniform.

    mean [ (1/K) Σ_k −log p_k ] − mean [ −log p_y ]

With weight ε it turns the cross entropy into (1 − ε) CE + ε mean (1/K) Σ_k −log p_k: the cross entropy of
smoothed targets (Szegedy et al. 2016), while the training loss that is reported stays the plain one. Examples
count alike, whatever weights the loss gives them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flattrain.core.labels import logits_and_classes, mean_counted, over_counted
from flattrain.types import Measure, Seen, Statistic


def _statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    z, labels = logits_and_classes(seen, "label_smoothing")
    log_p = z.log_softmax(-1)
    return over_counted(log_p.gather(1, labels[:, None])[:, 0] - log_p.mean(-1), seen)


def label_smoothing() -> Measure:
    """Cross entropy against uniform targets less that of the labels; the weight is ε."""
    return Measure(
        "label_smoothing",
        _statistic,
        mean_counted,
        "cross entropy against uniform targets less that against the labels",
        combine="examples",
    )
