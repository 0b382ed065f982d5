"""Which parameters of a model the structured measures cover, before anything is computed.

    print(coverage(model))

Covered are linear, convolutional, embedding and normalisation layers that run as modules (core.layers).
Parameters of anything else (fused attention, a bare nn.Parameter) are not; the measures refuse them unless
told uncovered="ignore" (left out of the quantity) or uncovered="dense" (exact, one example at a time).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flattrain.core.layers import covered_layers


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
