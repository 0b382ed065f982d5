"""The rows of the curvature benchmark as a Markdown page and as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.agreement import DRAWS, FEW, SIGMAS
from benchmarks.cases import Group

PACKAGES = (
    "flattrain", "torch", "curvlinops-for-pytorch", "PyHessian", "nngeometry", "backpack-for-pytorch",
    "laplace-torch", "asdfghjkl", "scipy",
)  # fmt: skip
WORDS = {
    "detached": "has the quantity, or its parts, but no gradient through it",
    "absent": "does not have the quantity",
    "shortcuts": "does not take a network with shortcuts",
    "convention": "means other factors by a convolution's (`benchmarks.peers`)",
    "not installed": "was not there",
}


@dataclass
class Row:
    group: str
    network: str
    method: str
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    milliseconds: float | None = None
    deviation: float | None = None
    unit: str = ""
    agrees: bool | None = None
    megabytes: float | None = None  # that the peak resident set rises by
    columns: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    rounds: int = 0


def machine() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def as_json(rows: list[Row]) -> str:
    return json.dumps({**machine(), "rows": [asdict(r) for r in rows]}, indent=1) + "\n"


def from_json(text: str) -> list[Row]:
    return [Row(**row) for row in json.loads(text)["rows"]]


def as_markdown(groups: list[Group], rows: list[Row]) -> str:
    about = machine()
    listed = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    words = "; ".join(f"*{word}* {meaning}" for word, meaning in WORDS.items())
    parts = [
        "# Benchmarks\n",
        "Written by `python -m benchmarks.curvature --write`: processor time on one thread of a "
        f"{about['machine']} machine with {about['cores']} cores, float32, Python {about['python']}; "
        f"{listed}. The methods of a group take turns in random order in one process; a figure is the median "
        "over rounds of the ratio to the plain training step of the same round, with the "
        "quartiles in brackets, so 1 is the price of not regularizing. For the top eigenvalue the unit is "
        "one gradient.\n",
        "*Deviation* is how far a method is from flattrain's first row in what it computes: ‖v − r‖/‖r‖ "
        "of the gradient of the penalised step or of the factors in float64, or, for unbiased estimates (σ), "
        f"that of the mean of {DRAWS} draws ({FEW} on residual nets) in standard errors, which should stay "
        f"below {SIGMAS:g}. *Memory* is the rise of the peak resident set, as a multiple of the plain "
        "step's. On the BN-ResNet the plain step is in train mode.\n",
        f"A method without a figure has a word: {words}.\n",
    ]
    for group in groups:
        own = [r for r in rows if r.group == group.key]
        if own:
            parts.append(_table(group, own))
    return "\n".join(parts)


def _table(group: Group, rows: list[Row]) -> str:
    extra = list(dict.fromkeys(name for r in rows for name in r.columns))
    base = rows[0].megabytes
    unit = "plain steps" if group.baseline == "step" else "gradients"
    head = ["method", unit, "ms", "deviation", *(["memory"] if base else []), *extra, ""]
    rule = ["---", *["---:"] * (len(head) - 2), "---"]
    title = f"## {group.title} — {group.network}\n"
    lines = [title, f"{rows[0].rounds} rounds.\n", _line(head), _line(rule)]
    for r in rows:
        cells = [
            r.method,
            _ratio(r),
            "" if r.milliseconds is None else f"{r.milliseconds:.1f}",
            _deviation(r),
        ]
        cells += [_short(r.megabytes and r.megabytes / base)] if base else []
        cells += [_number(r.columns[name]) if name in r.columns else "" for name in extra]
        lines.append(_line([*cells, r.remark]))
    return "\n".join(lines) + "\n"


def _number(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(r: Row) -> str:
    if r.ratio is None or r.quartiles is None:
        return "–"
    return f"**{r.ratio:.2f}** [{r.quartiles[0]:.2f}, {r.quartiles[1]:.2f}]"


def _deviation(r: Row) -> str:
    if r.deviation is None:
        return ""
    text = f"{r.deviation:.0e}" if r.unit == "relative" else f"{r.deviation:.1f} σ"
    return text if r.agrees else f"**{text}, disagrees**"
