"""Validation examples: in neither the training nor the test set, and the training set does not feel them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from flattrain.problems.ball import ball
from flattrain.problems.digits import digits
from flattrain.problems.idx import fashion_mnist, mnist
from flattrain.problems.matrix_sensing import matrix_sensing
from flattrain.problems.parity import parity
from flattrain.problems.radial import radial
from flattrain.ranges import Refused

HAS_IMAGES = (Path(os.environ.get("FLATTRAIN_DATA", "/nowhere")) / "mnist").is_dir()


def rows(x):
    """The examples as hashable values."""
    return [tuple(row.tolist()) for row in x.flatten(1)]


def test_no_seed_of_digits_trains_or_chooses_on_the_test_examples_of_another():
    from sklearn.datasets import load_digits

    every = rows(torch.tensor(load_digits().data / 16, dtype=torch.float32))
    twice = {row for row in every if every.count(row) > 1}  # images that the data set has twice
    data = digits(train=600, test=300, validation=400)
    tests = {row for seed in range(4) for row in rows(data(seed).test_x)} - twice
    assert len(tests) > 290
    for seed in range(4):
        split = data(seed)
        train, validation = set(rows(split.train_x)), set(rows(split.validation_x))
        assert len(split.train_y) == 600 and len(split.validation_y) == 400 and len(split.test_y) == 300
        assert not (train & validation) - twice and not (train | validation) & tests
    assert not torch.equal(data(0).validation_x, data(1).validation_x)


def test_the_pool_of_digits_does_not_depend_on_the_size_of_the_test_set():
    few, many = (digits(train=100, test=n, validation=50)(3) for n in (10, 797))
    assert torch.equal(few.train_x, many.train_x) and torch.equal(few.validation_x, many.validation_x)


@pytest.mark.skipif(not HAS_IMAGES, reason="the images are not here")
@pytest.mark.parametrize("data", [mnist, fashion_mnist])
def test_images_are_held_out_of_the_training_pool(data):
    plain, held = data(train=300, test=20)(1), data(train=300, test=20, validation=200)(1)
    assert plain.validation_x is None
    assert torch.equal(plain.train_x, held.train_x) and torch.equal(plain.test_x, held.test_x)
    assert held.validation_x.shape == (200, 1, 28, 28)
    assert not set(rows(held.train_x)) & set(rows(held.validation_x))
    with pytest.raises(Refused, match=r"asked for 60000 \+ 1 for validation"):
        data(train=60_000, validation=1)


@pytest.mark.parametrize(
    "data",
    [parity, ball, radial, partial(matrix_sensing, size=5)],
    ids=["parity", "ball", "radial", "matrices"],
)
def test_what_is_drawn_has_validation_examples_of_its_own(data):
    plain, held = data(train=40, test=30)(2), data(train=40, test=30, validation=50)(2)
    assert plain.validation_x is None and plain.validation_y is None
    assert torch.equal(plain.train_x, held.train_x) and torch.equal(plain.test_x, held.test_x)
    seen = set(rows(held.train_x)) | set(rows(held.test_x))
    assert len(rows(held.validation_x)) == 50 and not seen & set(rows(held.validation_x))
    assert held.validation_y.shape == (50,)


def test_validation_examples_have_the_same_target():
    x, y = parity(train=4, test=3, validation=50)(2)[-2:]
    assert torch.equal(y, x[:, 0] * x[:, 1])
    x, y = ball(train=4, test=3, validation=50)(2)[-2:]
    assert torch.equal(y, x[:, 0].abs() - x[:, 1].abs())
    split = matrix_sensing(size=4, rank=1, train=32, test=3, validation=20)(0)
    matrix = torch.linalg.lstsq(split.train_x.flatten(1).double(), split.train_y.double()).solution
    torch.testing.assert_close(split.validation_x.flatten(1).double() @ matrix, split.validation_y.double())


def test_more_than_there_is_is_refused():
    for sizes in ({"train": 900, "validation": 101}, {"test": 798, "validation": 1, "train": 5}):
        with pytest.raises(Refused, match="with a validation split, test must be <= 797"):
            digits(**sizes)
