"""Measures taken once, where training would have stopped.

    measures:
      along: [train_loss]
      stop: {quantity: train_loss, at_most: 0.1, measures: [relative_flatness, top_eigenvalue]}

The measures of `stop` are taken of each seed at the first milestone where its quantity is at or below the
level, and never again. Claims find them by `when: {quantity: train_loss, at_most: 0.1}`, along with what is
measured at every milestone. Stacked seeds train on until the last of them has stopped, so there is no end at
which to measure more. A seed that does not get there has no rows of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flattrain.ranges import Refused, refusal, suggest

KEYS = ("quantity", "at_most", "measures")


def read_stop(spec: Any, along: Sequence[str], end: Sequence[Any], where: str) -> dict[str, Any]:
    """Check the keys; the quantity must be measured along the way, and nothing at the end.

    The measures are checked by the caller.
    """
    if not isinstance(spec, dict) or set(spec) != set(KEYS):
        wrong = next((str(k) for k in spec if k not in KEYS), "") if isinstance(spec, dict) else ""
        raise Refused(f"{where}: give {', '.join(KEYS)}{suggest(wrong, KEYS)}")
    if end:
        raise Refused(f"{where}: training ends with it, so move what is measured at the end to its measures")
    if spec["quantity"] not in along:
        raise Refused(
            f"{where}.quantity: {spec['quantity']!r} is not measured along the way"
            + suggest(str(spec["quantity"]), along)
        )
    if problem := refusal("float", spec["at_most"]):
        raise Refused(f"{where}.at_most {problem}")
    return spec


def stopped(spec: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> set[int]:
    """The seeds that are at or below the level in any of the rows."""
    return {r["seed"] for r in rows if r["quantity"] == spec["quantity"] and r["value"] <= spec["at_most"]}


def all_stopped(
    spec: Mapping[str, Any] | None, rows: Iterable[Mapping[str, Any]], seeds: Iterable[int]
) -> bool:
    """Whether every seed has stopped; never where they are not to stop."""
    return spec is not None and stopped(spec, rows) >= set(seeds)
