"""A measure over a data set by several processes: what `evaluate` gives by one, to rounding.

The batches are those of `evaluate`, with the same probes, and process r takes every W-th of them; statistics
are summed over the processes before `reduce`. Products with the Hessian are averaged, one exchange for each,
from the same starting vectors everywhere. What does not combine, and rows, each process computes for itself:
that costs no more time than one process would take.
"""

from __future__ import annotations

import torch

from flattrain.core.collective import summed
from flattrain.core.lanczos import NotFinite
from flattrain.core.operators import averaged
from flattrain.core.probes import stream
from flattrain.core.untouched import untouched
from flattrain.core.weights import mass
from flattrain.training.evaluate import Key, chunks, evaluate, operator_on, shares, statistic_of
from flattrain.training.objective import layers_of
from flattrain.training.ranks import Ranks
from flattrain.types import Estimate, Measure, Network, Spectral, Statistic


def evaluate_together(
    measure: Measure | Spectral, network: Network, x: torch.Tensor, y: torch.Tensor, key: Key, ranks: Ranks
) -> Estimate:
    """The measure on the examples (x, y), of which every process has all, as every process knows it."""
    few = len(y) < ranks.world
    alike = isinstance(measure, Measure) and measure.combine in ("rows", "whole")
    if not ranks.several or few or alike:
        return evaluate(measure, network, x, y, key)
    with untouched(network.module):
        network.module.eval()
        if isinstance(measure, Spectral):
            return _spectral(measure, network, x, y, key, ranks)
        return measure.reduce(_statistic(measure, network, x, y, key, ranks))


def _statistic(
    measure: Measure, network: Network, x: torch.Tensor, y: torch.Tensor, key: Key, ranks: Ranks
) -> Statistic:
    batches = chunks(x, y)
    share = shares(measure, network, [its for _, its in batches])
    mine = list(range(ranks.rank, len(batches), ranks.world))
    layers = layers_of(network.module, measure)
    out: Statistic = {}
    # Who has no batch computes one for the shapes, and counts it nothing.
    for k in mine or [0]:
        part = share[k] if mine else 0.0
        for name, value in statistic_of(measure, network, *batches[k], layers, k, key).items():
            own = value * part if part else torch.zeros_like(value)
            out[name] = out[name] + own if name in out else own
    return dict(zip(out, summed(tuple(out.values())), strict=True))


def _spectral(
    measure: Spectral, network: Network, x: torch.Tensor, y: torch.Tensor, key: Key, ranks: Ranks
) -> Estimate:
    mine = ranks.share(len(y))
    local = operator_on(network, chunks(x[mine], y[mine]))
    whole = averaged(local, mass(network.criterion, y[mine]))
    try:
        return measure.estimate(whole, stream(*key, "lanczos"))
    except NotFinite:
        return Estimate(float("nan"), float("nan"))
