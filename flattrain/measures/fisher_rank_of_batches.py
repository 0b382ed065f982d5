"""The mean over batches of the soft rank of each batch's Fisher matrix, against that of the whole data set.

    Σ_b (n_b/n) rank_λ(F_b) ≤ rank_λ(F),     F = Σ_b (n_b/n) F_b        (Jensen: rank_λ is concave)

What a penalty on batches minimises on average.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core.labels import need_equal_weights
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.ranges import Count, Positive, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def fisher_rank_of_batches(*, batch: Count = 10, lam: Positive = 1e-2) -> Measure:
    """Batches of `batch` examples in the order of the data; the last has what is left."""
    whole = fisher_rank(lam=lam)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        need_equal_weights(seen, "fisher_rank_of_batches")
        return whole.statistic(seen, noise)

    def reduce(s: Statistic) -> Estimate:
        n, total = len(s["mass"]), torch.zeros((), dtype=torch.float64)
        for rows in torch.arange(n, device=s["mass"].device).split(batch):
            rank = whole.reduce({name: value[rows] for name, value in s.items()}).value
            total = total + rank * (len(rows) / n)
        return Estimate(total)

    return Measure(
        "fisher_rank_of_batches",
        statistic,
        reduce,
        f"mean over batches of {batch} examples of the {whole.definition}",
        combine="rows",
        layers=None,
        order=2,
    )
