"""Step sizes in closed form on quadratics, stacked against alone, and against interruptions."""

from __future__ import annotations

import math

import pytest
import torch
from small import compiler, interrupted, same, seeds_of, train, trainer
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from flattrain.core import trees
from flattrain.core.losses import mean_squared_error, squared_error
from flattrain.core.probes import stream
from flattrain.measures.gradient_norm import gradient_norm
from flattrain.measures.loss import loss
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.ranges import Refused
from flattrain.rules.plain import plain
from flattrain.training.evaluate import evaluate
from flattrain.training.objective import Penalty, build
from flattrain.training.optimizers import adam, sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.training.step_sizes import armijo, cdat, polyak, schedule, warm_up
from flattrain.types import Network


def start(made):
    return {k: torch.tensor(v) for k, v in made.init.items()}


def quadratic(a=3.0, b=2.0, c=5.0):
    """c − b η + a η² / 2: n = b, d = a."""
    return lambda eta: c - b * eta + a * eta**2 / 2


def size(made, line):
    return float(made.choose(line, start(made))["size"])


def test_cdat_with_sigma_2_is_twice_the_greedy_step():
    greedy = 2.0 / 3.0
    assert size(cdat(sigma=1.0), quadratic()) == pytest.approx(greedy, rel=1e-14)
    assert size(cdat(sigma=2.0), quadratic()) == pytest.approx(2 * greedy, rel=1e-14)
    assert size(cdat(sigma=2.0, smoothing=0.9), quadratic()) == pytest.approx(2 * greedy, rel=1e-14)
    assert size(cdat(epsilon=1.0), quadratic()) == pytest.approx(2 * 2.0 / 4.0, rel=1e-14)
    assert size(cdat(sigma=2.0), quadratic(a=-3.0)) == pytest.approx(2 * greedy, rel=1e-14)
    assert size(cdat(), quadratic(b=-2.0)) == 0 and size(cdat(), quadratic(a=0.0)) == 0


def test_cdat_smooths_numerator_and_denominator():
    made = cdat(sigma=1.0, smoothing=0.75)
    memory = made.choose(quadratic(a=1.0, b=1.0), start(made))
    memory = made.choose(quadratic(a=2.0, b=6.0), memory)
    weights = 0.75 * 0.25, 0.25
    want = (weights[0] * 1 + weights[1] * 6) / (weights[0] * 1 + weights[1] * 2)
    assert float(memory["size"]) == pytest.approx(want, rel=1e-14)


def test_armijo_takes_the_largest_step_that_satisfies_its_inequality():
    line, made = quadratic(a=30.0), armijo(slope=0.1, growth=2.0)
    eta = size(made, line)

    def enough(eta):
        return line(eta) <= line(0.0) - 0.1 * eta * 2.0

    assert enough(eta) and not enough(2 * eta) and eta == 0.0625
    # The reset: the next search begins at growth times the step taken, at most at `largest`.
    memory = made.choose(line, start(made))
    assert float(made.choose(quadratic(a=0.1), memory)["size"]) == 0.125
    assert size(armijo(largest=0.5), quadratic(a=0.1)) == 0.5
    assert size(made, quadratic(b=-2.0)) == 0
    stuck = armijo(halvings=2).choose(quadratic(a=1e6), start(armijo()))
    assert float(stuck["size"]) == 0 and float(stuck["last"]) == 0.25


def test_polyaks_step_reaches_a_straight_lines_bottom():
    assert size(polyak(lower=1.0, largest=9.0), lambda eta: 5.0 - 2.0 * eta) == pytest.approx(2.0)
    assert size(polyak(lower=1.0, c=0.5, largest=9.0), quadratic()) == pytest.approx(4.0)
    assert size(polyak(), quadratic()) == 1.0
    assert size(polyak(lower=6.0), quadratic()) == 0 and size(polyak(), quadratic(b=-1.0)) == 0


@pytest.mark.parametrize("made", [cdat(smoothing=0.5), armijo(), polyak(lower=0.1)])
def test_stacked_lines_are_one_after_the_other(made):
    curvature = torch.tensor([0.5, 4.0, 40.0])

    def one(a, memory):
        return made.choose(lambda eta: quadratic(a=a)(eta), memory)

    many = {k: v.expand(3) for k, v in start(made).items()}
    together = vmap(one)(curvature, many)
    for k, a in enumerate(curvature):
        for name, value in one(a, start(made)).items():
            torch.testing.assert_close(together[name][k], value)


