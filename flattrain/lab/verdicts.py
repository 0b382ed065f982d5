"""From the table to a verdict for each claim. Torch is not needed: a verdict can be recomputed anywhere.

supported   the estimate lies where predicted, and the interval excludes the refuting region
refuted     the estimate lies in the refuting region, and the interval excludes the predicted one
undecided   neither; with the number of seeds that would decide it, if one would
void        a condition of the claim does not hold, or a run diverged: the test says nothing
missing     the table has no rows for it

The interval has the level of the claim, 95 % unless it says otherwise. With `sides: one` each of its ends
has that level, so it is the two-sided interval of level 2L − 1.

Under `correction: holm` the verdicts of a family of m claims err with at most the probability that one
claim alone is allowed (Holm 1979). Stepwise: all claims are judged with α/m where α = 1 − level; if some
are decided, k of them, the others are judged with α/(m − k), until none is added. What is then left is
undecided. m counts every claim of the family, void and missing ones too: it was fixed before the first run.
The interval shown stays the claim's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from flattrain.lab.claims import Claim
from flattrain.lab.estimates import estimate
from flattrain.lab.results import Table
from flattrain.lab.selection import NoRows, Void
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.replication import same_again
from flattrain.lab.statistics.seeds_needed import seeds_needed
from flattrain.lab.void_rules import apply_rules

FIRM = ("supported", "refuted")
MANY = 10_000


class Corrected(NamedTuple):
    """What Holm makes of a claim: the size of its family, the level it was judged at, the verdict without."""

    claims: int
    level: float
    alone: str
    interval: Interval

    def as_json(self) -> dict[str, Any]:
        return {
            "claims": self.claims,
            "level": self.level,
            "interval": [_finite(self.interval.low), _finite(self.interval.high)],
            "verdict_alone": self.alone,
        }


class Verdict(NamedTuple):
    """The verdict on one claim with the numbers behind it; `same_again` is the probability that other seeds
    give the same verdict, None where it is not firm."""

    claim: Claim
    verdict: str
    interval: Interval | None
    reason: str
    seeds_needed: int | None = None
    holm: Corrected | None = None
    same_again: float | None = None

    def as_json(self) -> dict[str, Any]:
        claim, found = self.claim, self.interval
        return {
            "verdict": self.verdict,
            "estimate": None if found is None else _finite(found.estimate),
            "interval": None if found is None else [_finite(found.low), _finite(found.high)],
            "level": claim.level,
            "sides": claim.sides,
            "n": 0 if found is None else found.n,
            "seeds_needed": self.seeds_needed,
            "same_again": self.same_again,
            "says": claim.says,
            "source": claim.source,
            "setting": claim.setting,
            "test": {claim.kind: claim.test},
            "predicts": str(claim.predicts),
            "refuted_if": str(claim.refuted_if or f"not {claim.predicts}"),
            "reason": self.reason,
            "holm": None if self.holm is None else self.holm.as_json(),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def judge_all(claims: Iterable[Claim], table: Table, correction: str = "none") -> list[Verdict]:
    """The verdicts of a recipe, in its order."""
    alone = [judge(claim, table) for claim in claims]
    if correction == "none":
        return alone
    found: dict[str, Verdict] = {}
    for family in dict.fromkeys(v.claim.family for v in alone):
        found |= _holm([v for v in alone if v.claim.family == family], table)
    return [found[v.claim.id] for v in alone]


def judge(claim: Claim, table: Table) -> Verdict:
    """Estimate, interval and verdict of one claim by itself."""
    try:
        apply_rules(claim.void_unless, claim.test, table)
        found = _interval(claim, table, 1 - claim.level)
    except NoRows as missing:
        return Verdict(claim, "missing", None, str(missing))
    except Void as void:
        return Verdict(claim, "void", None, str(void))
    verdict = _verdict(claim, found)
    if verdict in FIRM:
        return Verdict(
            claim, verdict, found, "", same_again=_same_again(claim, verdict, found, 1 - claim.level)
        )
    needed = _needed(claim, found)
    return Verdict(claim, verdict, found, _why(claim, found, needed), needed)


def _interval(claim: Claim, table: Table, alpha: float) -> Interval:
    return estimate(claim.kind, claim.test, table, claim.id, _level(claim, alpha))


def _level(claim: Claim, alpha: float) -> float:
    """Of the interval that errs with probability α; one-sided, at each of its ends."""
    return 1 - alpha if claim.sides == "two" else 1 - 2 * alpha


def _same_again(claim: Claim, verdict: str, found: Interval, alpha: float) -> float | None:
    """None also for what is said to hold always: seeds that agree say nothing of how often it fails."""
    if found.share and claim.predicts in (("at_least", 1), ("at_most", 0)):
        return None
    regions = (claim.predicts, claim.refuted_if or claim.predicts)
    bounds = [end for region in regions for end in region.ends if end is not None]
    return _finite(same_again(found, _level(claim, alpha), lambda o: _verdict(claim, o) == verdict, bounds))


def _verdict(claim: Claim, found: Interval) -> str:
    if claim.predicts.holds(found.estimate) and not claim.could_be_refuted(found.low, found.high):
        return "supported"
    if claim.refutes(found.estimate) and not claim.predicts.meets(found.low, found.high):
        return "refuted"
    return "undecided"


def _holm(family: list[Verdict], table: Table) -> dict[str, Verdict]:
    decided: dict[str, Verdict] = {}
    while True:
        step = len(family) - len(decided)
        open_ = [v for v in family if v.interval is not None and v.claim.id not in decided]
        judged = [_at_step(v, table, step, len(family)) for v in open_]
        firm = {v.claim.id: v for v in judged if v.verdict in FIRM}
        if not firm:
            left = {v.claim.id: v for v in judged}
            return {v.claim.id: v for v in family if v.interval is None} | left | decided
        decided |= firm


def _at_step(alone: Verdict, table: Table, step: int, claims: int) -> Verdict:
    claim = alone.claim
    alpha = (1 - claim.level) / step
    found = _interval(claim, table, alpha)
    verdict = _verdict(claim, found)
    corrected = Corrected(claims, 1 - alpha, alone.verdict, found)
    if verdict in FIRM:
        return alone._replace(holm=corrected, same_again=_same_again(claim, verdict, found, alpha))
    if alone.verdict not in FIRM:
        return alone._replace(holm=corrected)
    needed = _needed(claim, found)
    reason = (
        f"{alone.verdict} if it stood alone; among {claims} claims Holm's correction asks for "
        f"{100 * (1 - alpha):.4g} %, and that interval is [{found.low:.4g}, {found.high:.4g}]"
        f"; {_words(needed, found.n)}"
    )
    return Verdict(claim, verdict, alone.interval, reason, needed, corrected)


def _needed(claim: Claim, found: Interval) -> int | None:
    """How many seeds would decide it, None if none would."""
    if claim.predicts.holds(found.estimate):
        if claim.refuted_if is not None:
            return seeds_needed(found, *claim.refuted_if.gap(found.estimate))
        low, high = claim.predicts.ends
        return seeds_needed(found, low, high)
    if claim.refutes(found.estimate):
        return seeds_needed(found, *claim.predicts.gap(found.estimate))
    return None


def _why(claim: Claim, found: Interval, needed: int | None) -> str:
    if claim.predicts.holds(found.estimate):
        said = "as predicted, but the interval reaches where the claim would be refuted"
        return f"{said}; {_words(needed, found.n)}"
    if claim.refutes(found.estimate):
        return (
            f"against the prediction, but the interval reaches what was predicted; {_words(needed, found.n)}"
        )
    return (
        "the estimate lies between what was predicted and what would refute it; no number of seeds decides "
        "while it stays there"
    )


def _words(needed: int | None, n: int) -> str:
    if n < 2:
        return "one seed gives no interval"
    if needed is None:
        return "the estimate lies on the bound, so no number of seeds decides while it stays there"
    if needed > MANY:
        return f"more than {MANY:,} seeds would be needed to decide it"
    return f"about {needed} seeds would decide it, if the estimate stays"
