"""Per-example gradients of vector-Jacobian products, their norms and inner products, without forming them.

Pull C vectors per example, in the shape of its outputs, back through the network (`pull`); each parameter
then holds the gradients v_icᵀ ∂f_i/∂θ in the form that its layer gives them (core.layers), from which come

    squares   Σ_θ ‖·‖²                     (n, C)
    gram      ⟨·, ·⟩ between all pairs      (n C, n C)

With the columns of a root of the output Hessian, S_i = L_i L_iᵀ, the mean of the squares summed over c is the
Gauss–Newton trace, and gram / n has the nonzero spectrum of the Fisher (= Gauss–Newton) matrix of the mean
loss. With v_i the gradient of the loss they are norms and Gram matrix of the loss's per-example gradients.

Everything stays on the autograd graph. Goodfellow 2015 for the norms in linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from flattrain.core.coverage import need_covered
from flattrain.core.eager import need_separable
from flattrain.core.gram import gram_matrix, squared_rows
from flattrain.core.layers import (
    Direct,
    Outer,
    affine,
    convolution_gradients,
    is_convolution,
    is_normalisation,
    sides,
)
from flattrain.core.ridge import Scales, Table, scales, weighed
from flattrain.types import Seen, Tap

Piece = Outer | Direct
Uncovered = Literal["refuse", "ignore", "dense"]


class Part(NamedTuple):
    """The per-example gradients of one parameter, or of a weight and its bias together."""

    layer: str
    piece: Piece
    value: Callable[[], Tensor]  # the parameter, laid out as `matrix(piece)` has its last dimension


def pull(seen: Seen, vectors: Sequence[Tensor], what: str) -> dict[str, Tensor]:
    """{tapped run of a layer: g (C, n, *z)}, the C vectors (n, …, K) pulled back to its output."""
    need_separable(seen, what)
    if not seen.taps:
        return {}
    outputs = [tap.output for tap in seen.taps.values()]
    back = partial(
        torch.autograd.grad,
        seen.outputs,
        outputs,
        retain_graph=True,
        create_graph=seen.differentiable,
        materialize_grads=True,
    )
    linear = all(isinstance(tap.module, nn.Linear) for tap in seen.taps.values())
    if len(vectors) > 1 and linear and not seen.differentiable:
        # One product with all columns is faster than C of them; for convolutions it is not, and batched
        # gradients do not nest in torch.func's vmap.
        return dict(zip(seen.taps, back(torch.stack(list(vectors)), is_grads_batched=True), strict=True))
    pulled = [back(v) for v in vectors]
    return {
        run: parts[0][None] if len(parts) == 1 else torch.stack(parts)
        for run, parts in zip(seen.taps, zip(*pulled, strict=True), strict=True)
    }


def smaller_formed(tap: Tap) -> bool:
    """Whether a convolution's gradients take less room than its patches: more positions than channels."""
    return is_convolution(tap.module) and tap.output[0, 0].numel() > tap.output.shape[1]


def factored(tap: Tap) -> bool:
    """Convolutions as patches and pulled back vectors, always: for Kronecker factors."""
    return False


def pieces(
    seen: Seen,
    vectors: Sequence[Tensor],
    what: str,
    uncovered: Uncovered = "refuse",
    form: Callable[[Tap], bool] = smaller_formed,
    table: Table | None = None,
) -> list[Part]:
    """Those of every live parameter, times λ^-½ by a table (core.ridge); `form` says where as they are."""
    seen, left_out = need_covered(seen, what, uncovered)
    scale = scales(what, seen, table, left_out)
    found = by_parameter(seen, pull(seen, vectors, what), form, scale)
    return [*found.values(), *dense(seen, vectors, left_out, scale)]


