"""Averages of the weights: the formulas, what is measured, and that an interruption changes nothing."""

from __future__ import annotations

import pytest
import torch
from small import compiler, interrupted, same, train, trainer

from flattrain.rules.plain import plain
from flattrain.training.averaging import averaged, ema, swa


def path(steps):
    made = trainer(plain())
    return [train(made, t).params for t in range(steps + 1)]


def average_of(average, steps):
    return averaged(train(trainer(plain(), average=average), steps))


def test_ema_is_the_geometric_mean_of_the_path():
    weights = path(6)
    have = average_of(ema(decay=0.7), 6)
    for k, value in have.items():
        want = 0.7**6 * weights[0][k] + sum(0.3 * 0.7 ** (6 - t) * weights[t][k] for t in range(1, 7))
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-14)


def test_swa_is_the_mean_from_its_start_on_and_the_weights_before():
    weights, average = path(9), swa(start=3, every=2)
    for steps, taken in ((0, [0]), (2, [2]), (3, [3]), (4, [3]), (5, [3, 5]), (9, [3, 5, 7, 9])):
        for k, value in average_of(average, steps).items():
            want = torch.stack([weights[t][k] for t in taken]).mean(0)
            torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-14)


def test_training_does_not_feel_the_average():
    alone, beside = trainer(plain()), trainer(plain(), average=ema(decay=0.9))
    a, b = train(alone, 8), train(beside, 8)
    assert all(torch.equal(a.params[k], b.params[k]) for k in a.params)
    assert averaged(a) == a.params and beside.backend.endswith("weights averaged")


@compiler
def test_compiled_and_interrupted(tmp_path):
    average = swa(start=5, every=3)

    def fresh():
        return trainer(plain(), average=average, eager=None)

    assert "compiled" in fresh().backend
    whole = train(fresh(), 30)
    for k, value in average_of(average, 30).items():
        torch.testing.assert_close(averaged(whole)[k], value, rtol=1e-9, atol=1e-12)
    same(whole, interrupted(fresh, tmp_path, 13, 30))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_ends_of_ema(decay):
    weights = path(3)
    for k, value in average_of(ema(decay=decay), 3).items():
        torch.testing.assert_close(value, weights[0 if decay else 3][k], rtol=0, atol=1e-15)
