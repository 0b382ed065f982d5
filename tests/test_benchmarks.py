"""The benchmark of curvature notices a method that computes something else, and says what it has not got."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import cases, groups
from benchmarks.agreement import deviations
from benchmarks.cases import Group, Method, training
from benchmarks.page import Row, as_markdown
from benchmarks.timing import interleave


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(cases.NETWORKS, "MLP, small", lambda: nn.Linear(784, 10))


def step(factor, noise=0.0):
    def work(p):
        def objective():
            loss = factor * F.cross_entropy(p.net(p.x), p.y)
            return loss, loss.item() + noise * float(torch.randn(()))

        return training(p, objective)

    return work


def group(*methods):
    return Group(
        "small", "A small group", "MLP, small", (Method("ours", step(1), check="reference"), *methods)
    )


def test_a_different_gradient_is_noticed():
    made = group(Method("same", step(1)), Method("other", step(1.001)))
    found = deviations(made, list(made.methods))
    assert found["same"].agrees and not found["other"].agrees
    assert found["other"].size == pytest.approx(1e-3)


def test_a_biased_estimate_is_noticed():
    made = group(
        Method("unbiased", step(1, 0.01), check="mean"), Method("biased", step(1.1, 0.01), check="mean")
    )
    found = deviations(made, list(made.methods))
    assert found["unbiased"].agrees and not found["biased"].agrees


def test_ratios_are_to_the_plain_step_of_the_same_round():
    x = torch.randn(200, 200)
    found = interleave(lambda: x @ x, {"thrice": lambda: x @ x @ x @ x}, repeats=25)
    assert found["plain"][:3] == (1, 1, 1)
    assert 1.5 < found["thrice"].median < 6


def test_a_missing_package_has_a_row_that_says_so():
    absent = Method("theirs", step(1), needs="no_such_package")
    made = group(absent)
    assert groups.missing(absent) == "not installed"
    rows = [
        Row("small", "MLP, small", "plain step", 1.0, (1.0, 1.0), 1.5, megabytes=2.0),
        Row("small", "MLP, small", "ours", 2.0, (1.9, 2.1), 3.0, megabytes=5.0),
        Row("small", "MLP, small", "theirs", remark="not installed"),
    ]
    page = as_markdown([made], rows)
    assert "| ours | **2.00** [1.90, 2.10] | 3.0 |  | 2.5 |  |" in page
    assert "| theirs | – |  |  |  | not installed |" in page


def test_keys_are_distinct_and_every_group_has_a_network():
    keys = [g.key for g in groups.GROUPS]
    assert len(set(keys)) == len(keys)
    assert all(g.network in cases.TRAINED or g.network in cases.NETWORKS for g in groups.GROUPS)
    with pytest.raises(SystemExit, match="there are: head-mlp"):
        groups.chosen("nothing")