def by_parameter(
    seen: Seen,
    pulled: dict[str, Tensor],
    form: Callable[[Tap], bool],
    scale: Scales | None = None,
    change: Callable[[Tap, Piece], Piece] = lambda tap, piece: piece,
) -> dict[int, Part]:
    """The pieces under the `id` of their weight (with its bias, where the two go together) or bias.

    A weight used more than once has the sum over its uses: their positions are put side by side, each
    after its `change`.
    """
    uses: dict[int, list[Part]] = {}
    live = {id(p) for p in seen.params.values()}
    for run, seen_tap in seen.taps.items():
        tap = seen_tap if seen.differentiable else seen_tap._replace(input=seen_tap.input.detach())
        # The uses of one weight must come in one form, as they are added up.
        formed = any(form(other) for other in seen.taps.values() if other.weight is tap.weight)
        for parameter, part in _of_run(tap, pulled[run], live, together(seen, tap), formed):
            own = part._replace(piece=change(tap, weighed(part.piece, parameter, tap, scale)))
            uses.setdefault(parameter, []).append(own)
    return {k: parts[0]._replace(piece=_joined([p.piece for p in parts])) for k, parts in uses.items()}


def dense(seen: Seen, vectors: Sequence[Tensor], names: Iterable[str], scale: Scales) -> list[Part]:
    """Parameters of no known structure, one example at a time."""
    params = {name: seen.params[name] for name in names}
    # One vector-Jacobian product per example and column: exact for any parameter, at n C backward passes.
    rows = [
        torch.autograd.grad(
            seen.outputs[i],
            list(params.values()),
            v[i],
            retain_graph=True,
            create_graph=seen.differentiable,
            materialize_grads=True,
        )
        for v in vectors
        for i in range(len(v))
        if params
    ]
    found = []
    for (name, p), own in zip(params.items(), zip(*rows, strict=True), strict=True):
        formed = torch.stack([g.flatten() * scale.get(id(p), 1.0) for g in own])
        piece = Direct(rearrange(formed, "(c n) p -> n c p", c=len(vectors)))
        found.append(Part(name, piece, p.flatten))
    return found


def squares(pieces: Iterable[Piece]) -> Tensor:
    """Σ over parameters of the squared norm of each per-example gradient (n, C)."""
    return torch.stack([_squares(piece) for piece in pieces]).sum(0)


def gram(pieces: Iterable[Piece]) -> Tensor:
    """Inner products between all per-example gradients, summed over parameters (n C, n C)."""
    return torch.stack([_gram(piece) for piece in pieces]).sum(0)


def adaptive(part: Part) -> Direct:
    """The gradients in the coordinates log|θ|, i.e. times |θ|: invariant to rescaling of nodes. Formed."""
    return Direct(matrix(part.piece) * part.value().abs())


def adaptive_squares(part: Part) -> Tensor:
    """The squared norms of `adaptive(part)` (n, C), unformed where each example has one position."""
    piece = part.piece
    if isinstance(piece, Outer) and piece.left.shape[2:4] == (1, 1):
        left, right = piece.left[:, :, 0, 0].square(), piece.whole()[:, :, 0, 0].square()
        size = right @ part.value().square().reshape(left.shape[-1], -1).T
        return (left * size).sum(-1)
    return adaptive(part).vectors.square().sum(-1)


def radial(part: Part) -> Tensor:
    """⟨θ, ·⟩ of each per-example gradient (n, C)."""
    piece = part.piece
    if isinstance(piece, Direct):
        return piece.vectors @ part.value()
    whole = piece.whole()
    weight = part.value().reshape(whole.shape[2], piece.left.shape[4], whole.shape[4])
    return einsum(piece.left, weight, whole, "n c g s k, g k d, n c g s d -> n c")


def matrix(piece: Piece) -> Tensor:
    """The per-example gradients themselves (n, C, P). For small parameters, and for tests."""
    if isinstance(piece, Direct):
        return piece.vectors
    formed = einsum(piece.left, piece.whole(), "n c g s k, n c g s d -> n c g k d")
    return formed.flatten(2)


def together(seen: Seen, tap: Tap) -> bool:
    """Whether the weight and the bias of a layer are always used with one another."""
    pairs = ((t.weight is tap.weight, t.bias is tap.bias) for t in seen.taps.values())
    return tap.bias is None or all(weight == bias for weight, bias in pairs)


