"""A penalty that ends at a step, one that is sought, and a decay that begins: against the bare loss."""

from __future__ import annotations

import oracles
import pytest
import torch
from small import compiler, seeds_of
from torch import nn
from torch.func import functional_call, grad

from flattrain.core.clock import since
from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.norms import weight_norm
from flattrain.ranges import Refused
from flattrain.regularizers import Regularized
from flattrain.rules.decay import weight_decay
from flattrain.rules.plain import plain
from flattrain.training.objective import Penalty, build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import stacked_trainer
from flattrain.types import Batch, Moment


def by_hand(net, x, y, params, weight):
    """∇ (cross entropy + weight ‖θ‖²), without the objective."""

    def value(p):
        norm = sum(v.square().sum() for v in p.values())
        return torch.nn.functional.cross_entropy(functional_call(net, p, (x,)), y) + weight * norm

    return grad(value)(params)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(("step", "weight"), [(0, -0.3), (4, -0.3), (5, 0.0), (9, 0.0)])
def test_a_penalty_that_is_sought_until_step_5(step, weight, as_tensor):
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    clock = (torch.tensor(float(step)),) if as_tensor else ()
    # Where the number is a tensor, nothing else knows it.
    batch = Batch(x, y, {}, Moment(0 if as_tensor else step), clock)
    found, _ = build(net, cross_entropy, [Penalty(weight_norm(), -0.3, 5)]).gradient()(params, batch)
    for k, wanted in by_hand(net, x, y, params, weight).items():
        torch.testing.assert_close(found[k], wanted, rtol=1e-12, atol=1e-14)


def test_without_a_step_no_penalty_ends():
    net, (x, y) = oracles.small_net(), oracles.data()
    objective = build(net, cross_entropy, [Penalty(weight_norm(), 0.3, 0)])
    seen = objective.see(x, y)
    norm = sum(p.square().sum() for p in net.parameters())
    torch.testing.assert_close(objective.total(seen, {})[0], seen.loss + 0.3 * norm)
    torch.testing.assert_close(objective.total(seen, {}, Batch(x, y))[0], seen.loss)


def test_a_practitioners_penalty_is_not_sought():
    with pytest.raises(Refused, match="weight_norm: weight must be a number >= 0"):
        Regularized(oracles.small_net(), nn.CrossEntropyLoss(), [Penalty(weight_norm(), -1.0)])
    with pytest.raises(Refused, match="weight must be a finite number"):
        build(oracles.small_net(), cross_entropy, [Penalty(weight_norm(), float("nan"))])


@pytest.mark.parametrize(("step", "share"), [(2, 0.0), (3, 1.0), (7, 1.0)])
def test_weight_decay_begins_at_its_step(step, share):
    net, (x, y) = oracles.small_net(), oracles.data()
    params = {k: p.detach() for k, p in net.named_parameters()}
    grad_fn = build(net, cross_entropy, []).gradient()
    found, _ = weight_decay(lam=0.4, start=3)(grad_fn)(params, Batch(x, y, {}, Moment(step)))
    for k, wanted in by_hand(net, x, y, params, 0.2 * share).items():
        torch.testing.assert_close(found[k], wanted, rtol=1e-12, atol=1e-14)


def test_since_counts_from_0_with_and_without_a_clock():
    x = torch.zeros(1)
    for step, wanted in ((0, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)):
        assert since(Batch(x, x, {}, Moment(step)), 3) == wanted
        assert float(since(Batch(x, x, clock=(torch.tensor(float(step)),)), 3)) == wanted


@compiler
def test_what_ends_and_begins_is_compiled():
    module = nn.Linear(4, 1)
    for p in module.parameters():
        p.data.fill_(0.5)
    made = []
    for eager in ("to compare", None):
        objective = build(module, squared_error, [Penalty(weight_norm(), -0.1, 4)])
        rule = weight_decay(lam=0.3, start=7)
        made.append(stacked_trainer(objective, rule, sgd(lr=0.01), 6, seeds_of(module), eager=eager))
    assert "compiled" in made[1].backend
    plainly = stacked_trainer(build(module, squared_error, []), plain(), sgd(lr=0.01), 6, seeds_of(module))
    states = [trainer.init() for trainer in (*made, plainly)]
    for stop in (4, 7, 10):
        states = [t.advance(s, stop) for t, s in zip((*made, plainly), states, strict=True)]
        eager, compiled, bare = (s.params["weight"] for s in states)
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-12)
        assert (eager - bare).abs().max() > 1e-4
