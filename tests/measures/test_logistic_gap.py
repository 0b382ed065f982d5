"""The gap on the cube: its parts by explicit sums, and the means that make its control variates right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flattrain.core import logistic_cube as cube
from flattrain.core.losses import binary_cross_entropy, cross_entropy
from flattrain.core.probes import stream
from flattrain.measures.logistic_gap import logistic_gap
from flattrain.problems.linear import linear
from flattrain.problems.logistic_cube import logistic_cube
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network

LAM, DIM = 0.05, 3


def fitted(x, y):
    """The ridge logistic regression by Newton's method."""
    w = torch.zeros(DIM)
    for _ in range(30):
        p = (x @ w).sigmoid()
        h = (x * (p * (1 - p))[:, None]).T @ x / len(x) + LAM * torch.eye(DIM)
        w = w - torch.linalg.solve(h, x.T @ (p - y) / len(x) + LAM * w)
    return w


def found(kind, x, y, w):
    split = logistic_cube(dim=DIM, train=len(x), test=1)(0)
    network = Network(linear().build(split), binary_cross_entropy, {"head.weight": w[None]}, {})
    return float(evaluate(logistic_gap(kind=kind, lam=LAM), network, x, y, ("k",)).value)


def test_estimates_are_those_of_the_populations_matrices():
    x, y = cube.points(DIM), torch.tensor([0.0, 1] * 4)
    at = cube.minimum(DIM, LAM)
    inverse = torch.linalg.inv(at.hessian + LAM * torch.eye(DIM))
    rank = torch.trace(at.hessian @ inverse) / 8
    wanted = {
        "tic": torch.trace(at.covariance @ inverse) / 8,
        "rank": rank,
        "kappa_rank": at.covariance.trace() / at.hessian.trace() * rank,
    }
    for kind, value in wanted.items():
        assert found(kind, x, y, torch.ones(DIM)) == pytest.approx(float(value), rel=1e-12)


def test_the_gap_has_the_mean_of_the_plain_gap_and_less_noise():
    data, plain, gaps, left = logistic_cube(dim=DIM, train=60, test=1), [], [], []
    for seed in range(300):
        split = data(seed)
        x, y = split.train_x, split.train_y
        w = fitted(x, y)
        loss = F.binary_cross_entropy_with_logits(x @ w, y)
        plain.append(float(cube.risk(w) - loss))
        gaps.append(found("gap", x, y, w))
        left.append(found("remainder", x, y, w))
    tic = found("tic", x, y, w)
    plain, gaps = torch.tensor(plain), torch.tensor(gaps)
    difference = plain - gaps
    assert abs(difference.mean()) < 4 * difference.std() / 300**0.5
    assert gaps.std() < 0.3 * plain.std()
    torch.testing.assert_close(torch.tensor(left), 60 * (gaps - tic), rtol=1e-9, atol=1e-12)


def test_another_loss_or_net_is_refused():
    x, y = cube.points(DIM), torch.tensor([0, 1] * 4)
    net = nn.Sequential(nn.Linear(DIM, 2))
    params = {k: p.detach() for k, p in net.named_parameters()}
    with pytest.raises(Refused, match="linear model without a bias"):
        evaluate(logistic_gap(), Network(net, cross_entropy, params, {}), x, y, ("k",))
    split = logistic_cube(dim=DIM, train=8, test=1)(0)
    model = linear(bias=True)
    module = model.build(split)
    network = Network(module, binary_cross_entropy, model.start(module, split, stream(0)), {})
    with pytest.raises(Refused, match="linear model without a bias"):
        evaluate(logistic_gap(), network, split.train_x, split.train_y, ("k",))
