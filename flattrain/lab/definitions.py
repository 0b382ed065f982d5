"""What a quantity is, in one line, where cells of a recipe define it with different numbers. No torch here.

A grid can set a setting of a measure: "at λ = 0.1, exact" in one cell and "at λ = 0.01, exact" in another are
"at λ = {0.1, 0.01}, exact".
"""

from __future__ import annotations

from collections.abc import Iterable


def together(definitions: Iterable[str]) -> str:
    """The words that they share, and in braces those in which they differ; side by side if more differs."""
    every = list(dict.fromkeys(definitions))
    words = [line.split(" ") for line in every]
    if len({len(line) for line in words}) > 1:
        return " | ".join(every)
    return " ".join(_one(dict.fromkeys(column)) for column in zip(*words, strict=True))


def _one(column: Iterable[str]) -> str:
    found = list(column)
    if len(found) == 1:
        return found[0]
    mark = found[0][-1:] if found[0][-1:] in (",", ";") and len({w[-1:] for w in found}) == 1 else ""
    return "{" + ", ".join(w.removesuffix(mark) for w in found) + "}" + mark
