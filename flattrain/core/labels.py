"""Classes of examples or tokens, read from the targets of any of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.ranges import Refused
from flattrain.types import Estimate, Seen, Statistic


def counted(seen: Seen) -> tuple[Tensor, Tensor]:
    """Outputs (N, K) and targets (N,) or (N, K) of the rows that the loss counts, all tokens in a line.

    Rows of weight 0 (ignored labels, classes of weight 0) are left out.
    """
    outputs, target = seen.outputs, seen.target
    if outputs.ndim > 2:
        target = target.flatten(0, -2) if target.ndim == outputs.ndim else target.flatten()
        outputs = outputs.flatten(0, -2)
    if seen.criterion.weights is not None:
        kept = seen.criterion.weights(seen.target).flatten() > 0
        outputs, target = outputs[kept], target[kept]
    return outputs, target


def need_one_row(seen: Seen, what: str) -> None:
    """Refuse outputs that are not one row per example, for what has no meaning token by token."""
    if seen.outputs.ndim != 2:
        raise Refused(
            f"{what} needs one row of outputs per example, but the outputs have shape "
            f"{tuple(seen.outputs.shape)}; pass forward=lambda model, x: ... that returns (n, K)"
        )


def need_equal_weights(seen: Seen, what: str) -> None:
    """Refuse class weights and ignored labels, for what takes every example for one of n."""
    weights = None if seen.criterion.weights is None else seen.criterion.weights(seen.target)
    if weights is not None and bool((weights != 1).any()):
        raise Refused(f"{what}: examples must weigh the same; drop class weights and ignored labels")


def classes(seen: Seen, what: str) -> Tensor:
    """Class of each example (n,): labels as they are, argmax of one row per class, sign of ±1 targets."""
    need_one_row(seen, what)
    return _classes(seen.outputs, seen.target, what)


def rows_and_classes(seen: Seen, what: str) -> tuple[Tensor, Tensor]:
    """Outputs (N, K) and classes (N,) of the examples, or of the tokens, that the loss counts."""
    if seen.outputs.ndim < 2:
        need_one_row(seen, what)
    outputs, target = counted(seen)
    return outputs, _classes(outputs, target, what)


def logits_and_classes(seen: Seen, what: str) -> tuple[Tensor, Tensor]:
    """The same of a softmax classifier, K >= 2."""
    outputs, labels = rows_and_classes(seen, what)
    if seen.criterion.name != "cross_entropy" or outputs.shape[1] < 2:
        raise Refused(
            f"{what} needs the probabilities of a softmax classifier; use the loss cross_entropy with two or "
            f"more outputs, not {seen.criterion.name!r} with {outputs.shape[1]}"
        )
    return outputs, labels


def over_counted(each: Tensor, seen: Seen) -> Statistic:
    """The mean of one number for each row that the loss counts, in parts that combine by examples."""
    n = len(seen.outputs)
    return {"sum": each.sum() / n, "counted": torch.full_like(each.sum(), len(each) / n)}


def mean_counted(s: Statistic) -> Estimate:
    """From those parts to the mean."""
    return Estimate(s["sum"] / s["counted"])


def _classes(outputs: Tensor, target: Tensor, what: str) -> Tensor:
    if outputs.shape[1] == 1:
        return (target.reshape(-1) > 0).long()
    if target.ndim == 2:
        return target.argmax(-1)
    if target.is_floating_point():
        raise Refused(
            f"{what} needs classes, but the targets are real numbers for {outputs.shape[1]} outputs; "
            "give whole-number labels, or one row of class targets per example"
        )
    return target
