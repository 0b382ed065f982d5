"""Kronecker factors of the Fisher (= Gauss–Newton) blocks of layers, differentiable.

For a layer with per-example gradients Σ_s left_s right_sᵀ (core.layers; for a linear layer g φ'ᵀ, with
φ' = (φ, 1) when there is a bias) the block of the mean loss's Fisher is approximated by A ⊗ B:

    expand   A = mean_i Σ_s φ'_is φ'_isᵀ / S,        B = mean_i Σ_c Σ_s g_ics g_icsᵀ
    reduce   A = mean_i φ̄'_i φ̄'_iᵀ,  φ̄' = mean_s φ'_s,   B = mean_i Σ_c ḡ_ic ḡ_icᵀ,  ḡ = Σ_s g_s

(Martens & Grosse 2015; expand and reduce: Eschenhagen et al. 2023; they agree when S = 1). The vectors g
are the columns of L, S_i = L Lᵀ the output Hessian, pulled back: all of them ("exact", the type-2 Fisher),
or one vector L ε per example with ε Rademacher ("sketch"), unbiased for B. L stays on the graph: labels
sampled from the model with the labels detached would be unbiased in value and 84 % off in gradient.

Of outputs (n, T, K) an example has T times as many columns g, those of all its tokens (core.losses); expand
is then exact for deep linear nets on tokens under squared error. Where the loss weighs or ignores examples,
A is weighted alike, Σ w φφᵀ / Σ w, token by token where a layer has a position for each (expand): what is
ignored is not there, and batches combine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from flattrain.core import ghost
from flattrain.core.concave import eigenvalues
from flattrain.core.coverage import need_covered
from flattrain.core.ghost import Piece, Uncovered
from flattrain.core.gram import gram_eigenvalues, gram_matrix
from flattrain.core.layers import Direct, Outer, is_convolution
from flattrain.core.losses import root_vectors
from flattrain.core.patches import has_autocorrelation, patch_moment
from flattrain.core.ridge import Scales, Table, ends, scales
from flattrain.core.weights import relative_weights, row_weights
from flattrain.types import Seen, Tap

Sharing = Literal["expand", "reduce"]


class Side(NamedTuple):
    """One factor c Xᵀ X, as the rows X or as the moment Xᵀ X itself where rows were never needed."""

    rows: Tensor | None  # (G, rows, D)
    moment: Tensor | None  # (G, D, D)
    scale: float = 1.0  # c, for what it is cheaper to scale than the rows

    def matrix(self) -> Tensor:
        """The factor (G, D, D)."""
        if self.rows is not None:
            return gram_matrix(self.rows.mT) * self.scale
        assert self.moment is not None
        return self.moment * self.scale

    def eigenvalues(self) -> Tensor:
        """The eigenvalues of the factor, less zeros where it has fewer rows than columns."""
        if self.rows is None:
            return eigenvalues(self.matrix())
        short = self.rows.shape[-2] < self.rows.shape[-1]
        return gram_eigenvalues(self.rows if short else self.rows.mT) * self.scale


def factors(
    seen: Seen,
    sketch: Tensor | None = None,
    sharing: Sharing = "expand",
    uncovered: Uncovered = "refuse",
    table: Table | None = None,
) -> dict[str, tuple[Side, Side]]:
    """{layer: (A, B)} of every tapped layer.

    A parameter of a normalisation, or one taken densely, has no second factor: B is 1 × 1. With a table of λ
    the factors are those of Λ^-½ F Λ^-½ (core.ridge).
    """
    what, n = "the soft rank", len(seen.outputs)
    seen, left_out = need_covered(seen, what, uncovered)
    scale = scales(what, seen, table, left_out)
    vectors = root_vectors(seen, sketch, what)
    apart = {r for r, tap in seen.taps.items() if sharing == "expand" and _by_autocorrelation(seen, tap)}
    pulled, moments = _pulled(seen, vectors, what, apart, scale)
    out = {run: (_autocorrelated(seen, seen.taps[run], scale), moments[run]) for run in apart}
    rest = seen._replace(taps={run: tap for run, tap in seen.taps.items() if run not in apart})
    parts = ghost.by_parameter(rest, pulled, ghost.factored, scale, _counted(seen, sharing, len(vectors)))
    dense = {id(seen.params[part.layer]): part for part in ghost.dense(seen, vectors, left_out, scale)}
    for parameter, (layer, piece, _) in {**parts, **dense}.items():
        key = layer if layer not in out else f"{layer}.bias"
        if isinstance(piece, Direct):
            out[key] = _direct(piece, n)
        else:
            out[key] = _outer(piece, n, sharing, _inputs(seen, parameter))
    order = [*(run for run in seen.taps if run in out), *(key for key in out if key not in seen.taps)]
    return {key: out[key] for key in order}


def _by_autocorrelation(seen: Seen, tap: Tap) -> bool:
    """Whether A comes from the input's autocorrelation: all of the layer live, its weight used once."""
    live = {id(p) for p in seen.params.values()}
    own = [tap.weight] if tap.bias is None else [tap.weight, tap.bias]
    once = sum(t.weight is tap.weight for t in seen.taps.values()) == 1
    whole = all(id(p) in live for p in own) and ghost.together(seen, tap)
    return has_autocorrelation(tap.module) and once and whole


