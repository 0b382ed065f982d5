"""How many gradients a rule takes: its calls of the innermost gradient function, counted in a dry run.

    plain 1,  SAM 2,  n-step SAM n + 1,  LookSAM 1 + 1/k,  ESAM 1 + γ,  rules inside rules as they compose

One evaluation is one gradient of the objective, penalties included, over one batch; a call that sees a part
of the batch counts as that part. What is not a call of the gradient function is not counted: ESAM's two
passes forward, functional SAM's pull-back, the trials of a line search, measuring.

The dry run is on meta tensors, which have shapes and no numbers. That is exact, because a rule runs under
vmap and so cannot branch on numbers, only on the moment. The moment's step is a `Clock` there, which notes
every look at it: steps that look alike cost alike, and one of each kind is run. Where a rule takes the number
of the step into arithmetic (the ramp of a schedule), every step of that stretch is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flattrain.ranges import Refused
from flattrain.types import Batch, Logs, Moment, Params, StatefulRule


class Looked(NamedTuple):
    """What one dry step showed: examples seen by gradients, and how the rule looked at the clock."""

    examples: int
    edges: frozenset[int]  # steps at which a comparison with a constant changes
    periods: frozenset[int]
    opaque: bool  # the number itself was used: nothing is known of other steps


class Clock:
    """The number of a step, for comparisons with constants and remainders alone; all else is a TypeError."""

    def __init__(self, step: int) -> None:
        self._step, self.edges, self.periods = step, set[int](), set[int]()

    def __mod__(self, period: int) -> int:
        self.periods.add(period)
        return self._step % period

    def __lt__(self, bound: float) -> bool:
        self.edges.add(math.ceil(bound))
        return self._step < bound

    def __ge__(self, bound: float) -> bool:
        return not self < bound

    def __le__(self, bound: float) -> bool:
        self.edges.add(math.floor(bound) + 1)
        return self._step <= bound

    def __gt__(self, bound: float) -> bool:
        return not self <= bound

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int | float):
            return NotImplemented
        return self <= other and self >= other

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self > 0


class Cost:
    """The gradient evaluations of a rule, by steps."""

    def __init__(self, rule: StatefulRule, params: Params, x: Tensor, y: Tensor) -> None:
        """x (n, …), y (n, …): a batch, of which only shapes and kinds matter; so of `params`, one seed's."""
        self._batch_size = len(y)
        self._run = _dry(rule, _hollow(params), _shape(x), _shape(y))
        self._known: dict[int, Looked] = {}
        self._horizon = 0
        self._edges, self._period = [0], 1  # of the steps before the horizon

    def until(self, steps: int) -> float:
        """Gradient evaluations of the first `steps` steps, in batches."""
        return self._examples(steps) / self._batch_size

    def steps_within(self, budget: float) -> int:
        """The most steps that take at most `budget` gradient evaluations."""
        if not self._examples(1):
            raise Refused("a rule that takes no gradients has no number of steps within a budget of them")
        most = 1
        while self.until(most) <= budget:
            most *= 2
        low = most // 2  # until(low) <= budget < until(most), or low = 0
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (middle, most) if self.until(middle) <= budget else (low, middle)
        return low

    def _examples(self, steps: int) -> int:
        if steps > self._horizon:
            self._horizon, (self._edges, self._period) = steps, self._classes(steps)
        ends = [edge for edge in self._edges if edge < steps]
        total = 0
        for begin, end in pairwise([*ends, steps]):
            one = range(begin, min(end, begin + self._period))
            if any(self._look(step).opaque for step in one):
                total += sum(self._look(step).examples for step in range(begin, end))
                continue
            costs = [self._look(step).examples for step in one]
            whole, rest = divmod(end - begin, self._period)
            total += whole * sum(costs) + sum(costs[:rest])
        return total

    def _classes(self, horizon: int) -> tuple[list[int], int]:
        """Edges and period of the looks before the horizon: a step of each kind is run until none is new."""
        edges, periods = {0}, {1}
        while True:
            before = len(edges), len(periods)
            period = math.lcm(*periods)
            for begin, end in pairwise([*sorted(edges), horizon]):
                for step in range(begin, min(end, begin + period)):
                    looked = self._look(step)
                    edges |= {edge for edge in looked.edges if 0 < edge < horizon}
                    periods |= looked.periods
            if before == (len(edges), len(periods)):
                return sorted(edges), period

    def _look(self, step: int) -> Looked:
        if step not in self._known:
            self._known[step] = self._run(step)
        return self._known[step]


class _Tally:
    """Examples seen; not a list, which vmap would take apart and copy."""

    def __init__(self) -> None:
        self.examples = 0


class _Seen(torch.autograd.Function):
    """Adds the examples of a call to a tally, once per lane of every vmap that it is called in."""

    @staticmethod
    def forward(tally: _Tally, lanes: int, y: Tensor, *params: Tensor) -> Tensor:
        tally.examples += lanes * len(y)
        return y.new_empty(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, tally: _Tally, lanes: int, *tensors: Tensor) -> tuple[Tensor, None]:
        one = [t if d is None else t.select(d, 0) for t, d in zip(tensors, in_dims[2:], strict=True)]
        return _Seen.apply(tally, lanes * info.batch_size, *one), None


def _dry(rule: StatefulRule, params: Params, x: Tensor, y: Tensor) -> Callable[[int], Looked]:
    """step -> what a dry step of that number shows."""
    tally = _Tally()

    def gradient(at: Params, batch: Batch) -> tuple[Params, Logs]:
        _Seen.apply(tally, 1, batch.y, *at.values())
        return {k: torch.empty_like(v) for k, v in at.items()}, {"loss": at[next(iter(at))].new_empty(())}

    batch = Batch(x, y)
    kind = next(iter(params.values())).dtype
    wanted = rule.draws(params, batch)
    noise = {k: torch.empty(want.shape, dtype=kind, device="meta") for k, want in wanted.items()}
    whole, memory = rule(gradient), _hollow(rule.init(params))

    def examples(step: int | Clock) -> int:
        tally.examples = 0
        whole(params, Batch(x, y, noise, Moment(cast(int, step))), memory)
        return tally.examples

    def run(step: int) -> Looked:
        clock = Clock(step)
        try:
            seen, opaque = examples(clock), False
        except TypeError:
            seen, opaque = examples(step), True
        return Looked(seen, frozenset(clock.edges), frozenset(clock.periods), opaque)

    return run


def _shape(t: Tensor) -> Tensor:
    return torch.empty_like(t, device="meta")


def _hollow(tree: Params) -> Params:
    return {k: _shape(v) for k, v in tree.items()}
