"""What stacking and compiling save where many seeds are trained: `training.stacked` beside torch.optim.

    python -m benchmarks.seeds [--write]

Two-layer ReLU nets on sparse parity, d = 30, 100 examples, full batches, float32, one thread. The sequential
loop trains one seed after the other with torch.optim.SGD; for SAM it ascends and comes back by hand. Both
start at the same weights and end at the same (a column says how far apart). Methods take turns in random
order, on processor time; compiling is not in the ratio but beside it. The batch-1 kernel (`training.fused`)
stands beside a loop with `flattrain.optim.SAM`, per step and seed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks import kernel
from benchmarks.timing import interleave
from flattrain.core import trees
from flattrain.core.losses import squared_error
from flattrain.core.probes import stream
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import two_layer
from flattrain.rules.plain import plain
from flattrain.rules.sam import sam
from flattrain.training.objective import build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.training.trainer import Trainer
from flattrain.types import Params

SEEDS, STEPS, REPEATS, LR, RHO = 32, 100, 7, 0.01, 0.05
AIMS = {10: 15.0, 50: 10.0, 200: 3.0, 500: 1.9}
HEAD = f"""# Many seeds at once

Written by `python -m benchmarks.seeds --write`: {SEEDS} seeds of a two-layer ReLU net on sparse parity
(d = 30, full batches of 100, float32), {STEPS} steps, one thread, torch {torch.__version__}. A ratio is how
many times less processor time all seeds take together than one after the other with `torch.optim.SGD`: the
median over {REPEATS} rounds in random order, with quartiles. Milliseconds are of one step of all seeds.
*Apart* is the distance of the final weights, ‖Δ‖/‖θ‖. Compiling is not in the ratio: it takes the seconds
given the first time, about one when the same step is found in Inductor's cache.

| rule | width | compiled | aim | eager | sequential ms | compiled ms | apart | compiling s | backend |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""
FUSED = """

## Batch 1: the fused kernel

One step of SAM of one seed at width 500, with bias: {loop:.0f} µs with `torch.optim`, {fused:.2f} µs
fused, **{ratio:.0f}** times less (aim: 20).
"""
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-seeds.md"


def problem(width: int) -> tuple[nn.Module, Seeds]:
    model, dataset = two_layer(width=width), parity(dim=30, train=100, test=1)
    splits = [dataset(seed) for seed in range(SEEDS)]
    module = model.build(splits[0])
    starts = [model.start(module, split, stream(seed)) for seed, split in enumerate(splits)]
    return module, Seeds(
        range(SEEDS), [s.train_x for s in splits], [s.train_y for s in splits], starts, [{}] * SEEDS
    )


def sequential(module: nn.Module, seeds: Seeds, rho: float) -> Params:
    """One seed after the other, as one writes it with torch.optim."""
    ended = []
    for x, y, start in zip(seeds.x, seeds.y, seeds.params, strict=True):
        module.load_state_dict(start)
        params = list(module.parameters())
        optimizer = torch.optim.SGD(params, lr=LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            squared_error.mean(module(x), y).backward()
            if rho:
                ascend_and_return(module, params, x, y, rho)
            optimizer.step()
        ended.append({k: p.detach().clone() for k, p in module.named_parameters()})
    return trees.stack(ended)


def ascend_and_return(
    module: nn.Module, params: list[nn.Parameter], x: torch.Tensor, y: torch.Tensor, rho: float
) -> None:
    """Leaves SAM's gradient in .grad."""
    with torch.no_grad():
        grads = [p.grad for p in params if p.grad is not None]
        before = [p.clone() for p in params]
        scale = rho / torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
        torch._foreach_add_(params, torch._foreach_mul(grads, scale))
    for p in params:
        p.grad = None
    squared_error.mean(module(x), y).backward()
    with torch.no_grad():
        torch._foreach_copy_(params, before)


def stacked(module: nn.Module, seeds: Seeds, rho: float, eager: str | None) -> Trainer:
    rule = sam(rho=rho) if rho else plain()
    return stacked_trainer(build(module, squared_error, []), rule, sgd(lr=LR), 100, seeds, eager=eager)


def trained(trainer: Trainer) -> Params:
    return trainer.advance(trainer.init(), STEPS).params


def row(width: int, rho: float) -> str:
    module, seeds = problem(width)
    began = time.perf_counter()
    fast = stacked(module, seeds, rho, None)
    seconds = time.perf_counter() - began
    slow = stacked(module, seeds, rho, "to compare")
    works = {"compiled": lambda: trained(fast), "eager": lambda: trained(slow)}
    found = interleave(lambda: sequential(module, seeds, rho), works, REPEATS)
    there, here = sequential(module, seeds, rho), trained(fast)
    apart = max(float((here[k] - there[k]).norm() / there[k].norm()) for k in there)
    ours, theirs = found["compiled"], found["eager"]
    per_step = found["plain"].milliseconds / STEPS
    return (
        f"| {'SAM' if rho else 'SGD'} | {width} | **{1 / ours.median:.1f}** [{1 / ours.high:.1f}, "
        f"{1 / ours.low:.1f}] | {AIMS[width]:g} | {1 / theirs.median:.1f} | {per_step:.1f} | "
        f"{ours.milliseconds / STEPS:.2f} | {apart:.0e} | {seconds:.0f} | {fast.backend} |"
    )


def page(rows: list[str], loop_us: float, fused_us: float) -> str:
    return HEAD + "\n".join(rows) + FUSED.format(loop=loop_us, fused=fused_us, ratio=loop_us / fused_us)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for rho in (0.0, RHO):
        for width in AIMS:
            rows.append(row(width, rho))
            print(rows[-1], flush=True)
    loop_us, fused_us = kernel.eager(), kernel.fused("bias", RHO)
    print(f"batch-1 SAM: {loop_us:.0f} µs with torch.optim, {fused_us:.2f} µs fused")
    if "--write" in sys.argv:
        PAGE.write_text(page(rows, loop_us, fused_us), encoding="utf-8")


if __name__ == "__main__":
    main()
