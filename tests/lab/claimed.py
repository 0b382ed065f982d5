"""Tables and claims made by hand, for tests of verdicts."""

from __future__ import annotations

from flattrain.lab.claims import read_claims
from flattrain.lab.results import Row, Table
from flattrain.lab.scope import Scope
from flattrain.lab.verdicts import judge

SCOPE = Scope(("a", "b", "c", "d"), {"n": {10, 20, 30}, "kind": {"p", "q"}}, ("loss", "error", "trace"))


def table_of(values):
    """{(arm, n, quantity): per-seed list, or per-seed lists by step} -> Table."""
    rows = []
    for (arm, n, quantity), seeds in values.items():
        for seed, value in enumerate(seeds):
            for step, v in enumerate(value if isinstance(value, list) else [value]):
                rows.append(Row(arm, (("n", str(n)),), seed, step, quantity, float(v), 0.0))
    return Table(rows)


def claim(test, predicts, **more):
    spec = {"says": "x", "test": test, "predicts": predicts} | more
    return read_claims({"c": spec}, SCOPE)[0]


def verdict(test, predicts, values, **more):
    return judge(claim(test, predicts, **more), values if isinstance(values, Table) else table_of(values))
