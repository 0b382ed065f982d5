"""Classes of examples, read from the targets of any of the losses."""

from __future__ import annotations

from torch import Tensor

from flattrain.ranges import Refused
from flattrain.types import Seen


def classes(seen: Seen, what: str) -> Tensor:
    """Class of each example (n,): labels as they are, argmax of one row per class, sign of ±1 targets."""
    if seen.outputs.ndim != 2:
        raise Refused(
            f"{what} needs one row of outputs per example, but the outputs have shape "
            f"{tuple(seen.outputs.shape)}; pass forward=lambda model, x: ... that returns (n, K)"
        )
    if seen.outputs.shape[1] == 1:
        return (seen.target.reshape(-1) > 0).long()
    if seen.target.ndim == 2:
        return seen.target.argmax(-1)
    if seen.target.is_floating_point():
        raise Refused(
            f"{what} needs classes, but the targets are real numbers for {seen.outputs.shape[1]} outputs; "
            "give whole-number labels, or one row of class targets per example"
        )
    return seen.target


def logits_and_classes(seen: Seen, what: str) -> tuple[Tensor, Tensor]:
    """Outputs (n, K) of a softmax classifier, K >= 2, and the classes (n,)."""
    labels = classes(seen, what)
    if seen.criterion.name != "cross_entropy" or seen.outputs.shape[1] < 2:
        raise Refused(
            f"{what} needs the probabilities of a softmax classifier; use the loss cross_entropy with two or "
            f"more outputs, not {seen.criterion.name!r} with {seen.outputs.shape[1]}"
        )
    return seen.outputs, labels
