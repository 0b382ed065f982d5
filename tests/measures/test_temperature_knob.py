"""What the study of the temperature knob measures and penalises, against explicit Jacobians."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import gradient_is_that_of, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, half_squared_error, recognise
from flattrain.core.probes import stream
from flattrain.measures.gap_penalty import gap_penalty
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.gradient_norm import gradient_norm
from flattrain.measures.jacobian_trace import jacobian_trace
from flattrain.measures.logit_norm import logit_norm
from flattrain.measures.soft_rank import soft_rank
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.ranges import Refused

LAM = 0.02


def problem():
    return oracles.small_net(sizes=(3, 4, 3)), *oracles.data(inputs=3)


def test_the_norm_of_logits_leaves_out_what_all_classes_share():
    net, x, y = problem()

    def definition(params):
        z = functional_call(net, params, (x,))
        return (z - z.mean(1, keepdim=True)).norm(dim=1).mean()

    gradient_is_that_of(definition, logit_norm(), net, x, y)
    before = value_of(logit_norm(), net, cross_entropy, x, y)
    with torch.no_grad():
        net.head.bias += 5
    assert float(value_of(logit_norm(), net, cross_entropy, x, y)) == pytest.approx(float(before), rel=1e-12)


def test_the_trace_of_the_jacobian_is_that_of_explicit_ones():
    net, x, y = problem()
    wanted = oracles.parameter_jacobians(net, x).square().sum((1, 2)).mean()
    found = value_of(jacobian_trace(), net, cross_entropy, x, y)
    assert float(found) == pytest.approx(float(wanted), rel=1e-10)
    same = value_of(gauss_newton_trace(), net, half_squared_error, x, torch.zeros(len(x), 3))
    assert float(found) == pytest.approx(float(same), rel=1e-12)

    def definition(params):
        from torch.func import jacrev

        rows = jacrev(lambda p: functional_call(net, p, (x,)))(params)
        return sum(j.square().sum() for j in rows.values()) / len(x)

    gradient_is_that_of(definition, jacobian_trace(), net, x, y)
    one_batch_is_many(jacobian_trace(), net, x, y)
    many = value_of(jacobian_trace(columns="sketch", probes=4000), net, cross_entropy, x, y)
    assert float(many) == pytest.approx(float(wanted), rel=0.03)


def test_the_gap_penalty_is_kappa_times_the_rank_over_n_and_all_of_it_is_differentiated():
    net, x, y = problem()

    def definition(params):
        def loss(p, one, label):
            return F.cross_entropy(functional_call(net, p, (one[None],)), label[None])

        rows = [grad(loss)(params, one, label) for one, label in zip(x, y, strict=True)]
        each = torch.stack([torch.cat([g.flatten() for g in row.values()]) for row in rows])
        covariance = each.square().sum(1).mean() - each.mean(0).square().sum()
        fisher = oracles.fisher(net, nn.CrossEntropyLoss(), x, y, params).trace()
        return covariance / fisher * value_of(soft_rank(lam=LAM), net, cross_entropy, x, y, params) / len(x)

    gradient_is_that_of(definition, gap_penalty(lam=LAM), net, x, y)
    vmap_is_loop(gap_penalty(lam=LAM), net, x, y)
    weighed = recognise(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))
    with pytest.raises(Refused, match="examples must weigh the same"):
        value_of(gap_penalty(), net, weighed, x, y)


def test_the_gradients_norm_with_weight_decay_is_that_of_what_is_minimised():
    net, x, y = problem()

    def definition(params):
        def total(p):
            norm = sum(v.square().sum() for v in p.values())
            return F.cross_entropy(functional_call(net, p, (x,)), y) + 0.15 * norm

        return oracles.flat(grad(total)(params)).norm()

    gradient_is_that_of(definition, gradient_norm(lam=0.3), net, x, y)
    one_batch_is_many(gradient_norm(lam=0.3), net, x, y)


@pytest.mark.parametrize("widths", [(6,), (6, 5)])
def test_rescaled_nodes_keep_the_function_and_move_the_weights(widths):
    split = digits(train=20, test=10)(0)
    outputs, weights = [], []
    for scale in (1.0, 10.0):
        model = mlp(widths=widths, node_scale=scale)
        module = model.build(split)
        params = model.start(module, split, stream(0))
        outputs.append(functional_call(module, params, (split.train_x.double(),)))
        weights.append(params)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights[1]["hidden1.weight"], 10 * weights[0]["hidden1.weight"])
    after = "hidden2.weight" if len(widths) > 1 else "head.weight"
    torch.testing.assert_close(weights[1][after], weights[0][after] / 10)
    with pytest.raises(Refused, match="node_scale keeps the function of relu units"):
        mlp(activation="tanh", node_scale=2.0)


def test_flipped_labels_are_other_classes_in_both_sets():
    plain, noisy = digits(train=900, test=897)(3), digits(train=900, test=897, flipped=0.2)(3)
    assert torch.equal(plain.train_x, noisy.train_x) and torch.equal(plain.test_x, noisy.test_x)
    for one, other in ((plain.train_y, noisy.train_y), (plain.test_y, noisy.test_y)):
        changed = float((one != other).double().mean())
        assert abs(changed - 0.2) < 4 * (0.2 * 0.8 / len(one)) ** 0.5
    held = digits(train=100, test=100, validation=100, flipped=1.0)(0)
    clean = digits(train=100, test=100, validation=100)(0)
    assert not (held.validation_y == clean.validation_y).any()
