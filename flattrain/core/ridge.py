"""Λ: a ridge with a number of its own for each parameter, as weight decay per parameter group has.

    rank_Λ(F) = Tr F (F + Λ)⁻¹ = rank_1(Λ^-½ F Λ^-½),     Λ diagonal, λ_p > 0 for every entry of parameter p

so everything that is known of λ = 1 holds, with per-example gradients times λ_p^-½. A rescaling of parameters
that leaves the network's function as it is, θ_p → c θ_p with λ_p → λ_p / c², leaves it as it is too.

In the table {name: λ} a name is a parameter's or a layer's; the longest that fits counts, and "" stands for
the rest:

    {"": 1e-3, "head": 1e-2, "head.bias": 1e-1}

A bias is the last column of its layer's right side (core.layers), which is scaled by itself; Kronecker
factors stay Kronecker factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import torch

from flattrain.core.layers import Direct, Outer
from flattrain.ranges import Refused, listed, suggest
from flattrain.types import Seen, Tap

Lam: TypeAlias = "float | Mapping[str, float]"
Table: TypeAlias = "Mapping[str, float]"
Scales: TypeAlias = "dict[int, float]"  # λ^-½ by the `id` of a parameter


class Ridge(NamedTuple):
    """λ or Λ, as a measure takes it."""

    number: float  # λ; 1 where the gradients carry Λ
    table: Table | None
    words: str  # for definitions, after "λ = number"


def ridge(what: str, lam: Lam, phi: str = "soft") -> Ridge:
    """The ridge of a measure; refuse a table where φ has no λ."""
    if not isinstance(lam, Mapping):
        return Ridge(lam, None, "")
    if phi not in ("soft", "logdet"):
        raise Refused(f"{what}: phi={phi!r} has no λ; give lam by name only with phi='soft' or 'logdet'")
    each = (f"{value:g} for {name or 'the rest'}" for name, value in lam.items())
    return Ridge(1.0, dict(lam), f" of Λ^-½ F Λ^-½ with Λ = {listed(each)}")


def by_name(what: str, table: Table, names: Iterable[str], needed: Iterable[str]) -> dict[str, float]:
    """{parameter: λ} for those of `needed`; refuse a key that fits none of `names`, and a gap in `needed`."""
    every = list(names)
    for key in table:
        if not any(_fits(key, name) for name in every):
            owners = {name.rpartition(".")[0] for name in every} - {""}
            raise Refused(
                f"{what}: lam names {key!r}, which is no trainable parameter or layer"
                f"{suggest(key, {*every, *owners})}"
            )
    fitting = {name: [key for key in table if _fits(key, name)] for name in needed}
    missing = [name for name, keys in fitting.items() if not keys]
    if missing:
        raise Refused(
            f"{what}: lam has no value for {listed(missing)}; name them or their layers, or give '' for "
            "the rest"
        )
    return {name: table[max(keys, key=len)] for name, keys in fitting.items()}


def _fits(key: str, name: str) -> bool:
    return key in ("", name) or name.startswith(f"{key}.")


def scales(what: str, seen: Seen, table: Table | None, also: Iterable[str] = ()) -> Scales:
    """λ^-½ of every trainable parameter of a tapped layer and of those in `also`; nothing without a table."""
    if table is None:
        return {}
    tapped = {id(t) for tap in seen.taps.values() for t in (tap.weight, tap.bias)}
    needed = [name for name, p in seen.params.items() if id(p) in tapped or name in also]
    found = by_name(what, table, seen.params, needed)
    return {id(seen.params[name]): lam**-0.5 for name, lam in found.items()}


def ends(tap: Tap, scale: Scales) -> tuple[float, float]:
    """What multiplies the weight's columns and, where the layer has one, the column of the bias."""
    weight = scale.get(id(tap.weight), 1.0)
    return weight, weight if tap.bias is None else scale.get(id(tap.bias), 1.0)


def weighed(piece: Outer | Direct, parameter: int, tap: Tap, scale: Scales | None) -> Outer | Direct:
    """The gradients in one run of a layer of the parameter with that `id`, times λ^-½."""
    if not scale:
        return piece
    weight, bias = ends(tap, scale)
    if isinstance(piece, Outer):
        if (
            piece.ones
        ):  # the column of ones is not stored: what it takes goes to the left, the rest to the right
            return Outer(piece.left * bias, piece.right * (weight / bias), 1)
        return piece._replace(left=piece.left * scale[parameter])
    entries, own = piece.vectors.shape[-1], tap.weight.numel()
    if parameter != id(tap.weight) or entries == own:
        return Direct(piece.vectors * scale[parameter])
    both = torch.full((entries,), bias, dtype=piece.vectors.dtype, device=piece.vectors.device)
    both[:own] = weight
    return Direct(piece.vectors * both)
