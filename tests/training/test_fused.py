"""The fused kernel takes the same steps as the stacked trainer: to rounding, over 1,000 steps."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from flattrain.core.logistic import SMOOTHING
from flattrain.core.losses import smoothed_logistic, squared_error
from flattrain.core.probes import stream
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import two_layer
from flattrain.rules.noise import label_noise
from flattrain.rules.plain import plain
from flattrain.rules.sam import m_sam, sam
from flattrain.training.fused import Settings, fused_trainer
from flattrain.training.objective import build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import Seeds, stacked_trainer

NETS = {
    "no bias": {"bias": False},
    "bias": {"bias": True},
    "layer norm": {"normalisation": "layer", "first_layer_scale": 0.01},
    "layer norm, clamped": {"normalisation": "layer", "clamp": 0.5},
    "layer norm, held": {"normalisation": "layer", "first_layer_norm": 10.0},
    "bias, held": {"bias": True, "first_layer_norm": 3.0},
    "softplus": {"activation": "softplus"},
    "softplus, held": {"activation": "softplus", "first_layer_norm": 3.0},
}
RULES = {
    "sam": (lambda: sam(rho=0.05), {"rho": 0.05}),
    "m_sam": (lambda: m_sam(rho=0.05, m=1), {"rho": 0.05}),
    "plain": (plain, {}),
    "label noise": (lambda: label_noise(delta=0.3), {"delta": 0.3}),
}


def trainers(net, rule, dtype, lr=0.01, width=64, dim=30, loss=squared_error):
    model, dataset = two_layer(width=width, **NETS[net]), parity(dim=dim, train=100, test=10)
    numbers = [0, 7]
    splits = [dataset(s) for s in numbers]
    module = model.build(splits[0]).to(dtype)
    seeds = Seeds(
        numbers,
        [s.train_x.to(dtype) for s in splits],
        [s.train_y.to(dtype) for s in splits],
        [
            {k: v.to(dtype) for k, v in model.start(module, s, stream(n)).items()}
            for n, s in zip(numbers, splits, strict=True)
        ],
        [{}, {}],
    )
    make_rule, knobs = RULES[rule]
    slow = stacked_trainer(
        build(module, loss, []),
        make_rule(),
        sgd(lr=lr),
        1,
        seeds,
        lambda params: model.project(module, params),
    )
    smoothing = SMOOTHING if loss is smoothed_logistic else None
    return slow, fused_trainer(module, Settings(lr, **knobs, smoothing=smoothing), seeds)


def run(trainer, steps):
    state = trainer.init()
    while state.step < steps:
        state = trainer.advance(state, steps)
    return state.params


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", ["sam", "plain"])
def test_hundreds_of_steps_agree_to_double_rounding(net, rule):
    slow, fast = trainers(net, rule, torch.float64, lr=0.05 if "norm" in net else 0.01)
    a, b, start = run(slow, 300), run(fast, 300), slow.init().params
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=3e-12 * float(a[k].abs().max()))
        assert (a[k] - start[k]).abs().max() > 1e-3
    if "held" in net:
        size = (b["hidden.weight"].square().sum((1, 2)) + b["hidden.bias"].square().sum(1)).sqrt()
        torch.testing.assert_close(size, torch.full_like(size, NETS[net]["first_layer_norm"]))


@pytest.mark.parametrize(("net", "rule"), [("bias", "sam"), ("layer norm", "sam"), ("bias", "label noise")])
def test_hundreds_of_steps_agree_to_single_rounding(net, rule):
    slow, fast = trainers(net, rule, torch.float32)
    a, b = run(slow, 300), run(fast, 300)
    for k in a:
        # 300 steps of relative rounding 6e-8 each, added up at worst
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=1.8e-5 * float(a[k].abs().max()))


@pytest.mark.parametrize("net", ["bias", "layer norm", "softplus"])
@pytest.mark.parametrize("rule", ["sam", "plain"])
def test_the_smoothed_logistic_loss(net, rule):
    slow, fast = trainers(net, rule, torch.float64, lr=0.1, loss=smoothed_logistic)
    a, b, start = run(slow, 400), run(fast, 400), slow.init().params
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-11 * float(a[k].abs().max()))
        assert (a[k] - start[k]).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["label noise", "m_sam"])
def test_the_other_rules(rule):
    slow, fast = trainers("bias", rule, torch.float64)
    a, b = run(slow, 200), run(fast, 200)
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-12 * float(a[k].abs().max()))


def test_odd_numbers_of_inputs_and_units():
    slow, fast = trainers("no bias", "sam", torch.float64, width=13, dim=5)
    a, b = run(slow, 200), run(fast, 200)
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-10, atol=1e-12)


def test_where_it_stops_makes_no_difference():
    _, fast = trainers("bias", "sam", torch.float32)
    whole = run(fast, 300)
    state = fast.init()
    for stop in (1, 17, 123, 300):
        state = fast.advance(state, stop)
    for k in whole:
        assert torch.equal(whole[k], state.params[k])
