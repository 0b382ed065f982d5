"""One line for a quantity that cells define with different numbers."""

from __future__ import annotations

import pytest

from flattrain.lab.definitions import together


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["a b c", "a b c"], "a b c"),
        (["at λ = 0.1, exact", "at λ = 0.01, exact"], "at λ = {0.1, 0.01}, exact"),
        (["mean of L + 1", "mean of L + 2", "mean of L + 1"], "mean of L + {1, 2}"),
        (["one, two", "one; two"], "{one,, one;} two"),
        (["a", "a b"], "a | a b"),
        ([], ""),
    ],
)
def test_what_they_share_and_where_they_differ(lines, wanted):
    assert together(lines) == wanted
