"""Every contract of flattrain on one page.

The path of the data:

    recipe ─▶ Problem(module, loss, params, splits)
                 │
    measures ─▶ objective = loss + Σ λᵢ · measureᵢ        (params, batch) -> scalar, logs
                 │ gradient
              grad_fn                                     (params, batch) -> grads, logs
                 │ rules: sam, label noise, …             grad_fn -> grad_fn, with a memory if need be
                 │ torchopt transformation                (grads, state) -> updates
              step                                        vmap over seeds
              loop ─▶ measures at milestones ─▶ results table ─▶ claims ─▶ verdicts ─▶ report

Shapes: n examples, K outputs, D inputs of a layer, S seeds. Losses are means over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

Params: TypeAlias = "dict[str, Tensor]"
Logs: TypeAlias = "dict[str, Tensor]"
Norms: TypeAlias = "tuple[tuple[str, nn.Module], ...]"


@dataclass(frozen=True)
class Moment:
    """When a step is taken: its number, and the share of their radius that rules use (a schedule of ρ)."""

    step: int = 0
    strength: float = 1.0


class Batch(NamedTuple):
    """Everything a step may see, so that two calls within a step see the same objective.

    noise holds what is random in the rule and in the measures, drawn beforehand by `core.probes`; clock the
    number of the step as a tensor, where the step is compiled and cannot branch on it (`core.clock`).
    """

    x: Tensor
    y: Tensor
    noise: dict[str, Tensor] = {}  # noqa: RUF012  (never written to; NamedTuple has no factory)
    moment: Moment = Moment()
    clock: tuple[Tensor, ...] = ()


class Draw(NamedTuple):
    """A random tensor that a rule or a measure asks for, by distribution and shape."""

    kind: Literal["rademacher", "normal"]
    shape: tuple[int, ...]
    per_example: bool = False  # the leading dimension runs over the examples of the batch


OfBatch: TypeAlias = "Callable[[Params, Batch], Tensor]"
GradFn: TypeAlias = "Callable[[Params, Batch], tuple[Params, Logs]]"
OfRadius: TypeAlias = "Callable[[float], GradFn]"
Memory: TypeAlias = "dict[str, Tensor]"
MindfulGradFn: TypeAlias = "Callable[[Params, Batch, Memory], tuple[Params, Logs, Memory]]"


@dataclass(frozen=True)
class Rule:
    """How a gradient is taken: `wrap` turns a gradient function into another one.

    `draws(params, batch)` names the random tensors that the rule finds in `batch.noise`.
    """

    wrap: Callable[[GradFn], GradFn]
    draws: Callable[[Params, Batch], dict[str, Draw]] = lambda params, batch: {}

    def __call__(self, grad_fn: GradFn) -> GradFn:
        return self.wrap(grad_fn)


@dataclass(frozen=True)
class StatefulRule:
    """A rule that remembers: `init(params)` is its memory before the first step.

    The memory is threaded through the steps beside the optimizer's state: tensors only, so that it can be
    stacked over seeds and saved in checkpoints. `moved(θ, θ', memory)` is where the step ends, when the
    optimizer went from θ to θ': for rules that act on the step itself, whatever the optimizer.
    """

    init: Callable[[Params], Memory]
    wrap: Callable[[GradFn], MindfulGradFn]
    draws: Callable[[Params, Batch], dict[str, Draw]] = lambda params, batch: {}
    moved: Callable[[Params, Params, Memory], Params] = lambda before, after, memory: after

    def __call__(self, grad_fn: GradFn) -> MindfulGradFn:
        return self.wrap(grad_fn)


@dataclass(frozen=True)
class Loss:
    """A mean loss, its zero-one error, and the square root of its output Hessian, row by row.

    B is the number of examples, or examples × tokens where outputs are (n, T, K) (core.losses).

    factor(outputs) -> L (B, K, C) with L Lᵀ the output Hessian S, or None where the structure is unknown.
    sketch(outputs, ε) -> L ε (B, K) of any root L, for ε (B, K) of mean 0, covariance I; None: of `factor`.
    trace_with(outputs, W) -> Tr(W Wᵀ S) per row (B,), in closed form, for outputs (B, K).
    weights(target) -> w (B,), where mean = Σ w_i ℓ_i / Σ w_i; None: all alike. Batches count by Σ w_i.
    curvature(target) -> c (B,), where the output Hessian of row i is c_i L Lᵀ; None: as the weights.
    """

    name: str
    mean: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor] | None = None
    factor: Callable[[Tensor], Tensor] | None = None
    sketch: Callable[[Tensor, Tensor], Tensor] | None = None
    trace_with: Callable[[Tensor, Tensor], Tensor] | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    curvature: Callable[[Tensor], Tensor] | None = None


class Network(NamedTuple):
    """A module, its loss and the values of its parameters and buffers."""

    module: nn.Module
    criterion: Loss
    params: Params
    buffers: Params
    forward: Callable[[nn.Module, Any], Tensor] = lambda module, x: module(x)


class Tap(NamedTuple):
    """One run of a layer (core.layers) in a forward pass, on the live autograd graph: z = Wφ + b."""

    layer: str  # its name in the model
    module: nn.Module
    input: Tensor  # φ (n, D), or (n, ..., D), or (n, C, H, W), or the indices (n, ...) of an embedding
    output: Tensor  # z (n, K), or as the layer gives it
    weight: Tensor  # W (K, D), or as the layer has it
    bias: Tensor | None  # b (K,)


Map: TypeAlias = "Callable[[Tensor], Tensor]"


class Run(Protocol):
    """(params, x) -> outputs: another pass, which leaves no trace.

    through: {layer: map} lets the input of a linear layer pass through a map on its way in.
    """

    def __call__(self, params: Params, x: Any, through: Mapping[str, Map] | None = None, /) -> Tensor: ...


class Seen(NamedTuple):
    """What one forward pass shows to the measures. Everything is live, so it can be differentiated."""

    params: Params
    inputs: Any  # x as it was given to the network
    outputs: Tensor  # (n, K), or (n, T, K) with a row for each token
    loss: Tensor  # scalar: the mean loss over the batch
    target: Tensor
    criterion: Loss
    taps: dict[str, Tap]  # by the layer's name; a second run of the layer is "name (2)"
    norms: Norms  # normalisations that measures must beware of (core.eager), as they ran
    norms_after: dict[str, Norms]  # those that ran behind a tapped layer
    differentiable: bool  # whether the measure will be differentiated; if not, it keeps no graph of its own
    run: Run  # another pass, at other parameters, inputs or features


class Estimate(NamedTuple):
    """A number with its standard error; 0 for what is computed exactly."""

    value: Any
    standard_error: Any = 0.0


Statistic: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Measure:
    """A quantity of a network on data: `reduce(mean over examples of statistic)`.

    statistic : (Seen, noise) -> a dict of tensors, each a *mean over the examples* of the batch, so that
                batches combine by their counts, whatever `reduce` does afterwards.
    reduce    : statistic -> Estimate. May be non-linear (soft rank is).
    combine   : how the statistics of batches combine: "mean" by what they count in the loss (their
                examples, tokens or weights); "examples" by the number of examples, for a quantity that is
                not of the loss; "rows", for a statistic whose tensors have a row per example and no mean
                would do (a maximum, a quantile); "whole", for one that does not combine and takes the data
                set as a single batch.
    layers    : the layers to tap, by name; None means every one whose structure is known (core.layers).
    on_batch  : the value on a single batch, where there is a cheaper way to it than reduce(statistic).
    draws     : Seen -> the random tensors it wants in `noise`.
    order     : how often the operations of the network are differentiated when the measure is a penalty:
                1 where the statistic takes no derivative itself.
    after     : the layer behind which that order counts; None means everywhere.
    definition: what the number is, in words, for reports.
    """

    name: str
    statistic: Callable[[Seen, Mapping[str, Tensor]], Statistic]
    reduce: Callable[[Statistic], Estimate]
    definition: str
    combine: Literal["mean", "examples", "rows", "whole"] = "mean"
    layers: tuple[str, ...] | None = ()
    on_batch: Callable[[Seen, Mapping[str, Tensor]], Tensor] | None = None
    draws: Callable[[Seen], dict[str, Draw]] = field(default=lambda seen: {})
    order: int = 1
    after: str | None = None


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix A on the parameters, known by its products alone (`core.operators`).

    matvec : v (dim,) -> A v (dim,), on flat vectors in the order of `sizes`, which names the parameters.
    """

    matvec: Callable[[Tensor], Tensor]
    sizes: dict[str, int]
    dtype: torch.dtype
    device: torch.device

    @property
    def dim(self) -> int:
        return sum(self.sizes.values())

    def __call__(self, vector: Tensor) -> Tensor:
        return self.matvec(vector)


@dataclass(frozen=True)
class Spectral:
    """A quantity read off the Hessian as a matrix-free operator over a whole data set."""

    name: str
    estimate: Callable[[Operator, Generator], Estimate]
    definition: str


@dataclass(frozen=True)
class Contrast:
    """A quantity of two data sets: one measure on held-out examples less another on the training examples."""

    name: str
    held_out: Measure
    train: Measure
    definition: str


@dataclass(frozen=True)
class Timing:
    """A cost that is measured on the clock: alone among quantities it is no function of the seed.

    Its definition says so, and what it is compared with.
    """

    name: str
    ratio: Callable[[Network, Tensor, Tensor], Estimate]
    definition: str


Quantity: TypeAlias = "Measure | Spectral | Contrast | Timing"
