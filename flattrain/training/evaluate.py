"""A measure of a network over a whole data set: reduce(Σ_b (n_b / n) · statistic(batch b)).

Under class weights a batch counts as much as it does in the loss, Σ w_i in place of n_b.
Where the statistic has a row per example, the rows of all batches are put together instead.

Nothing is trained or changed: the parameters are detached copies, and the module is left as it was found.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flattrain.core.functional import see
from flattrain.core.lanczos import NotFinite
from flattrain.core.operators import Batches, hessian
from flattrain.core.probes import draw, stream
from flattrain.core.rows import below
from flattrain.core.untouched import untouched
from flattrain.core.weights import mass
from flattrain.ranges import Refused
from flattrain.training.objective import layers_of
from flattrain.types import Contrast, Estimate, Measure, Network, Operator, Params, Seen, Spectral, Statistic

CHUNK = 2048

Key = tuple[int | str, ...]


def evaluate(measure: Measure | Spectral, network: Network, x: Tensor, y: Tensor, key: Key) -> Estimate:
    """The measure on the examples (x, y); `key` names the stream of its probes."""
    whole = isinstance(measure, Measure) and measure.combine == "whole"
    return evaluate_on(measure, network, [(x, y)] if whole else chunks(x, y), key)


def chunks(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The examples in batches that fit into memory."""
    return list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))


def evaluate_on(measure: Measure | Spectral, network: Network, batches: Batches, key: Key) -> Estimate:
    """The measure on all examples of `batches`, pairs (x, y) that can be read more than once."""
    with untouched(network.module):  # a DataLoader draws from torch's global stream when it is read
        if iter(batches) is batches:
            raise Refused("the batches can be read only once; pass a list of (x, y), or a DataLoader")
        network.module.eval()
        if isinstance(measure, Spectral):
            return _operator(measure, network, batches, key)
        return _reduced(measure, network, batches, key)


def contrast_on(
    contrast: Contrast, network: Network, train: Batches, held_out: Batches, key: Key
) -> Estimate:
    """What it is on `held_out` less what it is on `train`; the errors are independent."""
    there = evaluate_on(contrast.held_out, network, held_out, key)
    here = evaluate_on(contrast.train, network, train, key)
    error = math.hypot(float(there.standard_error), float(here.standard_error))
    return Estimate(there.value - here.value, error)


def _reduced(measure: Measure, network: Network, batches: Batches, key: Key) -> Estimate:
    if measure.combine == "whole":
        batches = [_whole(measure, batches)]
    total: dict[str, Tensor] = {}
    layers = layers_of(network.module, measure)
    share = shares(measure, network, [y for _, y in batches])
    if not sum(share):
        raise Refused("no examples: a measure needs at least one batch of (x, y)")
    for k, (x, y) in enumerate(batches):
        if not share[k]:  # all of its labels are ignored: it has no mean
            continue
        for name, value in statistic_of(measure, network, x, y, layers, k, key).items():
            if measure.combine == "rows":
                total[name] = below(total[name], value) if name in total else value
            else:
                part = value * share[k]
                if name in total and total[name].shape != part.shape:
                    raise Refused(
                        f"{measure.name}: batches of different shapes do not combine; pad them to one length"
                    )
                total[name] = total[name] + part if name in total else part
    return measure.reduce(total)


def _whole(measure: Measure, batches: Batches) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*batches, strict=True)
    if len({(x.shape[1:], y.shape[1:]) for x, y in zip(xs, ys, strict=True)}) > 1:
        raise Refused(
            f"{measure.name} takes the data set as a single batch, and its batches have different shapes; "
            "pad them to one length"
        )
    return torch.cat(xs), torch.cat(ys)


def shares(measure: Measure, network: Network, targets: list[Tensor]) -> list[float]:
    """What each batch counts in the whole."""
    by_number = measure.combine == "examples"
    counts = [float(len(y)) if by_number else mass(network.criterion, y) for y in targets]
    return [count / sum(counts) if count else 0.0 for count in counts]


def statistic_of(
    measure: Measure, network: Network, x: Any, y: Tensor, layers: tuple[str, ...], number: int, key: Key
) -> Statistic:
    """The statistic of batch `number`, detached; the module is in evaluation mode."""
    live = {n: p.detach().requires_grad_() for n, p in network.params.items()}
    # A measure of order 1 takes no derivative itself: nothing need be kept for one.
    with torch.set_grad_enabled(measure.order > 1):
        seen = _see(network, live, x, y, layers)
        statistic = measure.statistic(seen, _noise(measure, seen, number, key))
    return {name: value.detach() for name, value in statistic.items()}


def _operator(measure: Spectral, network: Network, batches: Batches, key: Key) -> Estimate:
    try:
        return measure.estimate(operator_on(network, batches), stream(*key, "lanczos"))
    except NotFinite:  # the run has diverged: its row says so, and the others go on
        return Estimate(float("nan"), float("nan"))


def operator_on(network: Network, batches: Batches) -> Operator:
    """The Hessian of the mean loss over `batches`; the module is in evaluation mode."""

    def loss(live: Params, x: Any, y: Tensor) -> Tensor:
        return _see(network, live, x, y).loss

    return hessian(loss, network.params, batches, lambda y: mass(network.criterion, y))


def _see(network: Network, live: Params, x: Any, y: Tensor, layers: tuple[str, ...] = ()) -> Seen:
    return see(
        network.module,
        network.criterion,
        x,
        y,
        layers=layers,
        params=live,
        buffers=network.buffers,
        forward=network.forward,
        higher_order=True,
        differentiable=False,
    )


def _noise(measure: Measure, seen: Seen, chunk: int, key: Key) -> dict[str, Tensor]:
    # Probes over parameters are the same for every chunk, so their quadratic forms add up to that of
    # the whole set; probes over examples come from a stream of the chunk.
    wanted = measure.draws(seen)
    shared = {n: d for n, d in wanted.items() if not d.per_example}
    own = {n: d for n, d in wanted.items() if d.per_example}
    dtype = seen.loss.dtype
    drawn = draw(shared, stream(*key, "probes"), dtype) | draw(own, stream(*key, "probes", chunk), dtype)
    return {name: values.to(seen.loss.device) for name, values in drawn.items()}
