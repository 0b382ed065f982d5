"""IRE: which coordinates are flat, when they are chosen, and whose step is lengthened."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import rule_over_seeds_is_a_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.rules.compose import compose
from flattrain.rules.ire import flat_coordinates, ire
from flattrain.rules.sam import sam
from flattrain.rules.schedule import schedule
from flattrain.training.batches import indices
from flattrain.training.checkpoint import load_state, save_state
from flattrain.training.objective import build
from flattrain.training.optimizers import adamw, sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.types import Batch, Moment


def test_the_flat_coordinates_by_hand():
    g = {"a": torch.tensor([3.0, -0.1, 0.0]), "b": torch.tensor([[2.0], [-1.0]])}
    for share, a, b in [
        (0.0, [0, 0, 0], [[0], [0]]),
        (0.4, [0, 1, 1], [[0], [0]]),
        (0.6, [0, 1, 1], [[0], [1]]),
        (1.0, [1, 1, 1], [[1], [1]]),
    ]:
        mask = flat_coordinates(g, share)
        assert mask["a"].tolist() == a and mask["b"].tolist() == b
    ties = flat_coordinates({"a": torch.tensor([0.0, 5.0, 0.0, 0.0])}, 0.25)
    assert ties["a"].tolist() == [1, 0, 1, 1]


def test_the_mask_is_taken_every_so_many_steps_from_the_gradient_it_is_given():
    curvature = torch.tensor([4.0, 1.0])
    grad_fn = lambda p, b: ({"x": curvature * p["x"]}, {})  # noqa: E731
    rule = ire(kappa=3.0, flat=0.5, every=5)(grad_fn)
    memory = ire().init({"x": torch.zeros(2)})
    points = {0: [1.0, 1.0], 1: [0.1, 1.0], 5: [0.1, 1.0], 6: [1.0, 1.0]}
    masks = {0: [0, 1], 1: [0, 1], 5: [1, 0], 6: [1, 0]}
    for step, x in points.items():
        params = {"x": torch.tensor(x)}
        g, _, memory = rule(params, Batch(None, None, {}, Moment(step)), memory)
        assert torch.equal(g["x"], curvature * params["x"])
        assert memory["flat.x"].tolist() == masks[step] and float(memory["kappa"]) == 3.0


def seeds_of(net, numbers):
    x, y = oracles.data()
    start = {k: p.detach().clone() for k, p in net.named_parameters()}
    count = len(numbers)
    starts = [{k: v + 0.1 * s for k, v in start.items()} for s in numbers]
    return Seeds(numbers, [x] * count, [y] * count, starts, [{}] * count)


def trained(rules, make, numbers=(4,), steps=13, state=None):
    net = oracles.small_net()
    trainer = stacked_trainer(
        build(net, cross_entropy, []), compose(rules), make, 5, seeds_of(net, list(numbers))
    )
    state = state or trainer.init()
    while state.step < steps:
        state = trainer.advance(state, steps)
    return state


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_it_lengthens_the_step_of_torchs_own_optimizer(name):
    """A plain torch loop: step, then Δ ← Δ (1 + κ mask), with momentum and decay inside Δ."""
    make = {"adamw": adamw(lr=0.01, weight_decay=0.1), "momentum": sgd(lr=0.1, momentum=0.9)}[name]
    mine = trained([ire(kappa=1.5, flat=0.7, every=4)], make)
    net = oracles.small_net()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.4)
    theirs = {
        "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
        "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    }[name](net.parameters())
    x, y = oracles.data()
    for step, pick in enumerate(indices(4, 12, 5, 0, 13)):
        theirs.zero_grad()
        F.cross_entropy(net(x[pick]), y[pick]).backward()
        if step % 4 == 0:
            fisher = torch.cat([p.grad.reshape(-1) ** 2 for p in net.parameters()])
            threshold = fisher.sort().values[round(0.7 * len(fisher)) - 1]
            masks = [(p.grad**2 <= threshold).double() for p in net.parameters()]
        before = [p.detach().clone() for p in net.parameters()]
        theirs.step()
        with torch.no_grad():
            for p, old, mask in zip(net.parameters(), before, masks, strict=True):
                p.add_(1.5 * mask * (p - old))
    for k, p in net.named_parameters():
        torch.testing.assert_close(mine.params[k][0], p.detach(), rtol=1e-4, atol=1e-6)
    bare = trained([], make)
    far = math.sqrt(sum(float((bare.params[k] - mine.params[k]).square().sum()) for k in bare.params))
    assert far > 0.05


def test_under_plain_sgd_it_is_a_longer_gradient():
    """θ − η (g + κ P g)."""
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    g, _ = build(net, cross_entropy, []).gradient()(params, Batch(x, y))
    rule = ire(kappa=2.0, flat=0.5)
    grads, _, memory = rule(build(net, cross_entropy, []).gradient())(params, Batch(x, y), rule.init(params))
    after = rule.moved(params, {k: v - 0.1 * grads[k] for k, v in params.items()}, memory)
    mask = flat_coordinates(g, 0.5)
    for k, v in params.items():
        wanted = v - 0.1 * (g[k] + 2 * mask[k] * g[k])
        torch.testing.assert_close(after[k], wanted, rtol=1e-12, atol=1e-14)


def test_nothing_at_strength_zero_and_switched_on_late():
    make = sgd(lr=0.1, momentum=0.9)
    bare = trained([], make)
    for rules in (
        [ire(kappa=0.0)],
        [ire(flat=0.0)],
        [schedule(start=13, before=0.0), ire()],
    ):
        same = trained(rules, make)
        assert all(torch.equal(same.params[k], bare.params[k]) for k in bare.params)
    late = trained([schedule(start=12, before=0.0), ire()], make)
    assert any(not torch.equal(late.params[k], bare.params[k]) for k in bare.params)
    sams = trained([ire(flat=0.3), sam(rho=0.3)], make), trained([sam(rho=0.3), ire(flat=0.3)], make)
    for k in sams[0].params:  # within SAM the ascended gradient comes last: the same mask
        torch.testing.assert_close(sams[0].params[k], sams[1].params[k], rtol=1e-12, atol=1e-14)


def test_seeds_stack_and_a_checkpoint_keeps_the_mask(tmp_path):
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    grad_fn = build(net, cross_entropy, []).gradient()
    rule_over_seeds_is_a_loop(ire(flat=0.6, every=3), grad_fn, params, Batch(x, y))
    make, rules = sgd(lr=0.1, momentum=0.9), [ire(flat=0.6)]
    together, alone = trained(rules, make, (2, 5)), trained(rules, make, (5,))
    for k in alone.params:
        torch.testing.assert_close(together.params[k][1], alone.params[k][0], rtol=1e-10, atol=1e-12)
    save_state(tmp_path / "cell", trained(rules, make, (2, 5), 7), None)
    halfway, _ = load_state(tmp_path / "cell")
    assert halfway.step == 7 and len(halfway.memory) == 1 + len(params)
    resumed = trained(rules, make, (2, 5), state=halfway)
    assert all(torch.equal(resumed.params[k], together.params[k]) for k in together.params)
