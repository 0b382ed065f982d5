"""The soft rank over batches, and the errors of its gradient: small, and large where it is made wrong."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from laws import value_of
from torch import nn

from flattrain.core.losses import cross_entropy
from flattrain.measures import rank_gradient
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.fisher_rank_of_batches import fisher_rank_of_batches
from flattrain.measures.rank_gradient import rank_gradient_error
from flattrain.training.evaluate import evaluate
from flattrain.types import Network

LAM = 0.03


def network():
    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(n=10, inputs=3)
    return Network(net, cross_entropy, oracles.trainable(net), {}), x, y


def rank(f):
    return float(torch.trace(f @ torch.linalg.inv(f + LAM * torch.eye(len(f)))))


def test_the_mean_over_batches_is_of_each_batchs_own_matrix_and_below_that_of_all():
    net, x, y = network()
    params, loss = net.params, nn.CrossEntropyLoss()
    parts = [oracles.fisher(net.module, loss, x[k : k + 4], y[k : k + 4], params) for k in (0, 4, 8)]
    wanted = sum(rank(f) * n for f, n in zip(parts, (4, 4, 2), strict=True)) / 10
    found = float(evaluate(fisher_rank_of_batches(batch=4, lam=LAM), net, x, y, ("k",)).value)
    assert found == pytest.approx(wanted, rel=1e-9)
    whole = float(evaluate(fisher_rank(lam=LAM), net, x, y, ("k",)).value)
    assert found < whole
    all_at_once = evaluate(fisher_rank_of_batches(batch=10, lam=LAM), net, x, y, ("k",)).value
    assert float(all_at_once) == pytest.approx(whole, rel=1e-12)


def test_the_gradient_is_the_closed_form_and_that_of_finite_differences():
    net, x, y = network()
    for against, most in (("closed_form", 1e-12), ("finite_differences", 1e-7)):
        error = evaluate(rank_gradient_error(against=against, lam=LAM), net, x, y, ("k",)).value
        assert 0 <= float(error) < most


def wrong(**settings):
    """The soft rank at three times the λ that was asked for."""
    return fisher_rank(**settings | {"lam": 3 * settings["lam"]})


def test_a_wrong_gradient_has_a_large_error(monkeypatch):
    net, x, y = network()
    monkeypatch.setattr(rank_gradient, "fisher_rank", wrong)
    for against in ("closed_form", "finite_differences"):
        error = float(evaluate(rank_gradient_error(against=against, lam=LAM), net, x, y, ("k",)).value)
        assert error > 0.02, against


def test_probes_have_the_right_mean_with_its_standard_error():
    net, x, y = network()
    measure = rank_gradient_error(against="probes", lam=LAM, probes=150, iterations=16)
    found = evaluate(measure, net, x, y, ("k",))
    assert abs(float(found.value)) < 3.5 * float(found.standard_error) < 0.3
    one = evaluate(rank_gradient_error(against="probes", probes=1), net, x, y, ("k",))
    assert math.isnan(float(one.standard_error))


def test_the_explicit_matrix_is_the_fisher_matrix():
    net, (x, y) = oracles.small_net(), oracles.data()
    live = oracles.live(net)
    from flattrain.core.functional import see

    seen = see(net, cross_entropy, x, y, params=live)
    mine = rank_gradient._matrix(seen, live, seen.outputs, create=False)
    wanted = oracles.fisher(net, nn.CrossEntropyLoss(), x, y, oracles.trainable(net))
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    assert float(value_of(fisher_rank(lam=LAM), net, cross_entropy, x, y)) == pytest.approx(
        rank(wanted), rel=1e-9
    )
