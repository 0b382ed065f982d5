"""Measuring one's own model: any loader, any ragged batches, nothing changed."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flattrain
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.ranges import Refused

LOSS = nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    "measure",
    [relative_flatness(layer="2"), gauss_newton_trace(), fisher_rank(), top_eigenvalue(tolerance=1e-9)],
)
def test_ragged_batches_give_the_value_of_one_and_the_model_stays(measure):
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    net.train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    chance = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=3)
    parts = flattrain.measured(net, LOSS, loader, measure)
    assert torch.equal(torch.get_rng_state(), chance)
    whole = flattrain.measured(net, LOSS, [(x, y)], measure)
    assert float(parts.value) == pytest.approx(float(whole.value), rel=1e-8)
    assert net.training and torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    if measure.name == "gauss_newton_trace":
        dense = oracles.fisher(net, LOSS, x, y, oracles.trainable(net))
        assert float(parts.value) == pytest.approx(float(dense.trace()), rel=1e-10)


def test_a_forward_of_ones_own_and_refusals():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    plain = flattrain.measured(net, LOSS, [(x, y)], gauss_newton_trace())
    wrapped = flattrain.measured(
        net, LOSS, [({"x": x}, y)], gauss_newton_trace(), forward=lambda m, batch: m(batch["x"])
    )
    assert float(plain.value) == float(wrapped.value)
    with pytest.raises(Refused, match="read only once"):
        flattrain.measured(net, LOSS, iter([(x, y)]), gauss_newton_trace())
    with pytest.raises(Refused, match="no examples"):
        flattrain.measured(net, LOSS, [], gauss_newton_trace())


def test_probes_come_from_the_seed():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    one, two, other = (
        flattrain.measured(net, LOSS, [(x, y)], hessian_trace(probes=4), seed=s) for s in (0, 0, 1)
    )
    assert float(one.value) == float(two.value) != float(other.value)
    assert float(one.standard_error) > 0


def test_coverage_is_reported_before_anything_is_computed():
    net, _ = zoo.build("transformer")
    report = flattrain.coverage(net)
    assert "place" in report.covered  # by its type; that it runs as a function shows in the pass
    attention = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    report = flattrain.coverage(attention)
    assert set(report.covered) == {"0"} and "1.in_proj_weight" in report.uncovered
    assert 0 < report.share < 0.5 and "not covered" in str(report)
