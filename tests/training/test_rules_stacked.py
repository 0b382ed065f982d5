"""The SAM family through the stacked trainer: seeds against a hand-made loop, and interruptions."""

from __future__ import annotations

import pytest
import torch

from flattrain.core import trees
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import stream
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.rules.adaptive import asam
from flattrain.rules.ascended_loss import ascended_loss
from flattrain.rules.compose import compose
from flattrain.rules.decay import clip
from flattrain.rules.esam import esam
from flattrain.rules.friendly import friendly_sam
from flattrain.rules.functional_sam import functional_sam
from flattrain.rules.gradient_pair import gnp, gsam, stable_sam, wsam
from flattrain.rules.looksam import looksam
from flattrain.rules.multi_step import n_step_sam
from flattrain.rules.noise import antithetic_noise, weight_noise
from flattrain.rules.norm_only import sam_on
from flattrain.rules.schedule import schedule
from flattrain.training import loop
from flattrain.training.batches import indices, noise_of
from flattrain.training.checkpoint import load_state
from flattrain.training.objective import build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.types import Batch, Moment, Rule

LR, SIZE, STEPS = 0.1, 10, 8
RULES = {
    "asam": lambda o: asam(rho=0.5),
    "asam, layerwise": lambda o: asam(rho=0.2, scale="layerwise"),
    "sam_on": lambda o: sam_on(rho=0.5, ascent="elementwise", parameters=("norm1.weight", "norm1.bias")),
    "gsam": lambda o: gsam(rho=0.1, alpha=0.4),
    "wsam": lambda o: wsam(rho=0.1),
    "gnp": lambda o: gnp(rho=0.1),
    "stable_sam": lambda o: stable_sam(rho=0.1),
    "n_step_sam": lambda o: n_step_sam(rho=0.1, steps=3),
    "ascended_loss": lambda o: ascended_loss(rho=0.1),
    "looksam": lambda o: looksam(rho=0.1, every=3),
    "friendly_sam": lambda o: friendly_sam(rho=0.1, lam=0.6),
    "esam": lambda o: esam(rho=0.1, losses=o.losses),
    "functional_sam": lambda o: functional_sam(rho=0.1, outputs=o.outputs, criterion=cross_entropy),
    "weight_noise": lambda o: weight_noise(scale=0.1, copies=2),
    "antithetic_noise": lambda o: antithetic_noise(scale=0.1, pairs=2),
    "several": lambda o: compose(
        [clip(norm=3.0), schedule(start=2, before=0.5), looksam(rho=0.1, every=3), friendly_sam(rho=0.1)]
    ),
}


def put_together(numbers):
    model, dataset = mlp(widths=(8,), activation="tanh", normalisation="layer"), digits(train=60, test=20)
    splits = [dataset(s) for s in numbers]
    module = model.build(splits[0]).double()
    starts = [
        {k: v.double() for k, v in model.start(module, s, stream(n)).items()}
        for n, s in zip(numbers, splits, strict=True)
    ]
    x, y = [s.train_x.double() for s in splits], [s.train_y for s in splits]
    return build(module, cross_entropy, []), Seeds(numbers, x, y, starts, [{} for _ in numbers])


def trainer(name, numbers):
    objective, seeds = put_together(numbers)
    return stacked_trainer(objective, RULES[name](objective), sgd(lr=LR), SIZE, seeds)


@pytest.mark.parametrize("name", RULES)
def test_stacked_seeds_are_a_loop_over_seeds_without_vmap(name):
    numbers = [3, 5]
    stacked = trainer(name, numbers)
    state = stacked.init()
    while state.step < STEPS:
        state = stacked.advance(state, STEPS)
    objective, seeds = put_together(numbers)
    grad_fn = objective.gradient()
    for k, number in enumerate(numbers):
        rule = RULES[name](objective)
        whole = compose([rule]) if isinstance(rule, Rule) else rule
        params, memory = seeds.params[k], whole.init(seeds.params[k])
        plain = params
        first = Batch(seeds.x[k][:SIZE], seeds.y[k][:SIZE])
        noise_at = noise_of(whole.draws(params, first), number, torch.float64)
        for step, pick in enumerate(indices(number, 60, SIZE, 0, STEPS)):
            batch = Batch(seeds.x[k][pick], seeds.y[k][pick], noise_at(step), Moment(step))
            g, _, memory = whole(grad_fn)(params, batch, memory)
            params = trees.axpy(-LR, g, params)
            plain = trees.axpy(-LR, grad_fn(plain, batch)[0], plain)
        for key, wanted in params.items():
            torch.testing.assert_close(state.params[key][k], wanted, rtol=1e-9, atol=1e-11)
        for key, wanted in memory.items():
            torch.testing.assert_close(state.memory[key][k], wanted, rtol=1e-8, atol=1e-10)
        assert trees.norm(trees.axpy(-1.0, plain, params)) > 1e-5  # and the rule did something


@pytest.mark.parametrize("name", ["looksam", "friendly_sam", "esam", "several"])
def test_an_interrupted_run_ends_with_the_same_bits(name, tmp_path):
    def measure(state, before):
        saved = {**state.params, **state.memory}
        return [{"step": state.step, "value": [float(v.sum()) for v in saved.values()]}]

    class Killed(Exception):
        pass

    def kill(step):
        if step >= 200:
            raise Killed

    stops, file = [0, 50, 205, 301], tmp_path / "cell.safetensors"  # not multiples of LookSAM's 3
    whole = loop.run(trainer(name, [1, 2]), stops, measure)
    with pytest.raises(Killed):
        loop.run(trainer(name, [1, 2]), stops, measure, checkpoint=file, every_seconds=0.0, progress=kill)
    saved = load_state(file)[0]
    assert 0 < saved.step < 301 and saved.step % 3 != 0
    assert (name == "esam") == (not saved.memory)
    assert loop.run(trainer(name, [1, 2]), stops, measure, checkpoint=file) == whole
