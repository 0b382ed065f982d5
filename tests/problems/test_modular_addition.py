"""The sums are right, all there, and none is on both sides."""

from __future__ import annotations

import pytest
import torch

from flattrain.problems.modular_addition import modular_addition
from flattrain.ranges import Refused


def read(x):
    """The tokens of each sequence."""
    assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all()
    return x.argmax(-1).tolist()


def test_every_unordered_sum_is_there_once():
    split = modular_addition(p=7, train=17)(3)
    assert split.outputs == 7 and len(split.train_y) == 17 and len(split.test_y) == 28 - 17
    every = [*read(split.train_x), *read(split.test_x)]
    assert {(a, b) for a, b, _ in every} == {(a, b) for a in range(7) for b in range(a, 7)}
    assert all(sign == 7 for _, _, sign in every)
    classes = [*split.train_y.tolist(), *split.test_y.tolist()]
    assert classes == [(a + b) % 7 for a, b, _ in every]


def test_with_an_end_the_answer_is_given_where_the_end_is_asked_for():
    plain, ended = (modular_addition(p=7, train=17, answer=a)(3) for a in ("sum", "sum_and_end"))
    assert ended.outputs == 9
    for (a, b, sign, c), wanted, (a0, b0, _) in zip(
        read(ended.train_x), ended.train_y.tolist(), read(plain.train_x), strict=True
    ):
        assert (a, b, sign) == (a0, b0, 7) and wanted == [c, 8] and c == (a + b) % 7


def test_the_split_is_the_seeds_and_leaves_a_test_set():
    data = modular_addition(p=7, train=17)
    assert torch.equal(data(1).train_x, data(1).train_x) and not torch.equal(data(1).train_x, data(2).train_x)
    with pytest.raises(Refused, match="below the 28 sums"):
        modular_addition(p=7, train=28)