def _pulled(
    seen: Seen, vectors: Sequence[Tensor], what: str, apart: set[str], scale: Scales
) -> tuple[dict[str, Tensor], dict[str, Side]]:
    """What is pulled back to the layers, and B of those set `apart`.

    Where nothing is differentiated the columns come one after the other, and those of a convolution, the
    largest thing here, are summed into its B at once.
    """
    if seen.differentiable or not apart:
        pulled = ghost.pull(seen, vectors, what)
        return pulled, {run: _rows(seen, seen.taps[run], pulled[run], scale) for run in apart}
    kept: dict[str, list[Tensor]] = {run: [] for run in seen.taps if run not in apart}
    sums: dict[str, Tensor] = {}
    for vector in vectors:
        for run, g in ghost.pull(seen, [vector], what).items():
            if run in apart:
                moment = _rows(seen, seen.taps[run], g, scale).matrix()
                sums[run] = sums[run] + moment if run in sums else moment
            else:
                kept[run].append(g)
    return {run: torch.cat(parts) for run, parts in kept.items()}, {k: Side(None, v) for k, v in sums.items()}


def _rows(seen: Seen, tap: Tap, g: Tensor, scale: Scales) -> Side:
    """B of a convolution from what is pulled back to its output."""
    if scale:
        g = g * ends(tap, scale)[1]
    return Side(g.flatten(3).transpose(2, 3).flatten(0, 2)[None], None, 1 / len(seen.outputs))


def _autocorrelated(seen: Seen, tap: Tap, scale: Scales) -> Side:
    """A of a convolution without patches."""
    x = tap.input if seen.differentiable else tap.input.detach()
    if scale:
        weight, bias = ends(tap, scale)
        x = x * (weight / bias)
    own = relative_weights(seen.criterion, seen.outputs, seen.target)
    moment, positions = patch_moment(tap.module, x, 0 if tap.bias is None else 1, own)
    return Side(None, moment[None], 1 / (len(seen.outputs) * positions))


def _counted(seen: Seen, sharing: Sharing, columns: int) -> Callable[[Tap, Piece], Piece]:
    """What puts the loss's weights on the side of a layer's input: Σ w φ φᵀ / Σ w in place of the mean.

    An embedding tied to a head has inputs on both sides, beside vectors that are pulled back. There they
    are also divided by the number of positions, and by that of the columns next to which they are repeated.
    """
    criterion, outputs, target = seen.criterion, seen.outputs, seen.target
    of_examples = relative_weights(criterion, outputs, target)
    rows = outputs[0, ..., 0].numel()

    def change(tap: Tap, piece: Piece) -> Piece:
        tied = len(_inputs(seen, id(tap.weight))) > 1
        if isinstance(piece, Direct) or (of_examples is None and not tied):
            return piece
        root = torch.ones_like(piece.left[:, :1, :1, :1, :1])
        if of_examples is not None:
            w = of_examples[:, None]
            if sharing == "expand" and piece.left.shape[3] == rows > 1 and not is_convolution(tap.module):
                of_rows = row_weights(criterion, outputs, target)  # a position for each token
                assert of_rows is not None
                w = of_rows.flatten(1) * rows
            root = w.sqrt()[:, None, None, :, None]
        if tied:
            positions = sum(_positions(t) for t in seen.taps.values() if t.weight is tap.weight)
            root = root * positions ** (-0.5 if sharing == "expand" else -1.0) / columns**0.5
        if isinstance(tap.module, nn.Embedding):
            return piece._replace(left=piece.left * root)
        return Outer(piece.left, piece.whole() * root)

    return change


def _inputs(seen: Seen, parameter: int) -> set[str]:
    """The sides of a weight's gradients where the inputs of its uses are."""
    uses = [tap for tap in seen.taps.values() if parameter in (id(tap.weight), id(tap.bias))]
    return {"left" if isinstance(tap.module, nn.Embedding) else "right" for tap in uses}


def _positions(tap: Tap) -> int:
    return tap.input[0].numel() if isinstance(tap.module, nn.Embedding) else tap.output[0, ..., 0].numel()


def _outer(piece: Outer, n: int, sharing: Sharing, inputs: set[str]) -> tuple[Side, Side]:
    sides = {"left": piece.left, "right": piece.whole()}
    positions = {k: v.shape[3] if inputs == {k} else 1 for k, v in sides.items()}
    if sharing == "reduce":
        # The mean over s on the side of the inputs and the sum on the other.
        sides = {k: v.sum(3, keepdim=True) / positions[k] for k, v in sides.items()}
        positions = dict.fromkeys(sides, 1)
    a, b = (
        Side(sides[k].movedim(2, 0).flatten(1, 3), None, 1 / (n * positions[k])) for k in ("right", "left")
    )
    return a, b


def _direct(piece: Direct, n: int) -> tuple[Side, Side]:
    flat = piece.vectors.flatten(0, 1)[None]
    return Side(flat, None, 1 / n), Side(None, torch.ones_like(flat[:, :1, :1]))
