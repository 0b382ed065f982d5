"""The objective: loss + Σ λᵢ · measureᵢ from one forward pass, as a function and as a gradient function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import grad, vmap

from flattrain.core.clock import since
from flattrain.core.collective import spread
from flattrain.core.eager import guard
from flattrain.core.functional import Forward, call, only, outputs_at, see
from flattrain.core.ghost_sam import per_example_sam
from flattrain.core.layers import covered_layers, with_ties
from flattrain.core.weights import relative_weights
from flattrain.ranges import Refused, refusal
from flattrain.training.ranks import ALONE, Ranks
from flattrain.training.union import need_shares, union, weights_of
from flattrain.types import Batch, Draw, GradFn, Logs, Loss, Measure, Params, Seen


class Penalty(NamedTuple):
    """A measure that is added to the loss with a weight λ, at the steps before `until`; None: at all.

    With λ < 0 it is sought instead of avoided.
    """

    measure: Measure
    weight: float
    until: int | None = None


@dataclass(frozen=True)
class Objective:
    """loss + Σ λᵢ · measureᵢ on a module, with everything that one pass must tap."""

    module: nn.Module
    criterion: Loss
    penalties: tuple[Penalty, ...]
    layers: tuple[tuple[str, ...], ...]  # per penalty
    forward: Forward = call
    ranks: Ranks = ALONE

    def see(self, x: Any, y: Tensor, params: Params | None = None, buffers: Params | None = None) -> Seen:
        """The one forward pass."""
        tapped = dict.fromkeys(name for names in self.layers for name in names)
        return see(
            self.module,
            self.criterion,
            x,
            y,
            layers=tapped,
            params=params,
            buffers=buffers,
            forward=self.forward,
            higher_order=any(p.measure.order > 1 for p in self.penalties),
        )

    def total(self, seen: Seen, noise: dict[str, Tensor], batch: Batch | None = None) -> tuple[Tensor, Logs]:
        """The penalised loss, and its parts by name; of several processes, over all their examples.

        batch : the one of the step, for penalties that end; without it they do not.
        """
        if self.ranks.several:
            return self._union(seen, noise, batch)
        total, logs = seen.loss, {"loss": seen.loss.detach()}
        for k, penalty, mine in self._parts(seen):
            measure, left = penalty.measure, _left(penalty, batch)
            if isinstance(left, float) and left == 0:
                continue
            guard(measure, mine)
            value = on_batch(measure, mine, _own(noise, k))
            total = total + penalty.weight * left * value.to(total.dtype)
            logs[measure.name] = value.detach()
        return total, logs

    def _union(self, seen: Seen, noise: dict[str, Tensor], batch: Batch | None) -> tuple[Tensor, Logs]:
        """The statistics of all shares are put together before `reduce`, which may be non-linear."""
        parts, found = list(self._parts(seen)), {"loss": {"loss": seen.loss}}
        for k, (measure, _, _), mine in parts:
            guard(measure, mine)
            found[str(k)] = measure.statistic(mine, _own(noise, k))
        ways = {"loss": "mean", **{str(k): measure.combine for k, (measure, _, _), _ in parts}}
        whole = union(found, ways, weights_of(self.criterion, seen.target), self.ranks)
        value = whole["loss"]["loss"]
        logs = {"loss": value.detach()}
        for k, penalty, _ in parts:
            size = penalty.measure.reduce(whole[str(k)]).value
            value = value + penalty.weight * _left(penalty, batch) * size.to(value.dtype)
            logs[penalty.measure.name] = size.detach()
        return value, logs

    def draws(self, seen: Seen) -> dict[str, Draw]:
        """The random tensors that the penalties want, under names of their own."""
        wanted = {}
        for k, (measure, _, _), mine in self._parts(seen):
            for name, draw in measure.draws(mine).items():
                wanted[f"{k}:{name}"] = draw
        return wanted

    def _parts(self, seen: Seen) -> Iterator[tuple[int, Penalty, Seen]]:
        """Each penalty with its number and the pass as it sees it: with its own layers tapped."""
        for k, (penalty, layers) in enumerate(zip(self.penalties, self.layers, strict=True)):
            yield k, penalty, only(seen, layers)

    def value(self, buffers: Params | None = None) -> Callable[[Params, Batch], tuple[Tensor, Logs]]:
        """(params, batch) -> (objective, logs)."""

        def value(params: Params, batch: Batch) -> tuple[Tensor, Logs]:
            own = spread(params) if self.ranks.several else params
            return self.total(self.see(batch.x, batch.y, own, buffers), batch.noise, batch)

        return value

    def gradient(self, buffers: Params | None = None) -> GradFn:
        """(params, batch) -> (∇ objective, logs), for rules, vmap and torch.func."""
        return grad(self.value(buffers), has_aux=True)

    def outputs(self, params: Params, batch: Batch) -> Tensor:
        """The network's outputs (n, K), for rules that look at them; with the module's own buffers."""
        return outputs_at(self.module, self.forward, params, {}, batch.x)

    def per_example_sam(self, rho: float) -> GradFn:
        """Per-example SAM of the loss without penalties, for a module without buffers (`core.ghost_sam`)."""

        def ascended(params: Params, batch: Batch) -> tuple[Tensor, Logs]:
            found = per_example_sam(
                self.module, self.criterion, batch.x, batch.y, rho=rho, params=params, forward=self.forward
            )
            return found.loss, {"loss": found.before, "ascended/loss": found.loss.detach()}

        return grad(ascended, has_aux=True)

    def losses(self, params: Params, batch: Batch) -> Tensor:
        """The loss of each example (n,), without penalties; their mean is the batch's."""

        def one(outputs: Tensor, target: Tensor) -> Tensor:
            return self.criterion.mean(outputs[None], target[None])

        outputs = self.outputs(params, batch)
        each: Tensor = vmap(one)(outputs, batch.y)
        relative = relative_weights(self.criterion, outputs, batch.y)
        return each if relative is None else each * relative


