"""Labels that are replaced: how many, by what, and that only those of training are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from flattrain.core.probes import stream
from flattrain.problems.idx import fashion_mnist, mnist
from flattrain.problems.random_labels import randomised

HAS_IMAGES = (Path(os.environ.get("FLATTRAIN_DATA", "/nowhere")) / "mnist").is_dir()


def test_the_share_of_labels_that_are_replaced_uniformly():
    labels = torch.full((20_000,), 3)
    some, all_ = (randomised(labels, share, 10, stream(1)) for share in (0.4, 1.0))
    assert torch.equal(randomised(labels, 0.0, 10, stream(1)), labels)
    assert float((some != 3).float().mean()) == pytest.approx(0.4 * 0.9, abs=0.015)  # 4 standard errors
    counts = torch.bincount(all_, minlength=10) / len(all_)
    assert ((counts - 0.1).abs() < 0.0085).all()
    # What is replaced at a smaller share is replaced by the same at a larger one.
    assert torch.equal(some[some != 3], all_[some != 3])


@pytest.mark.skipif(not HAS_IMAGES, reason="the images are not here")
@pytest.mark.parametrize("data", [mnist, fashion_mnist])
def test_only_the_labels_of_training_are_random(data):
    true, random = (data(train=500, test=30, validation=40, random_labels=s)(2) for s in (0.0, 1.0))
    other = data(train=500, test=30, random_labels=1.0)(3)
    assert torch.equal(true.train_x, random.train_x) and torch.equal(true.test_y, random.test_y)
    assert torch.equal(true.validation_y, random.validation_y)
    assert float((true.train_y == random.train_y).float().mean()) == pytest.approx(0.1, abs=0.06)
    assert not torch.equal(random.train_y, other.train_y)
