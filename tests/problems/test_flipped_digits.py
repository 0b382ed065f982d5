"""Digits with a share of their labels flipped, in the test set as in the training set."""

from __future__ import annotations

import pytest
import torch

from flattrain.problems.digits import digits
from flattrain.ranges import Refused


def changed(share, part, seed=0, **more):
    clean, noisy = digits(**more)(seed), digits(flipped=share, **more)(seed)
    assert torch.equal(getattr(clean, f"{part}_x"), getattr(noisy, f"{part}_x"))
    return getattr(clean, f"{part}_y"), getattr(noisy, f"{part}_y")


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_the_share_is_flipped_to_other_classes_in_every_part(part):
    more = {"train": 500, "test": 797, "validation": 400}
    found = [changed(0.3, part, seed, **more) for seed in range(5)]
    rate = torch.cat([(a != b).double() for a, b in found]).mean()
    assert rate == pytest.approx(0.3, abs=0.04)  # 2,000 coins or more: four standard deviations
    moved = torch.cat([(b - a)[a != b] % 10 for a, b in found])
    assert set(moved.tolist()) == set(range(1, 10))


def test_all_or_none_and_other_seeds_flip_others():
    a, b = changed(1.0, "train")
    assert bool((a != b).all())
    assert torch.equal(*changed(0.0, "train"))
    first, second = ((x != y).tolist()[:200] for x, y in (changed(0.5, "train", s) for s in (0, 1)))
    assert first != second


def test_one_hot_targets_follow_and_the_share_is_a_share():
    split = digits(train=100, flipped=0.5, targets="one_hot")(3)
    assert torch.equal(split.train_y.argmax(1), digits(train=100, flipped=0.5)(3).train_y)
    with pytest.raises(Refused):
        digits(flipped=1.5)
