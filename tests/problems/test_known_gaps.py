"""Data sets of which the generalisation gap is known, and the linear model."""

from __future__ import annotations

import pytest
import torch

from flattrain.core import logistic_cube as cube
from flattrain.core.probes import stream
from flattrain.problems.fixed_design import fixed_design
from flattrain.problems.linear import linear
from flattrain.problems.logistic_cube import logistic_cube


def test_the_mean_in_sample_gap_of_ridge_is_the_soft_rank_over_n():
    lam, sigma = 0.1, 0.7
    data = fixed_design(dim=6, train=12, noise=sigma, targets=400)
    gaps = []
    for seed in range(40):
        s = data(seed)
        x = s.train_x
        w = torch.linalg.solve(x.T @ x / 12 + lam * torch.eye(6), x.T @ s.train_y / 12)
        test, train = ((s.test_x @ w - s.test_y).square(), (x @ w - s.train_y).square())
        gaps.append(float(test.sum(1).mean() / 2 - train.sum(1).mean() / 2) / 400)
    values = torch.linalg.eigvalsh(x.T @ x / 12)
    wanted = sigma**2 * float((values / (values + lam)).sum()) / 12
    error = torch.tensor(gaps).std() / 40**0.5
    assert abs(sum(gaps) / 40 - wanted) < 4 * error and float(error) < 0.01 * wanted


def test_the_design_is_that_of_every_seed_and_the_noise_is_not():
    one, two = fixed_design()(0), fixed_design()(1)
    assert torch.equal(one.train_x, two.train_x) and torch.equal(one.test_y, two.test_y)
    assert not torch.equal(one.train_y, two.train_y) and one.train_y.shape == (40, 20) and one.outputs == 20
    loud = fixed_design(noise=2.0)(0)
    mean = one.test_y.reshape(2, 40, 20).mean(0)
    torch.testing.assert_close(loud.train_y - mean, 2 * (one.train_y - mean))


def test_labels_of_the_cube_have_the_models_probabilities():
    split = logistic_cube(dim=3, train=40_000, test=10)(0)
    for corner in cube.points(3):
        mine = (split.train_x == corner).all(1)
        assert abs(float(mine.double().mean()) - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 40_000) ** 0.5
        p = float((corner @ cube.truth(3)).sigmoid())
        share = float(split.train_y[mine].mean())
        assert abs(share - p) < 4 * (p * (1 - p) / float(mine.sum())) ** 0.5
    small = logistic_cube(dim=3, train=70, test=10)(0)
    assert torch.equal(small.train_x, split.train_x[:70]) and torch.equal(small.train_y, split.train_y[:70])
    assert torch.equal(small.test_x, split.test_x)
    assert not torch.equal(small.train_x, logistic_cube(dim=3, train=70, test=10)(1).train_x)


@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_model_starts_at_zero(bias):
    split = logistic_cube(dim=3, train=5, test=5)(0)
    model = linear(bias=bias)
    module = model.build(split)
    params = model.start(module, split, stream(0))
    assert list(params) == (["head.weight", "head.bias"] if bias else ["head.weight"])
    assert params["head.weight"].shape == (1, 3) and not any(p.any() for p in params.values())
