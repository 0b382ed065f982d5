"""How confident a softmax classifier is, whether it is right or not, p = softmax(z).

negative_entropy   mean Σ_k p_k log p_k, in [−log K, 0]. Penalised it is the confidence penalty L − β H(p)
                   (Pereyra et al. 2017, arXiv 1701.06548)
gini_confidence    mean Σ_k p_k², in [1/K, 1]: 1 less the Gini impurity. Optionally at p = softmax(z/τ)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flattrain.core.labels import logits_and_classes, mean_counted, over_counted
from flattrain.ranges import Positive, checked
from flattrain.types import Measure, Seen, Statistic


def _entropy(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
    z, _ = logits_and_classes(seen, "negative_entropy")
    log_p = z.log_softmax(-1)
    return over_counted((log_p.exp() * log_p).sum(-1), seen)


def negative_entropy() -> Measure:
    """mean Σ_k p_k log p_k over examples."""
    return Measure(
        "negative_entropy",
        _entropy,
        mean_counted,
        "mean of the negative entropy of the predicted distribution, natural logarithm",
        combine="examples",
    )


@checked
def gini_confidence(*, temperature: Positive = 1.0) -> Measure:
    """mean Σ_k p_k² over examples, p = softmax(z / temperature)."""

    def squares(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        z, _ = logits_and_classes(seen, "gini_confidence")
        return over_counted((z / temperature).softmax(-1).square().sum(-1), seen)

    at = "" if temperature == 1 else f" at temperature {temperature:g}"
    return Measure(
        "gini_confidence",
        squares,
        mean_counted,
        f"mean sum of squares of the predicted probabilities{at}",
        combine="examples",
    )
