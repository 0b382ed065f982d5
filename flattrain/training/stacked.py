"""The general trainer: any module, penalty and rule, with all seeds stacked under vmap.

Each seed has its own data, batches and noise, all functions of (seed, step), so a seed's numbers do not
depend on which others it is stacked with. The optimizer is element-wise and runs on the stacked tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from flattrain.core import trees
from flattrain.rules.compose import compose
from flattrain.training.batches import indices, next_stop, noise_of
from flattrain.training.objective import Objective
from flattrain.training.optimizers import Build
from flattrain.training.trainer import State, Trainer
from flattrain.types import Batch, Draw, Memory, Moment, Params, Rule, StatefulRule

STEPS_AT_ONCE = 200  # between two looks at the clock


class Seeds(NamedTuple):
    """What differs between the stacked seeds."""

    numbers: Sequence[int]
    x: Sequence[Tensor]  # training inputs of each seed
    y: Sequence[Tensor]
    params: Sequence[Params]  # starting points
    buffers: Sequence[Params]


def stacked_trainer(
    objective: Objective,
    rule: Rule | StatefulRule,
    build_optimizer: Build,
    batch_size: int,
    seeds: Seeds,
    project: Callable[[Params], Params] = lambda params: params,
) -> Trainer:
    """Train all seeds together, step by step; `project` maps a seed's parameters after each of them."""
    optimizer = build_optimizer()
    start = trees.stack(list(seeds.params))
    x, y = torch.stack(list(seeds.x)), torch.stack(list(seeds.y))
    buffers = trees.stack(list(seeds.buffers))
    examples = x.shape[1]
    rows = torch.arange(len(seeds.numbers))[:, None]

    whole = compose([rule]) if isinstance(rule, Rule) else rule

    def gradient(params: Params, extra: Params, batch: Batch, memory: Memory) -> tuple[Params, Memory]:
        grads, _, memory = whole(objective.gradient(extra))(params, batch, memory)
        return grads, memory

    def settle(before: Params, after: Params, memory: Memory) -> Params:
        return project(whole.moved(before, after, memory))

    over_seeds, settled = vmap(gradient), vmap(settle)
    wanted = _wanted(objective, whole, seeds, batch_size)
    noises = [noise_of(wanted, seed, x.dtype) for seed in seeds.numbers]

    def advance(state: State, target: int) -> State:
        stop = min(next_stop(state.step, target), state.step + STEPS_AT_ONCE)
        picks = torch.stack([indices(s, examples, batch_size, state.step, stop) for s in seeds.numbers], 1)
        params, memory = state.params, state.memory
        inner = optimizer.unpack(state.optimizer, params)
        for k, pick in enumerate(picks):
            noise = trees.stack([noise_at(state.step + k) for noise_at in noises])
            batch = Batch(x[rows, pick], y[rows, pick], noise, Moment(state.step + k))
            grads, memory = over_seeds(params, buffers, batch, memory)
            after, inner = optimizer.update(grads, inner, params)
            params = settled(params, after, memory)
        return State(stop, params, optimizer.pack(inner), memory)

    def init() -> State:
        memories = trees.stack([whole.init(params) for params in seeds.params])
        return State(0, start, optimizer.pack(optimizer.init(start)), memories)

    return Trainer(init, advance, f"stacked over {len(seeds.numbers)} seeds under vmap")


def _wanted(objective: Objective, rule: StatefulRule, seeds: Seeds, batch_size: int) -> dict[str, Draw]:
    """Names and shapes of one step's noise, from one dry pass of the first seed."""
    batch = Batch(seeds.x[0][:batch_size], seeds.y[0][:batch_size])
    live = {k: p.detach().requires_grad_() for k, p in seeds.params[0].items()}
    seen = objective.see(batch.x, batch.y, live, seeds.buffers[0])
    return {**rule.draws(live, batch), **objective.draws(seen)}