def _left(penalty: Penalty, batch: Batch | None) -> float | Tensor:
    """1, and 0 from the step on at which the penalty ends."""
    return 1.0 if penalty.until is None or batch is None else 1 - since(batch, penalty.until)


def on_batch(measure: Measure, seen: Seen, noise: dict[str, Tensor]) -> Tensor:
    """The measure of one batch, as a penalty takes it."""
    if measure.on_batch is not None:
        return measure.on_batch(seen, noise)
    value: Tensor = measure.reduce(measure.statistic(seen, noise)).value
    return value


def _own(noise: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    prefix = f"{k}:"
    return {n.removeprefix(prefix): t for n, t in noise.items() if n.startswith(prefix)}


def build(
    module: nn.Module,
    criterion: Loss,
    penalties: Sequence[Penalty],
    forward: Forward = call,
    ranks: Ranks = ALONE,
) -> Objective:
    """Check weights and layer names, and fix which layers each penalty taps.

    With several `ranks` the objective is that of the union of their batches, and so are its gradient and all
    further derivatives: `value` and `gradient` take the same parameters everywhere and each process's batch.
    """
    if ranks.several:
        need_shares(module, criterion, [penalty.measure for penalty in penalties])
    tapped = []
    for penalty in penalties:
        problem = refusal("float", penalty.weight)
        if problem:
            raise Refused(f"{penalty.measure.name}: weight {problem}")
        tapped.append(layers_of(module, penalty.measure))
    return Objective(module, criterion, tuple(penalties), tuple(tapped), forward, ranks)


def layers_of(module: nn.Module, measure: Measure) -> tuple[str, ...]:
    """The layers a measure taps in this module."""
    if measure.layers is None:
        return covered_layers(module)
    return with_ties(module, measure.layers)
