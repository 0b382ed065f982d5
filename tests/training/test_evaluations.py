"""Gradient evaluations: the dry count against counting every call of the gradient in real steps."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.probes import draw, stream
from flattrain.lab import catalog
from flattrain.lab.run import Experiment
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.rules.decay import weight_decay
from flattrain.rules.entropy_sgd import entropy_sgd
from flattrain.rules.esam import esam
from flattrain.rules.looksam import looksam
from flattrain.rules.multi_step import n_step_sam
from flattrain.rules.plain import plain
from flattrain.rules.sam import m_sam, sam
from flattrain.rules.schedule import schedule
from flattrain.training.evaluations import Clock, Cost
from flattrain.types import Batch, Moment, Rule

PARAMS = {"w": torch.ones(3, 2), "b": torch.ones(3)}
X, Y = torch.ones(12, 2), torch.ones(12)


def losses(params, batch):
    return batch.x.sum(1) * params["w"].sum() + batch.y


def cost(*rules):
    return Cost(compose(rules), PARAMS, X, Y)


def counted(rules, steps):
    """Real steps with numbers, one after the other: the examples seen by the gradient, in batches of 12."""
    seen = 0

    def gradient(params, batch):
        nonlocal seen
        seen += len(batch.y)
        return {k: v + batch.x.mean() for k, v in params.items()}, {"loss": batch.y.mean()}

    rule = compose(rules)
    memory, out = rule.init(PARAMS), []
    for step in range(steps):
        noise = draw(rule.draws(PARAMS, Batch(X, Y)), stream(0, step), torch.float64)
        _, _, memory = rule(gradient)(PARAMS, Batch(X, Y, noise, Moment(step)), memory)
        out.append(seen / 12)
    return [0.0, *out]


RAMP = {"shape": "linear", "start": 5, "stop": 11, "last": 0}
CASES = [
    ([plain()], 10.0),
    ([sam()], 20.0),
    ([n_step_sam(steps=3)], 40.0),
    ([looksam(every=4)], 10 + 3),
    ([esam(gamma=0.5, losses=losses)], 15.0),
    ([sam(), sam()], 40.0),
    ([sam(), n_step_sam(steps=2)], 60.0),
    ([looksam(every=4), sam()], 2.0 * (10 + 3)),
    ([sam(), looksam(every=4)], 2.0 * (10 + 3)),
    ([weight_decay(), sam()], 20.0),
    ([schedule(start=7, before=0), sam()], 7 + 2.0 * 3),
    ([schedule(start=3, before=0), looksam(every=4)], 10 + 2),
    ([entropy_sgd(langevin=4)], 40.0),
    ([entropy_sgd(langevin=4, gamma1=0.1)], 40.0),
]


@pytest.mark.parametrize(("rules", "ten"), CASES, ids=range(len(CASES)))
def test_ten_steps_by_hand(rules, ten):
    assert cost(*rules).until(10) == ten


@pytest.mark.parametrize(
    "rules",
    [
        *[rules for rules, _ in CASES],
        [schedule(**RAMP), sam()],
        [schedule(**(RAMP | {"shape": "cosine"})), looksam(every=3)],
        [looksam(every=3), schedule(start=4, before=0), looksam(every=5)],
    ],
)
def test_the_dry_count_is_that_of_real_steps(rules):
    it = cost(*rules)
    assert [it.until(n) for n in range(41)] == counted(rules, 40)


def test_lanes_of_vmap_are_counted_as_their_examples():
    """m-SAM calls the gradient twice under vmap; each call sees every example once."""
    assert cost(m_sam(m=3)).until(7) == 14 and cost(m_sam(m=3), sam()).until(7) == 28

    def wrap(grad_fn):
        def gradient(params, batch):
            def at(scale):
                return grad_fn({k: scale * v for k, v in params.items()}, batch)[0]

            found = torch.func.vmap(at)(batch.x.new_ones(5))
            return {k: v.mean(0) for k, v in found.items()}, {}

        return gradient

    assert cost(Rule(wrap)).until(3) == 15


def test_far_steps_are_not_run_one_by_one():
    it = cost(schedule(start=10**8, before=0), looksam(every=10))
    assert it.until(3 * 10**8) == 10**8 + 2 * 10**8 * 1.1


@pytest.mark.parametrize("rules", [rules for rules, _ in CASES])
def test_steps_within_a_budget_are_as_many_as_fit(rules):
    it = cost(*rules)
    for budget in (1, 2, 7, 33, 100):
        steps = it.steps_within(budget)
        assert it.until(steps) <= budget < it.until(steps + 1)
    with pytest.raises(Refused, match="takes no gradients"):
        cost(Rule(lambda grad_fn: lambda params, batch: (params, {}))).steps_within(10)


def test_a_clock_answers_as_its_number_and_notes_the_look():
    looks = [
        (lambda c: c < 5, {5}),
        (lambda c: c >= 5, {5}),
        (lambda c: c > 5, {6}),
        (lambda c: c <= 5.5, {6}),
        (lambda c: c < 5.5, {6}),
        (lambda c: c == 5, {5, 6}),
        (lambda c: c != 5, {5, 6}),
        (lambda c: bool(c), {1}),
    ]
    for look, edges in looks:
        for step in range(9):
            clock = Clock(step)
            assert look(clock) == look(step)
            assert clock.edges <= edges and not clock.periods
            same = [s for s in range(9) if all((s < e) == (step < e) for e in clock.edges)]
            assert all(look(s) == look(step) for s in same)
    clock = Clock(14)
    assert clock % 4 == 2 and clock.periods == {4} and not clock.edges
    for use in (lambda c: c + 1, lambda c: 2.0**c, lambda c: float(c), lambda c: range(c), hash):
        with pytest.raises(TypeError):
            use(Clock(3))


SPEC = {
    "dataset": {"digits": {"train": 24, "test": 8}},
    "loss": {"cross_entropy": {}},
    "model": {"mlp": {"widths": [4], "normalisation": "layer"}},
    "penalties": [],
    "train": {
        "optimizer": {"sgd": {"lr": 0.1}},
        "batch_size": 12,
        "steps": 0,
        "milestones": 0,
        "spacing": "log",
    },
    "step_size": None,
    "average": None,
    "precision": "float64",
    "seeds": 1,
    "first_seed": 0,
    "backend": "auto",
    "measures": {"along": [], "end": []},
}
BY_NAME = {
    "plain": 1, "sam": 2, "usam": 2, "m_sam": 2, "n_step_sam": 3, "asam": 2, "sam_on": 2, "gsam": 2,
    "wsam": 2, "gnp": 2, "stable_sam": 2, "looksam": 1.1, "friendly_sam": 2, "esam": 1.5, "functional_sam": 2,
    "schedule": 1, "weight_decay": 1, "clip": 1, "label_noise": 1, "randomly_smoothed": 2, "entropy_sgd": 20,
    "sharpness_aware_perturbation": 1 + 2 / 12, "obar": 1, "nbar": 1, "ire": 1, "antithetic_noise": 2,
    "weight_noise": 1, "ascended_loss": 3, "tilted_sam": 6, "trace_sam": 2, "det_sam": 2, "frob_sam": 3,
    "newton": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", catalog.RULES)
def test_every_rule_of_the_catalogue_in_a_cell(name):
    arguments = {"parameters": ["head.weight"]} if name == "sam_on" else {}
    if name in ("obar", "nbar"):
        arguments = {"x": "head.weight", "y": "head.bias"}
    if name == "label_noise":
        pytest.skip("it is for real targets")
    it = Experiment(SPEC | {"rule": [{name: arguments}]}, None)
    assert it.cost.until(20) == pytest.approx(20 * BY_NAME[name], rel=1e-12)
