"""The general trainer: any module, penalty and rule, with all seeds stacked under vmap.

Each seed has its own data, batches and noise, all functions of (seed, step), so a seed's numbers do not
depend on which others it is stacked with. The gradient is that of one seed under vmap; the optimizer is
element-wise and runs on the stacked tree. Many steps are worth compiling (`training.compiled`). What cannot
be compiled runs eagerly, what cannot be stacked one seed after the other, and `backend` says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from flattrain.core import trees
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.training import averaging, compiled
from flattrain.training.averaging import Average
from flattrain.training.batches import indices, next_stop, noise_of
from flattrain.training.compiled import NotCompiled, Step, Steps, Timeless
from flattrain.training.objective import Objective
from flattrain.training.optimizers import Build
from flattrain.training.ranks import ALONE, Ranks
from flattrain.training.step_sizes import StepSize, along, guard_line, unmoved
from flattrain.training.trainer import State, Trainer
from flattrain.types import Batch, Draw, Memory, Moment, Params, Rule, StatefulRule

STEPS_AT_ONCE = 200  # between two looks at the clock

OverSeeds = Callable[
    [Callable[..., Any]], Callable[..., Any]
]  # a function of one seed as one of stacked trees


class Seeds(NamedTuple):
    """What differs between the stacked seeds."""

    numbers: Sequence[int]
    x: Sequence[Tensor]  # training inputs of each seed
    y: Sequence[Tensor]
    params: Sequence[Params]  # starting points
    buffers: Sequence[Params]


class Now(NamedTuple):
    """What a step changes; stacked over seeds outside of it."""

    params: Params
    optimizer: list[Tensor]
    memory: Memory


class Data(NamedTuple):
    """What it does not change."""

    x: Tensor
    y: Tensor
    buffers: Params


class Chance(NamedTuple):
    """What is new at every step: its examples, none where it sees them all, and its noise."""

    pick: tuple[Tensor, ...]
    noise: dict[str, Tensor]
    share: tuple[Tensor, ...]  # that the average gives to the new weights
    moment: Moment
    clock: tuple[Tensor, ...]  # the step's number for each seed, for steps that are to be compiled


def stacked_trainer(
    objective: Objective,
    rule: Rule | StatefulRule,
    build_optimizer: Build,
    batch_size: int,
    seeds: Seeds,
    project: Callable[[Params], Params] = lambda params: params,
    eager: str | None = "not asked to compile",
    step_size: StepSize | None = None,
    average: Average | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Train all seeds together, step by step; `project` maps a seed's parameters after each of them.

    eager     : why the steps are not to be compiled; None compiles them where that can be done.
    step_size : what the optimizer's update is multiplied by; None: by 1.
    average   : of the weights, kept beside them; see `training.averaging`.
    ranks     : the processes that share each batch; the objective is built for the same ones.
    """
    _need_fixed_buffers(objective)
    ranks.need(batch_size)
    eager = f"a step of {ranks.world} processes" if ranks.several else eager
    if step_size is not None:
        guard_line(objective, step_size)
    whole = compose([rule]) if isinstance(rule, Rule) else rule
    optimizer = build_optimizer()

    def gradient(params: Params, memory: Memory, batch: Batch, buffers: Params) -> tuple[Params, Memory]:
        grads, _, after = whole(objective.gradient(buffers))(params, batch, memory)
        return grads, memory | after

    def step_by(over_seeds: OverSeeds) -> Step:
        def step(now: Now, data: Data, chance: Chance) -> Now:
            batch = _batch(data, chance)
            grads, memory = over_seeds(gradient)(now.params, now.memory, batch, data.buffers)
            inner = optimizer.unpack(now.optimizer, now.params)
            after, inner = optimizer.update(grads, inner, now.params)
            params = over_seeds(whole.moved)(now.params, after, memory)
            if step_size is not None:
                scaled = over_seeds(partial(along, objective, step_size))
                params, memory = scaled(now.params, params, memory, batch, data.buffers)
            params = over_seeds(project)(params)
            if average is not None:
                memory = averaging.move(memory, params, chance.share[0])
            return Now(params, optimizer.pack(inner), memory)

        return step

    stacked = trees.stack(list(seeds.params))
    memory = trees.stack([whole.init(params) for params in seeds.params])
    if step_size is not None:
        memory |= unmoved(step_size, stacked)
    if average is not None:
        memory |= averaging.begin(stacked)
    start = Now(stacked, optimizer.pack(optimizer.init(stacked)), memory)
    start = pytree.tree_map(ranks.same, start)  # whatever the machines' roundings
    data = Data(torch.stack(list(seeds.x)), torch.stack(list(seeds.y)), trees.stack(list(seeds.buffers)))
    count, examples = data.x.shape[:2]
    first = next(iter(stacked.values()))
    mine = ranks.share(batch_size)
    if batch_size == examples:
        data = data._replace(x=data.x[:, mine], y=data.y[:, mine])
    wanted = _wanted(objective, whole, seeds, batch_size, ranks)
    rowed = {name for name, want in wanted.items() if want.per_example}
    noises = [noise_of(wanted, seed, data.x.dtype, data.x.device) for seed in seeds.numbers]

    def chances(group: list[int], begin: int, stop: int) -> Iterator[Chance]:
        picks = [indices(seeds.numbers[k], examples, batch_size, begin, stop) for k in group]
        for number, pick in enumerate(torch.stack(picks, 1).to(data.x.device), start=begin):
            noise = trees.stack([noises[k](number) for k in group])
            noise = {name: t[:, mine] if name in rowed else t for name, t in noise.items()}
            share = (
                ()
                if average is None
                else (torch.full((), average(number + 1), dtype=data.x.dtype, device=data.x.device),)
            )
            clock = () if eager is not None else (first.new_full((len(group),), number),)
            rows = (pick[:, mine],) if batch_size < examples else ()
            yield Chance(rows, noise, share, Moment(number), clock)

    chance = next(chances(list(range(count)), 0, 1))
    steps, groups, backend = _path(step_by, start, data, chance, eager)
    parts = [data] if len(groups) == 1 else [_take(data, group) for group in groups]

    def advance(state: State, target: int) -> State:
        stop = min(next_stop(state.step, target), state.step + STEPS_AT_ONCE)
        now = _beside(start, Now(state.params, state.optimizer, state.memory))
        done = [
            steps(now if len(groups) == 1 else _take(now, group), part, chances(group, state.step, stop))
            for group, part in zip(groups, parts, strict=True)
        ]
        return State(stop, *(done[0] if len(done) == 1 else _join(done, count)))

    backend += f", each batch shared by {ranks.world} processes" if ranks.several else ""
    return Trainer(lambda: State(0, *start), advance, backend + (", weights averaged" if average else ""))


