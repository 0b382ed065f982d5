"""What a regularised step costs: its processor time over that of the plain step, in turns in one process.

    plain      ∇L, and θ − η∇L
    head       ∇(L + λκ), κ of the last layer in closed form (`measures.relative_flatness`)
    probe      the same with one Hessian-vector product in the layer's features
    sam        ∇L at θ + ρ∇L/‖∇L‖
    released   ∇(L + λ published_fam) by the way of the released FAM code: a second forward pass, and the
               whole Hessian of the last layer's weight by vectorised autograd, detached. Its loop over pairs
               of rows is one sum here, so this is the least that the way can cost

Each round takes one step of either kind, first the one and then, in the next round, first the other; the cost
is the median over rounds of the ratio, which does not feel that the machine is slower in one minute than in
the next. It is a measurement of a machine: alone among the quantities of a run it is no function of the seed,
and another run gives another number. `plain` against itself says how far numbers can be trusted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import trees
from flattrain.core.functional import outputs_at, see, tapped
from flattrain.core.probes import draw, stream
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.ranges import Count, Refused, checked
from flattrain.rules.sam import sam
from flattrain.training.objective import Objective, Penalty, build
from flattrain.types import Batch, Estimate, GradFn, Network, Params, Timing

Way = Literal["plain", "head", "probe", "sam", "released"]
Work = Callable[[], object]
WEIGHT, RHO, LR = 1e-3, 0.05, 0.01  # they do not change the cost
WARM_UP = 3

_WORDS = {
    "plain": "a plain step",
    "head": "a step with relative flatness of {layer!r} in closed form",
    "probe": "a step with relative flatness of {layer!r} by one probe of its features",
    "sam": "a step of SAM",
    "released": "a step with the FAM penalty of {layer!r} as the released code takes it",
}


@checked
def step_cost(
    *,
    of: Literal["plain", "head", "probe", "sam", "released"] = "head",
    layer: str = "head",
    batch: Count = 128,
    repeats: Count = 25,
) -> Timing:
    """Processor time of a step over that of a plain step, on the first `batch` examples; their median."""

    def ratio(network: Network, x: Tensor, y: Tensor) -> Estimate:
        if x.device.type != "cpu":
            raise Refused(f"step_cost is processor time, and the network is on {x.device}; take device=cpu")
        examples = Batch(x[:batch], y[:batch])
        one, plain = (
            _step(gradient_of(network, way, layer), network.params, examples) for way in (of, "plain")
        )
        return cost(one, plain, repeats)

    words = _WORDS[of].format(layer=layer)
    return Timing(
        "step_cost",
        ratio,
        f"a timing, not the same in another run: processor time of {words} over that of a plain step, median "
        f"of {repeats} in turns, batches of {batch}",
    )


def cost(work: Work, plain: Work, repeats: int, clock: Callable[[], float] = time.process_time) -> Estimate:
    """The median ratio of the times of the two, with its standard error from the quartiles of the ratios."""
    ratios: list[float] = []
    for number in range(WARM_UP + repeats):
        spent = {}
        for do in (work, plain) if number % 2 else (plain, work):
            began = clock()
            do()
            spent[do is plain] = clock() - began
        if number >= WARM_UP:
            ratios.append(spent[False] / spent[True])
    if len(ratios) < 2:
        return Estimate(ratios[0], float("nan"))
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    # Of a normal sample: σ = IQR/1.349, and the median's standard error is √(π/2) σ/√n.
    return Estimate(middle, 1.2533 * (high - low) / 1.349 / len(ratios) ** 0.5)


def gradient_of(network: Network, way: Way, layer: str) -> GradFn:
    """The gradient that a step of this kind takes."""
    penalties = []
    if way == "head" or way == "probe":
        penalties = [Penalty(relative_flatness(layer=layer, form=way), WEIGHT)]
    objective = build(network.module, network.criterion, penalties, forward=network.forward)
    if way == "released":
        return _by_autograd(lambda params, batch: _released(network, layer, params, batch))
    plain = _by_autograd(lambda params, batch: _total(objective, network, params, batch))
    return sam(rho=RHO)(plain) if way == "sam" else plain


def _total(objective: Objective, network: Network, params: Params, batch: Batch) -> Tensor:
    seen = objective.see(batch.x, batch.y, params, network.buffers)
    noise = draw(objective.draws(seen), stream("step_cost"), seen.loss.dtype)
    return objective.total(seen, noise)[0]


def _released(network: Network, layer: str, params: Params, batch: Batch) -> Tensor:
    """L + λ/D Σ_ij ⟨w_i, w_j⟩ Σ_a H_ajia, H (K, D, K, D) detached; see `published_fam`."""
    seen = see(
        network.module,
        network.criterion,
        batch.x,
        batch.y,
        layers=(layer,),
        params=params,
        buffers=network.buffers,
        forward=network.forward,
    )
    weight, name = tapped(seen, layer).weight, f"{layer}.weight"

    def loss(of_layer: Tensor) -> Tensor:
        at = params | {name: of_layer}
        outputs = outputs_at(network.module, network.forward, at, network.buffers, batch.x)
        return network.criterion.mean(outputs, batch.y)

    rows, columns = weight.shape
    if rows > columns:
        raise Refused(f"the released code needs {layer!r} to have no more rows than columns")
    h = torch.autograd.functional.hessian(loss, weight.detach(), vectorize=True)
    found = h[:, :rows].diagonal(dim1=0, dim2=3).sum(-1)  # (j, i)
    return seen.loss + WEIGHT * ((weight @ weight.T) * found.T).sum() / columns


def _by_autograd(total: Callable[[Params, Batch], Tensor]) -> GradFn:
    """∇ total, without torch.func, inside of which the released way does not run."""

    def gradient(params: Params, batch: Batch) -> tuple[Params, dict[str, Tensor]]:
        live = {k: p.detach().requires_grad_() for k, p in params.items()}
        value = total(live, batch)
        grads = torch.autograd.grad(value, list(live.values()))
        return dict(zip(live, grads, strict=True)), {"loss": value.detach()}

    return gradient


def _step(gradient: GradFn, params: Params, batch: Batch) -> Work:
    return lambda: trees.axpy(-LR, gradient(params, batch)[0], params)
