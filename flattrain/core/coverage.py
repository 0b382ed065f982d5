"""Which parameters the structured measures cover: of a model, before anything is computed, and in a pass.

    print(coverage(model))

Covered are linear, convolutional, embedding and normalisation layers that run as modules (core.layers).
Parameters of anything else (fused attention, a bare nn.Parameter) are not; the measures refuse them unless
told uncovered="ignore" (left out of the quantity) or uncovered="dense" (exact, one example at a time).

A layer that runs once for all examples, as an embedding of the positions 0 … T − 1 does, hides what each of
them adds to its gradient; only "dense" takes it, or a run with a row for each example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from flattrain.core.layers import covered_layers, is_convolution
from flattrain.ranges import Refused
from flattrain.types import Seen, Tap

_FUSED = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k")


@dataclass(frozen=True)
class Coverage:
    """Numbers of trainable entries: by covered layer, and by uncovered parameter."""

    covered: dict[str, int]
    uncovered: dict[str, int]

    @property
    def share(self) -> float:
        """Covered entries as a share of all trainable ones."""
        inside, outside = sum(self.covered.values()), sum(self.uncovered.values())
        return inside / (inside + outside) if inside + outside else 1.0

    def __str__(self) -> str:
        rows = [(name, count, "covered") for name, count in self.covered.items()]
        rows += [(name, count, "not covered") for name, count in self.uncovered.items()]
        width = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{name:{width}}  {count:>10,}  {state}" for name, count, state in rows]
        return "\n".join([*lines, f"{self.share:.1%} of the trainable parameters are covered"])


def coverage(model: nn.Module) -> Coverage:
    """What the structured measures cover of the trainable parameters of `model`; tied ones count once."""
    inside: dict[str, int] = {}
    known: set[int] = set()
    modules = dict(model.named_modules())
    for name in covered_layers(model):
        own = [p for p in modules[name].parameters(recurse=False) if p.requires_grad and id(p) not in known]
        known |= {id(p) for p in own}
        if own:
            inside[name] = sum(p.numel() for p in own)
    outside = {
        name: p.numel() for name, p in model.named_parameters() if p.requires_grad and id(p) not in known
    }
    return Coverage(inside, outside)


def need_covered(
    seen: Seen, what: str, uncovered: Literal["refuse", "ignore", "dense"] = "refuse"
) -> tuple[Seen, tuple[str, ...]]:
    """The pass with the taps that explain their parameters, and the parameters to be taken densely.

    What no tapped layer explains is refused, unless left out or taken densely.
    """
    together = [tap for tap in seen.taps.values() if _once_for_all(seen, tap)]
    if together and uncovered != "dense":
        shape, n = tuple(together[0].output.shape), len(seen.outputs)
        flattened = len(shape) > 2 and shape[0] * shape[1] == n
        mend = (
            "have the model return outputs (n, tokens, K), not all tokens in a line"
            if flattened
            else "e.g. of positions positions.expand(n, -1); or say uncovered='dense'"
        )
        raise Refused(
            f"{what}: layer {together[0].layer!r} gives {shape} for {n} examples; examples must be its first "
            f"dimension, {mend}"
        )
    hidden = {id(t) for tap in together for t in (tap.weight, tap.bias) if t is not None}
    kept = {r: t for r, t in seen.taps.items() if id(t.weight) not in hidden and id(t.bias) not in hidden}
    known = {id(t) for tap in kept.values() for t in (tap.weight, tap.bias)}
    names = tuple(name for name, p in seen.params.items() if id(p) not in known)
    if names and uncovered == "refuse":
        share = sum(seen.params[n].numel() for n in names) / sum(p.numel() for p in seen.params.values())
        fused = any(name.rpartition(".")[2] in _FUSED for name in names)
        raise Refused(
            f"{what}: no structure is known for {', '.join(names)} ({share:.0%} of the parameters); give "
            "uncovered='ignore' to leave them out, uncovered='dense' to take them one example at a time, "
            "or name layers=[...]"
            + fused
            * "; nn.MultiheadAttention hides its projections: written as nn.Linear they are covered"
        )
    return seen._replace(taps=kept), names if uncovered == "dense" else ()


def _once_for_all(seen: Seen, tap: Tap) -> bool:
    """Whether a layer ran once for all examples, and not with a row for each of them."""
    n = len(seen.outputs)
    if len(tap.output) != n:
        return True
    if not isinstance(tap.module, nn.Embedding) or tap.input.ndim != 1:
        return False
    # n indices beside sequences of length n: positions, as far as can be seen.
    others = [t.output for t in seen.taps.values() if not is_convolution(t.module)]
    whole = isinstance(seen.inputs, Tensor) and not seen.inputs.is_floating_point()
    given = [seen.inputs] if whole else []
    sequences = [t for t in (seen.outputs, *others) if t.ndim > 2]
    return any(t.shape[:2] == (n, n) for t in (*sequences, *given))
