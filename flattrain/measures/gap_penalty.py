"""An estimate of the generalisation gap that can be added to the loss: κ rank_λ(F)/n with Kronecker factors.

    κ = Tr C/Tr F,    C = Cov_i[∇ℓ_i] centred,  F the Fisher matrix, rank_λ that of `soft_rank`

All of it is differentiated, κ too. With weight 1 the sum estimates the risk where the estimate is right, and
that is at a minimiser of the loss with weight decay λ: what else has a small estimate is another question
(our derivation, consistent with the abstract of arXiv 2506.17809; `measures.generalisation_gap`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flattrain.core import ghost
from flattrain.core.labels import need_equal_weights, need_one_row
from flattrain.core.losses import example_slopes, root_vectors
from flattrain.measures.soft_rank import soft_rank
from flattrain.ranges import Positive, checked
from flattrain.types import Estimate, Measure, Seen, Statistic


@checked
def gap_penalty(*, lam: Positive = 1e-3) -> Measure:
    """κ rank_λ(F)/n of the batch at λ = `lam`."""
    rank = soft_rank(lam=lam)

    def statistic(seen: Seen, noise: Mapping[str, Tensor]) -> Statistic:
        need_one_row(seen, "gap_penalty")
        need_equal_weights(seen, "gap_penalty")
        slopes = example_slopes(seen.criterion, seen.loss, seen.outputs, seen.target)
        vectors = [*root_vectors(seen, None, "gap_penalty"), slopes]
        squares = ghost.squares(part.piece for part in ghost.pieces(seen, vectors, "gap_penalty"))
        live = list(seen.params.values())
        mean = torch.autograd.grad(seen.loss, live, create_graph=True, materialize_grads=True)
        covariance = squares[:, -1].mean() - torch.stack([g.square().sum() for g in mean]).sum()
        kappa = covariance / squares[:, :-1].sum(1).mean()
        assert rank.on_batch is not None
        return {"gap": kappa * rank.on_batch(seen, {}) / len(seen.outputs)}

    return Measure(
        "gap_penalty",
        statistic,
        lambda s: Estimate(s["gap"]),
        f"Tr C/Tr F times the {rank.definition}, over the number of examples",
        combine="whole",
        layers=None,
        order=2,
    )
