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


def table_of_arrays(arrays):
    """{quantity: (arm, n, seed)}, of the arms a and b at n = 10, 20, 30 -> Table."""
    return table_of(
        {
            ("ab"[k], n, quantity): list(v[k, j])
            for quantity, v in arrays.items()
            for k in (0, 1)
            for j, n in enumerate((10, 20, 30))
        }
    )


def claim(test, predicts, **more):
    spec = {"says": "x", "test": test, "predicts": predicts} | more
    return read_claims({"c": spec}, SCOPE)[0]


def verdict(test, predicts, values, **more):
    return judge(claim(test, predicts, **more), values if isinstance(values, Table) else table_of(values))


def interval(test, table):
    """The estimate of a test with its ends; a table that gives none fails here, with the reason."""
    found = verdict(test, {"above": -100}, table)
    assert found.verdict == "supported", found.reason
    return found.interval
