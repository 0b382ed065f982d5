"""Flatness regularizers for your own model and loop.

    objective = Regularized(model, F.cross_entropy, [RelativeFlatness("head", weight=1e-2)])
    loss = objective(x, y)
    loss.backward()

One forward pass serves the loss and every penalty; `HessianTrace` adds one for each of its probes. The
gradient is exact: it is that of the measure itself, through the curvature, for all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flattrain.core.functional import Forward, call
from flattrain.core.losses import recognise
from flattrain.core.probes import draw, stream
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.soft_rank import soft_rank
from flattrain.ranges import Refused, refusal
from flattrain.training.objective import Penalty, build
from flattrain.types import Loss

__all__ = [
    "FisherRank",
    "GaussNewtonTrace",
    "HessianTrace",
    "Penalty",
    "Regularized",
    "RelativeFlatness",
    "SoftRank",
]


def RelativeFlatness(
    layer: str,
    *,
    weight: float,
    form: Literal["auto", "head", "relu", "probe"] = "auto",
    probes: int = 1,
) -> Penalty:
    """λ κ of the weight matrix of a linear layer (Petzka et al. 2021); see `measures.relative_flatness`.

    With `form="auto"` the last layer under cross entropy or squared error takes the exact closed form,
    which costs no more than a plain step; any other layer takes `probes` feature-space probes.
    """
    return Penalty(relative_flatness(layer=layer, form=form, probes=probes), weight)


def SoftRank(
    *,
    weight: float,
    lam: float | Mapping[str, float] = 1e-2,
    layers: Sequence[str] | None = None,
    columns: Literal["exact", "sketch"] = "exact",
) -> Penalty:
    """λ rank_lam(F), the soft rank of the Fisher by KFAC; see `measures.soft_rank`.

    `layers=None` covers every layer whose structure is known (linear, convolution, embedding, normalisation),
    and refuses a model with other parameters.
    `lam` may be a table, one number per layer or parameter: `{"": 1e-3, "head": 1e-2}` (`core.ridge`).
    `columns="sketch"` back-propagates one vector per example in place of one per class: cheaper, biased low.
    """
    chosen = None if layers is None else tuple(layers)
    return Penalty(soft_rank(lam=lam, layers=chosen, columns=columns), weight)


def FisherRank(
    *,
    weight: float,
    lam: float | Mapping[str, float] = 1e-2,
    columns: Literal["exact", "sketch"] = "sketch",
    metric: Literal["euclidean", "adaptive"] = "euclidean",
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Penalty:
    """λ rank_lam(F) of the whole network's Fisher as one matrix; see `measures.fisher_rank`.

    `lam` may be a table, one number per layer or parameter: `{"": 1e-3, "head": 1e-2}` (`core.ridge`).
    """
    measure = fisher_rank(lam=lam, columns=columns, metric=metric, uncovered=uncovered)
    return Penalty(measure, weight)


def GaussNewtonTrace(
    *,
    weight: float,
    columns: Literal["exact", "sketch"] = "sketch",
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Penalty:
    """λ Tr G, the trace of the Gauss–Newton matrix; see `measures.gauss_newton_trace`.

    For a piecewise-linear net it is the trace of the Hessian; one sketch costs less than two plain steps.
    """
    return Penalty(gauss_newton_trace(columns=columns, uncovered=uncovered), weight)


def HessianTrace(
    *, weight: float, probes: int = 1, form: Literal["hutchinson", "control"] = "hutchinson"
) -> Penalty:
    """λ Tr ∇²L over all trainable parameters by probes; see `measures.hessian_trace`."""
    return Penalty(hessian_trace(probes=probes, form=form), weight)


class Regularized:
    """loss_fn(model(x), y) + Σ penalties, as a scalar to call `.backward()` on.

    loss_fn : a mean over examples, e.g. F.cross_entropy or nn.CrossEntropyLoss(); or over tokens, for outputs
              (n, T, K) with the classes last and labels (n, T) (core.losses).
    forward : how the model is called, `forward(model, x) -> outputs`, where `model(x)` does not do. x may be
              anything the model takes; with keywords: `lambda model, x: model(**x).logits`.
    seed    : names the stream of random probes. Calls number themselves; pass `step=` to fix the number, so
              that both passes of a SAM step see the same probes.

    After a call, `logs` holds the loss and each measure as detached tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss,
        penalties: Sequence[Penalty],
        *,
        forward: Forward = call,
        seed: int = 0,
    ) -> None:
        if isinstance(model, DistributedDataParallel | DataParallel):
            raise Refused(
                f"{type(model).__name__} hides local gradients from penalties; pass model.module and "
                "average the gradients over ranks after backward()"
            )
        for penalty in penalties:
            if problem := refusal("NonNegative", penalty.weight):
                raise Refused(f"{penalty.measure.name}: weight {problem}")
        self.objective = build(model, recognise(loss_fn), penalties, forward)
        self.seed = seed
        self.calls = 0
        self.logs: dict[str, Tensor] = {}

    def __call__(self, x: Any, y: Tensor, *, step: int | None = None) -> Tensor:
        seen = self.objective.see(x, y)
        number = self.calls if step is None else step
        self.calls += step is None
        noise, wanted = {}, self.objective.draws(seen)
        if wanted:  # seeding a generator costs as much as a small layer
            drawn = draw(wanted, stream(self.seed, "penalty", number), seen.loss.dtype)
            noise = {name: t.to(seen.loss.device) for name, t in drawn.items()}
        total, self.logs = self.objective.total(seen, noise)
        return total
