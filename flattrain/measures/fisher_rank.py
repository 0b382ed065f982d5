"""Soft rank of the whole network's Fisher, and other concave penalties, from the Gram matrix of gradients.

With J̃ the rows L_i[:, c]ᵀ ∂f_i/∂θ, the Fisher (= Gauss–Newton) matrix of the mean loss is F = J̃ᵀJ̃/n, and
it shares its nonzero spectrum with K/n, K = J̃J̃ᵀ (n C × n C), which never needs J̃ (core.ghost). C is the
number of outputs, less one for cross entropy:

    rank_λ(F) = Tr K/n (K/n + λ)⁻¹ = n C − λ Tr (K/n + λ)⁻¹                at most min(P, n C)

One matrix over all layers, so nothing is lost between them; a sketch (one random combination L ε of the
columns per example) makes K n × n and is biased low (Jensen), as every batch is against the whole set.

The adaptive metric takes Λ = λ diag(θ²)⁻¹, i.e. rank_λ(D F D) with D = diag|θ|. It does not change when
nodes of a ReLU net are rescaled, while rank_λ does; its gradients are formed, n C × P numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from flattrain.core import ghost
from flattrain.core.concave import Concave, of_gram
from flattrain.core.losses import root_vectors
from flattrain.core.probes import over_outputs
from flattrain.core.ridge import ridge
from flattrain.core.rows import columns as columns_of
from flattrain.core.rows import pack, unpack
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Draw, Estimate, Measure, Seen, Statistic

MOST_ROWS = 20_000  # of the Gram matrix: 3.2 GB in float64


@checked
def fisher_rank(
    *,
    lam: Positive | Mapping[str, Positive] = 1e-2,
    columns: Literal["exact", "sketch"] = "exact",
    metric: Literal["euclidean", "adaptive"] = "euclidean",
    phi: Literal["soft", "logdet", "power", "trace"] = "soft",
    power: Positive = 0.5,
    layers: tuple[str, ...] | None = None,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """Tr φ(F) over the parameters of `layers` (None: all) as one matrix.

    lam : a number, or a table {name of a parameter or a layer: number} as in `core.ridge`, where the longest
          name that fits counts and "" stands for the rest: Tr F (F + Λ)⁻¹.
    """
    tikhonov = ridge("fisher_rank", lam, phi)
    concave = Concave(phi, tikhonov.number, power)
    policy = uncovered if layers is None else "ignore"

    def parts(seen: Seen, noise: Mapping[str, Tensor]) -> list[ghost.Part]:
        sketch = noise["sketch"] if columns == "sketch" else None
        vectors = root_vectors(seen, sketch, "fisher_rank")
        return ghost.pieces(seen, vectors, "fisher_rank", policy, table=tikhonov.table)

    def pieces(seen: Seen, noise: Mapping[str, Tensor]) -> list[ghost.Piece]:
        chosen = ghost.adaptive if metric == "adaptive" else lambda part: part.piece
        return [chosen(part) for part in parts(seen, noise)]

    def reduce(s: Statistic) -> Estimate:
        n, found = unpack(s)
        if n * columns_of(found) > MOST_ROWS:
            raise Refused(
                f"fisher_rank: {n} examples with {columns_of(found)} columns make a Gram matrix of more than "
                f"{MOST_ROWS} rows; use columns='sketch', fewer examples, or soft_rank"
            )
        return Estimate(of_gram(concave, ghost.gram(found) / n))

    def draws(seen: Seen) -> dict[str, Draw]:
        if columns == "exact":
            return {}
        return {"sketch": over_outputs(seen.outputs)}

    return Measure(
        "fisher_rank",
        lambda seen, noise: pack(seen, pieces(seen, noise)),
        reduce,
        f"{concave.words}{tikhonov.words}, all layers as one matrix, {columns} columns, {metric} metric",
        combine="rows",
        layers=None if layers is None else tuple(layers),
        on_batch=lambda seen, noise: of_gram(concave, ghost.gram(pieces(seen, noise)) / len(seen.outputs)),
        draws=draws,
        order=2,
    )
