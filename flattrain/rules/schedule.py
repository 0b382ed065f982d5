"""A schedule of ρ: what share of their radius the rules inside it use at each step.

    [schedule, sam]        ρ_t = ρ · s(t)

    constant   1
    linear     from 1 at `start` to `last` at `stop`
    cosine     the same ends, along half a cosine

Before `start` the share is `before`, after `stop` it is that of `stop`. Late-phase SAM (Zhou et al. 2025) is
`{schedule: {start: 9000, before: 0}}`, SAM that is switched off `{schedule: {shape: linear, start: 9000,
stop: 9001, last: 0}}`. A share of 0 costs one gradient, not two.
"""

from __future__ import annotations

import math
from typing import Literal

from flattrain.ranges import NonNegative, Refused, Steps, checked
from flattrain.types import Batch, GradFn, Logs, Moment, Params, Rule


@checked
def schedule(
    *,
    shape: Literal["constant", "linear", "cosine"] = "constant",
    start: Steps = 0,
    stop: Steps | None = None,
    before: NonNegative = 1.0,
    last: NonNegative = 0.0,
) -> Rule:
    """Scale the radius of the rules inside by a function of the step."""
    if shape != "constant" and (stop is None or stop <= start):
        raise Refused(f"schedule: shape {shape!r} needs stop > start = {start}, got {stop}")

    def share(step: int) -> float:
        if step < start:
            return before
        if shape == "constant" or stop is None:
            return 1.0
        if step >= stop:
            return last
        done = (step - start) / (stop - start)
        if shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return 1 + (last - 1) * done

    def wrap(grad_fn: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Logs]:
            now = batch.moment
            return grad_fn(params, batch._replace(moment=Moment(now.step, now.strength * share(now.step))))

        return gradient

    return Rule(wrap)
