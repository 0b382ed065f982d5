"""The statistics of the union of the batches of several processes, differentiable.

    mean       s = Σ_r m_r s_r / Σ_r m_r,   m_r the mass of process r's share (its rows, or their weights)
    examples   the same with m_r the number of its examples
    rows       the rows of all processes, in their order

One sum over the processes carries all of it, so a step with any number of penalties sends what one with a
plain loss does, and the statistics. What does not combine cannot be shared and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flattrain.core.collective import summed, total
from flattrain.ranges import Refused
from flattrain.training.ranks import Ranks
from flattrain.types import Loss, Measure, Params, Statistic

IN_GROUPS = ("worst_sharpness",)  # its statistic forms groups of the batch that it is given


def need_shares(module: nn.Module, criterion: Loss, measures: Iterable[Measure]) -> None:
    """Refuse what is not a function of the statistics of the shares."""
    for measure in measures:
        if measure.combine == "whole" or measure.name in IN_GROUPS:
            raise Refused(
                f"{measure.name}: as a penalty it needs the whole batch in one process; take one process, or "
                "measure it instead"
            )
        if measure.combine == "rows" and criterion.weights is not None:
            raise Refused(f"{measure.name}: class weights cannot be shared by processes; take one process")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise Refused(
                f"layer {name!r} ({type(part).__name__}) normalises by the share of each process; put it in "
                "evaluation mode, or take one process"
            )


def weights_of(criterion: Loss, target: Tensor) -> Params:
    """m () of the two means: how much a share counts in the union."""
    number = torch.full((), float(len(target)), device=target.device)
    if criterion.weights is not None:
        return {"mean": criterion.weights(target).sum(), "examples": number}
    return {
        "mean": number if criterion.factor is None else torch.full_like(number, target.numel()),
        "examples": number,
    }


def union(
    found: dict[str, Statistic], combine: Mapping[str, str], counts: Params, ranks: Ranks
) -> dict[str, Params]:
    """The statistics {measure: {name: tensor}} of all processes, from those of this one.

    combine : {measure: "mean", "examples" or "rows"};  counts : of this process, `weights_of`.
    """
    place = _places(found, [name for name, way in combine.items() if way == "rows"], ranks)
    dtype = found["loss"]["loss"].dtype
    sent: Params = {way: m.to(dtype) for way, m in counts.items() if way in combine.values()}
    for measure, statistic in found.items():
        for name, value in statistic.items():
            key, way = f"{measure}/{name}", combine[measure]
            sent[key] = _among(value, *place[key]) if way == "rows" else value * counts[way].to(value.dtype)
    back = total(sent)
    out: dict[str, Params] = {}
    for measure, statistic in found.items():
        found_here = {name: back[f"{measure}/{name}"] for name in statistic}
        way = combine[measure]
        out[measure] = (
            found_here if way == "rows" else {k: t / back[way].to(t.dtype) for k, t in found_here.items()}
        )
    return out


def _places(found: dict[str, Statistic], rows: Sequence[str], ranks: Ranks) -> dict[str, tuple[int, int]]:
    """Where this process's rows begin, and how many there are in all."""
    names = [(m, n) for m in rows for n in found[m]]
    if not names:
        return {}
    some = found[names[0][0]][names[0][1]]
    lengths = torch.zeros(len(names), ranks.world, dtype=torch.int64, device=some.device)
    for k, (measure, name) in enumerate(names):
        lengths[k, ranks.rank] = len(found[measure][name])
    every = summed((lengths,))[0].tolist()
    return {f"{m}/{n}": (sum(every[k][: ranks.rank]), sum(every[k])) for k, (m, n) in enumerate(names)}


def _among(own: Tensor, first: int, count: int) -> Tensor:
    before = own.new_zeros(first, *own.shape[1:])
    after = own.new_zeros(count - first - len(own), *own.shape[1:])
    return torch.cat([before, own, after])
