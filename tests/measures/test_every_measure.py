"""All that the catalogue offers: the same number in single as in double precision, and a gradient."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import oracles
import pytest
import torch

from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy, recognise, squared_error
from flattrain.core.probes import draw, stream
from flattrain.lab import catalog
from flattrain.problems.matrix_sensing import DeepLinear
from flattrain.ranges import Refused
from flattrain.training import evaluate as module_under_test
from flattrain.training.evaluate import evaluate, evaluate_on
from flattrain.training.objective import Penalty, build, layers_of
from flattrain.types import Measure, Network

# want hidden, head and one output
TWO_LAYERS = {"two_layer_trace", "gauss_newton_frobenius", "path_norm", "column_ratio"}
STABILITY = {"path_inequality", "dead_units"}  # want relu units, and half the squared error
TWO_SETS = {"representativeness", "loss_gap"}
POINTS = {name for name in catalog.MEASURES if name.startswith("distance_to_")}  # of a model that names them
TWO_ANSWERS = {"product_of_logits"}
SPECIAL = TWO_LAYERS | STABILITY | TWO_SETS | POINTS | TWO_ANSWERS
ARGUMENTS = {
    "feature_robustness": {"delta": 0.2},
    "average_sharpness": {"rho": 0.2},
    "top_eigenvalue": {"tolerance": 1e-4},
}


def built(registry, name):
    choice = catalog.choose(registry, {name: ARGUMENTS.get(name, {})}, "test")
    return catalog.build(choice, probes=3)


# These have a model of their own, and real targets.
DEEP_LINEAR = {"deep_linear_trace", "product_nuclear_norm", "trace_floor"}
REAL_TARGETS = {"lipschitz_slack"}


def problem(name):
    """A net, inputs, targets and the loss that the measure is for."""
    if name in DEEP_LINEAR:
        generator = torch.Generator().manual_seed(1)
        net = DeepLinear(4, 3, 5, 3)
        for p in net.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        return (
            net,
            torch.randn(9, 4, 3, generator=generator),
            torch.randn(9, generator=generator),
            squared_error,
        )
    net, (x, y) = oracles.small_net(), oracles.data(n=40)
    with torch.no_grad():
        y[:25] = net(x).argmax(1)[:25]  # better than chance, so that a temperature exists
    if name in REAL_TARGETS:
        return net, x, torch.nn.functional.one_hot(y, 3).to(x.dtype), squared_error
    return net, x, y, cross_entropy


@pytest.mark.parametrize("name", sorted(set(catalog.MEASURES) - SPECIAL))
def test_single_precision_gives_the_same_number(name, monkeypatch):
    def same(wanted, generator, dtype):  # torch draws other normals in other precisions
        return {k: v.to(dtype) for k, v in draw(wanted, generator, torch.float64).items()}

    monkeypatch.setattr(module_under_test, "draw", same)
    net, x, y, loss = problem(name)
    found = []
    for dtype in (torch.float64, torch.float32):
        module = copy.deepcopy(net).to(dtype)
        params = {k: p.detach() for k, p in module.named_parameters()}
        network = Network(module, loss, params, {})
        measure = built(catalog.MEASURES, name)
        assert measure.definition
        estimate = evaluate(
            measure, network, x.to(dtype), y.to(dtype) if y.is_floating_point() else y, ("k",)
        )
        assert math.isfinite(float(estimate.value)) and float(estimate.value) != 0
        found.append(float(estimate.value))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("name", sorted(catalog.PENALTIES))
def test_every_penalty_has_a_gradient(name):
    net, x, y, loss = problem(name)
    net, x, y = net.float(), x.float(), y.float() if y.is_floating_point() else y
    objective = build(net, loss, [Penalty(built(catalog.PENALTIES, name), 1.0)])
    seen = objective.see(x, y)
    total, logs = objective.total(seen, draw(objective.draws(seen), stream(1)))
    penalty = total - seen.loss
    grads = torch.autograd.grad(penalty, list(net.parameters()), materialize_grads=True)
    size = float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
    assert math.isfinite(size) and size > 1e-4 * abs(float(penalty.detach())) > 0
    assert len(logs) == 2


@pytest.mark.parametrize("name", sorted(set(catalog.MEASURES) - SPECIAL - DEEP_LINEAR - REAL_TARGETS))
def test_batches_of_a_loss_with_weights_combine(name):
    """Class weights and ignored labels count uneven batches unevenly, and the last of them not at all."""
    net, x, y, _ = problem(name)
    y[30:], y[5] = -1, -1
    loss = recognise(torch.nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 2.0]), ignore_index=-1))
    network = Network(net, loss, oracles.trainable(net), {})
    measure = built(catalog.MEASURES, name)
    if name == "gap_estimate":
        with pytest.raises(Refused, match="examples must weigh the same"):
            evaluate_on(measure, network, [(x, y)], ("k",))
        return
    if isinstance(measure, Measure):
        seen = see(net, loss, x, y, layers=layers_of(net, measure))
        if name == "worst_sharpness" or any(want.per_example for want in measure.draws(seen).values()):
            pytest.skip("its groups, or its draws, are those of a batch")
    cuts = (0, 3, 17, 30, 40)
    parts = [(x[a:b], y[a:b]) for a, b in pairwise(cuts)]
    many, one = (float(evaluate_on(measure, network, batches, ("k",)).value) for batches in (parts, [(x, y)]))
    assert many == pytest.approx(one, rel=1e-9, abs=1e-12) and math.isfinite(one)