@pytest.mark.parametrize(
    ("made", "make"),
    [
        (cdat(sigma=1.5, smoothing=0.9), adam),
        (armijo(largest=100.0, growth=1.3), lambda: sgd(lr=1.0)),
        (polyak(largest=100.0), sgd),
    ],
)
def test_seeds_have_their_own_sizes_and_resume_with_the_same_bits(made, make, tmp_path):
    def fresh(numbers=(1, 2, 3)):
        return trainer(plain(), make, step_size=made, numbers=numbers)

    whole = train(fresh(), 30)
    sizes = whole.memory["step size:size"]
    assert sizes.shape == (3,) and len(set(sizes.tolist())) > 1 and (sizes > 0).all()
    alone = train(fresh((2,)), 30)
    for k, value in alone.params.items():
        torch.testing.assert_close(value[0], whole.params[k][1], rtol=1e-8, atol=1e-11)
    same(whole, interrupted(fresh, tmp_path, 13, 30))


@compiler
def test_warm_up_reaches_the_learning_rate_on_a_straight_line():
    made, memory = warm_up(steps=4), {"size": torch.zeros(())}
    seen = []
    for _ in range(6):
        memory = made.choose(lambda eta: -eta, memory)
        seen.append(float(memory["size"]))
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_they_compile():
    both = [trainer(plain(), sgd, step_size=cdat(sigma=1.0), eager=e) for e in ("to compare", None)]
    assert "compiled" in both[1].backend
    slow, fast = (train(made, 20) for made in both)
    for k, value in slow.memory.items():
        torch.testing.assert_close(fast.memory[k], value, rtol=1e-8, atol=1e-12)


def test_second_derivatives_of_a_penalty_through_a_norm_are_refused():
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 1))
    objective = build(module, squared_error, [Penalty(gradient_norm(), 0.1)])
    with pytest.raises(Refused, match="layer '0'"):
        stacked_trainer(objective, plain(), sgd(), 6, seeds_of(module), step_size=cdat())


def test_on_the_edge_is_flatter_than_greedy_and_not_worse():
    """The order of Roulet et al. 2024 on a full batch: sharpness at σ = 2 against σ = 1, and the loss."""
    model, numbers = mlp(widths=(16,), activation="tanh"), range(4)
    splits = [digits(train=100, test=1)(seed) for seed in numbers]
    module = model.build(splits[0]).double()
    x, y = [s.train_x.double() for s in splits], [F.one_hot(s.train_y, 10).double() for s in splits]
    starts = [model.start(module, s, stream(k)) for k, s in enumerate(splits)]
    seeds = Seeds(numbers, x, y, [{k: v.double() for k, v in s.items()} for s in starts], [{}] * 4)
    found = {}
    for sigma in (1.0, 2.0):
        objective = build(module, mean_squared_error, [])
        made = stacked_trainer(objective, plain(), sgd(lr=1.0), 100, seeds, step_size=cdat(sigma=sigma))
        params = train(made, 800).params
        nets = [Network(module, mean_squared_error, trees.pick(params, k), {}) for k in numbers]
        for name, quantity in (("loss", loss()), ("sharpness", top_eigenvalue())):
            values = [float(evaluate(quantity, nets[k], x[k], y[k], (k,)).value) for k in numbers]
            found[name, sigma] = torch.tensor(values)
    assert (found["sharpness", 2.0] < 0.6 * found["sharpness", 1.0]).all()
    assert (found["loss", 2.0].log() - found["loss", 1.0].log()).mean() < 0


def test_a_schedule_jumps_and_anneals():
    def sizes(made, steps):
        memory, seen = start(made), []
        for _ in range(steps):
            memory = made.choose(lambda eta: -eta, memory)
            seen.append(float(memory["size"]))
        return seen

    assert sizes(schedule(start=2, factor=10.0), 4) == [1.0, 1.0, 10.0, 10.0]
    found = sizes(schedule(shape="cosine", start=2, stop=6, factor=10.0, last=0.5), 9)
    wanted = [1, 1, *(0.5 + 9.5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)), 0.5, 0.5, 0.5]
    assert found == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(Refused, match="needs stop > start = 5, got 5"):
        schedule(shape="cosine", start=5, stop=5)


def test_a_schedule_is_the_learning_rate_of_the_later_steps():
    both = train(trainer(plain(), lambda: sgd(lr=0.1), step_size=schedule(start=5, factor=0.3)), 5, 12)
    first = train(trainer(plain(), lambda: sgd(lr=0.1)), 5)
    later = trainer(plain(), lambda: sgd(lr=0.03))
    second = first
    while second.step < 12:
        second = later.advance(second, 12)
    for k, value in both.params.items():
        torch.testing.assert_close(value, second.params[k], rtol=1e-10, atol=1e-13)
        assert (value - train(trainer(plain(), lambda: sgd(lr=0.1)), 12).params[k]).abs().max() > 1e-6
