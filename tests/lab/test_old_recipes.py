"""Runs of older versions can be reported on; what cannot be read gets a line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from flattrain.lab.compose import composed
from flattrain.lab.old_recipes import recipe_of_run
from flattrain.ranges import Refused
from recipes import write


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return composed(["recipe=tiny"])


def test_keys_that_came_later_have_their_defaults(recipe):
    old = copy.deepcopy(recipe.raw)
    for key in ("step_size", "average", "backend", "data"):
        del old[key]
    del old["train"]["spacing"]
    again = recipe_of_run(Path("run"), {"name": "tiny", "recipe": old})
    assert again.raw == recipe.raw and again.key == recipe.key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train", 3),
        ("train", {"was": 1}),
        ("arms", {}),
        ("arms", 3),
        ("measures", {}),
        ("grid", [1]),
        ("seeds", "x"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_file(recipe, key, value):
    broken = recipe.raw | {key: value}
    with pytest.raises(Refused, match=r"^run/run\.json: "):
        recipe_of_run(Path("run"), {"name": "tiny", "recipe": broken})