def _of_run(tap: Tap, g: Tensor, live: set[int], paired: bool, formed: bool) -> list[tuple[int, Part]]:
    weight, bias = id(tap.weight) in live, tap.bias is not None and id(tap.bias) in live
    paired = paired and weight and bias
    if is_normalisation(tap.module):
        scale, shift = affine(tap, g)
        if paired:
            return [(id(tap.weight), Part(tap.layer, Direct(torch.cat([scale, shift], -1)), _after_it(tap)))]
        return [
            (id(p), Part(tap.layer, Direct(v), p.flatten))
            for p, v in ((tap.weight, scale), (tap.bias, shift))
            if p is not None and id(p) in live
        ]
    if is_convolution(tap.module) and formed:
        return _of_convolution(tap, g, weight, bias, paired)
    outer = sides(tap, g)
    if paired:
        return [(id(tap.weight), Part(tap.layer, outer._replace(ones=1), _beside_it(tap)))]
    found: list[tuple[int, Part]] = []
    if weight:
        found = [(id(tap.weight), Part(tap.layer, outer, tap.weight.flatten))]
    if bias and tap.bias is not None:
        ones = torch.ones_like(outer.right[..., :1])
        found.append((id(tap.bias), Part(tap.layer, Outer(outer.left, ones), tap.bias.flatten)))
    return found


def _beside_it(tap: Tap) -> Callable[[], Tensor]:
    """The weight with its bias as a last column."""
    assert tap.bias is not None
    rows, column = tap.weight.flatten(1), tap.bias[:, None]
    return lambda: torch.cat([rows, column], -1).flatten()


def _after_it(tap: Tap) -> Callable[[], Tensor]:
    """The weight and then its bias."""
    assert tap.bias is not None
    weight, bias = tap.weight.flatten(), tap.bias.flatten()
    return lambda: torch.cat([weight, bias])


def _of_convolution(tap: Tap, g: Tensor, weight: bool, bias: bool, paired: bool) -> list[tuple[int, Part]]:
    found: list[tuple[int, Part]] = []
    shift = g.flatten(3).sum(3).transpose(0, 1)
    if weight:
        scale = convolution_gradients(tap, g)
        if paired:
            return [(id(tap.weight), Part(tap.layer, Direct(torch.cat([scale, shift], -1)), _after_it(tap)))]
        found = [(id(tap.weight), Part(tap.layer, Direct(scale), tap.weight.flatten))]
    if bias and tap.bias is not None:
        found.append((id(tap.bias), Part(tap.layer, Direct(shift), tap.bias.flatten)))
    return found


def _joined(parts: list[Piece]) -> Piece:
    if len(parts) == 1:
        return parts[0]
    outers = [p for p in parts if isinstance(p, Outer)]
    if len(outers) < len(parts) or len({p.left.shape[2] for p in outers}) > 1:
        return Direct(torch.stack([matrix(p) for p in parts]).sum(0))
    joined = []
    for side in ([p.left for p in outers], [p.right for p in outers]):
        columns = max(t.shape[1] for t in side)
        joined.append(torch.cat([t.expand(-1, columns, -1, -1, -1) for t in side], 3))
    return Outer(joined[0], joined[1], outers[0].ones)


def _squares(piece: Piece) -> Tensor:
    if isinstance(piece, Direct):
        return squared_rows(piece.vectors)
    left, right, ones = piece
    positions, k, d = left.shape[3], left.shape[4], right.shape[4]
    if positions == 1:
        return (squared_rows(left) * (squared_rows(right) + ones)).sum((2, 3))
    if positions * (k + d) < k * d:  # S² (K + D) products against S K D
        return (_inner(left) * (_inner(right) + ones)).sum((2, 3, 4))
    return squared_rows(matrix(piece))


def _inner(side: Tensor) -> Tensor:
    return einsum(side, side, "n c g s k, n c g t k -> n c g s t")


def _gram(piece: Piece) -> Tensor:
    if isinstance(piece, Outer) and piece.left.shape[2:4] == (1, 1):
        n, c = piece.left.shape[0], max(piece.left.shape[1], piece.right.shape[1])
        left, right = (gram_matrix(t.flatten(0, 3)).reshape(n, t.shape[1], n, t.shape[1]) for t in piece[:2])
        return (left * (right + piece.ones)).reshape(n * c, n * c)
    return gram_matrix(matrix(piece).flatten(0, 1))