def _path(
    step_by: Callable[[OverSeeds], Step], start: Now, data: Data, chance: Chance, eager: str | None
) -> tuple[Steps, list[list[int]], str]:
    """How the steps are taken, in which groups of seeds, and that in words."""
    count, step = len(data.x), step_by(vmap)
    together = [list(range(count))]
    try:
        step(start, data, chance)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        if "random" in why:
            raise Refused(
                f"a net that draws random numbers of its own takes other steps when it is resumed ({why})"
            ) from None
        return compiled.eager(step_by(_in_turn)), together, f"{count} seeds one after the other, eager: {why}"
    said = f"stacked over {count} seeds under vmap"
    if eager is not None:
        return compiled.eager(step), together, f"{said}, eager: {eager}"
    inputs = _batch(data, chance).x[0].numel()
    groups = compiled.groups_of(count, max(inputs, sum(v[0].numel() for v in start.params.values())))
    some = (_take(tree, groups[0]) for tree in (start, data, chance._replace(moment=Timeless())))
    try:
        steps = compiled.compiled(step, *some)
    except NotCompiled as error:
        return compiled.eager(step), together, f"{said}, eager: {error}"
    return steps, groups, f"{said}, compiled" + (f", {len(groups[0])} at a time" if len(groups) > 1 else "")


def _batch(data: Data, chance: Chance) -> Batch:
    """The examples that chance picks, stacked over seeds."""
    x, y = data.x, data.y
    if chance.pick:
        rows = torch.arange(len(x), device=x.device)[:, None]
        x, y = x[rows, chance.pick[0]], y[rows, chance.pick[0]]
    return Batch(x, y, chance.noise, chance.moment, chance.clock)


def _in_turn(one: Callable[..., Any]) -> Callable[..., Any]:
    """What vmap does, seed by seed."""

    def over_seeds(*stacked: Any) -> Any:
        seeds = range(len(pytree.tree_leaves(stacked)[0]))
        each = [one(*_take(stacked, k)) for k in seeds]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *each)

    return over_seeds


def _beside(start: Now, now: Now) -> Now:
    """The state on the devices of the start: a checkpoint is read to the CPU."""
    moved: Now = pytree.tree_map(lambda like, leaf: leaf.to(like.device), start, now)
    return moved


def _take(tree: Any, seeds: int | list[int]) -> Any:
    """Some of the seeds; a scalar, as the optimizer's count of steps, is that of all."""
    return pytree.tree_map(lambda leaf: leaf[seeds] if leaf.ndim else leaf, tree)


def _join(parts: list[Now], count: int) -> Now:
    joined: Now = pytree.tree_map(lambda a, *rest: torch.cat([a, *rest])[:count] if a.ndim else a, *parts)
    return joined


def _need_fixed_buffers(objective: Objective) -> None:
    for name, part in objective.module.named_modules():
        if part.training and getattr(part, "running_mean", None) is not None:
            raise Refused(
                f"layer {name!r} ({type(part).__name__}) keeps running statistics, which the stacked trainer "
                "does not; set track_running_stats=False, or put the layer in evaluation mode"
            )


def _wanted(
    objective: Objective, rule: StatefulRule, seeds: Seeds, batch_size: int, ranks: Ranks
) -> dict[str, Draw]:
    """Names and shapes of one step's noise over the whole batch, from one dry pass of the first seed on

    a share of it. All processes draw all of it, and take the rows of their examples.
    """
    count = len(range(batch_size)[ranks.share(batch_size)])
    batch = Batch(seeds.x[0][:count], seeds.y[0][:count])
    live = {k: p.detach().requires_grad_() for k, p in seeds.params[0].items()}
    seen = objective.see(batch.x, batch.y, live, seeds.buffers[0])
    wanted = {**rule.draws(live, batch), **objective.draws(seen)}
    if not ranks.several:
        return wanted
    return {
        name: want._replace(shape=(batch_size, *want.shape[1:])) if want.per_example else want
        for name, want in wanted.items()
    }
