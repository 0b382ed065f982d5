"""Small trainers, and how to run and compare them."""

from __future__ import annotations

import shutil

import pytest
import torch

from flattrain.core.losses import cross_entropy
from flattrain.core.probes import stream
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.training.checkpoint import load_state, save_state
from flattrain.training.objective import build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import Seeds, stacked_trainer

compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


def trainer(
    rule,
    make=lambda: sgd(lr=0.1),
    batch_size=10,
    numbers=(1, 2, 3),
    eager="to compare",
    step_size=None,
    average=None,
):
    """A small net on digits."""
    model, dataset = mlp(widths=(8,)), digits(train=60, test=20)
    splits = [dataset(s) for s in numbers]
    module = model.build(splits[0]).double()
    seeds = Seeds(
        numbers,
        [s.train_x.double() for s in splits],
        [s.train_y for s in splits],
        [
            {k: v.double() for k, v in model.start(module, s, stream(n)).items()}
            for n, s in zip(numbers, splits, strict=True)
        ],
        [{} for _ in numbers],
    )
    objective = build(module, cross_entropy, [])
    extra = {"eager": eager, "step_size": step_size, "average": average}
    return stacked_trainer(objective, rule, make(), batch_size, seeds, **extra)


def train(trainer, *stops):
    state = trainer.init()
    for stop in stops:
        while state.step < stop:
            state = trainer.advance(state, stop)
    return state


def close(a, b):
    for k in a.params:
        torch.testing.assert_close(a.params[k], b.params[k], rtol=1e-9, atol=1e-12)


def same(a, b):
    everything = [*zip(a.params.values(), b.params.values(), strict=True)]
    everything += [*zip(a.optimizer, b.optimizer, strict=True)]
    everything += [(value, b.memory[k]) for k, value in a.memory.items()]
    assert all(torch.equal(x, y) for x, y in everything)


def interrupted(fresh, folder, first, last):
    """The state at `last` of a run that was saved and made anew at `first`."""
    file = folder / "cell.safetensors"
    save_state(file, train(fresh(), first), [])
    state, _ = load_state(file)
    again = fresh()
    while state.step < last:
        state = again.advance(state, last)
    return state


def seeds_of(module):
    """Two seeds for a module of four inputs and one output, from opposite starts."""
    starts = [{k: p.detach() * factor for k, p in module.named_parameters()} for factor in (1.0, -1.0)]
    x = torch.randn(6, 4, generator=stream(0))
    return Seeds([0, 1], [x, x], [x.sum(1)] * 2, starts, [{}, {}])
