"""What each measure adds to a training step as the model grows: counted operations against measured time.

    python -m benchmarks.scale [--repeats 7] [--write]

An MLP of three hidden layers of one width, cross-entropy, at three widths; at the middle one also with twice
the batch and with twice the classes, for the operations alone. The operations are those of matrix products,
as torch counts them; the bytes are what autograd keeps in the whole step. Times are on one thread, each the
median of per-round ratios to the plain step (`benchmarks.timing`). `--write` puts the table between the marks
in docs/scale.md and the numbers into docs/benchmarks-scale.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.timing import interleave
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import draw, stream
from flattrain.lab import catalog
from flattrain.problems.networks import mlp
from flattrain.problems.split import Split
from flattrain.training.objective import Penalty, build

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MEASURES: dict[str, tuple[str, dict[str, Any]]] = {
    "relative flatness, head": ("relative_flatness", {"layer": "head"}),
    "relative flatness, hidden, 1 probe": ("relative_flatness", {"layer": "hidden2", "probes": 1}),
    "Gauss–Newton trace, sketch": ("gauss_newton_trace", {"columns": "sketch"}),
    "Gauss–Newton trace, exact": ("gauss_newton_trace", {}),
    "Hessian trace, 1 probe": ("hessian_trace", {"probes": 1}),
    "squared gradient norm": ("squared_gradient_norm", {}),
    "soft rank, sketch": ("soft_rank", {"columns": "sketch"}),
    "soft rank, exact": ("soft_rank", {}),
    "Fisher rank, sketch": ("fisher_rank", {"columns": "sketch"}),
    "average sharpness, 1 probe": ("average_sharpness", {"probes": 1}),
}


class Size(NamedTuple):
    width: int
    batch: int = 64
    classes: int = 10


SIZES = (Size(128), Size(256), Size(512))
WIDER = {"n": Size(256, batch=128), "K": Size(256, classes=20)}


class Counted(NamedTuple):
    flops: float
    kept: float  # bytes


def step(size: Size, measure: str | None) -> Callable[[], None]:
    """Loss, penalty and backward; the parameters stay where they are."""
    n, inputs = size.batch, size.width
    x = torch.randn(n, inputs, generator=stream("x"))
    y = torch.randint(size.classes, (n,), generator=stream("y"))
    model = mlp(widths=(size.width,) * 3)
    net = model.build(Split(x, y, x, y, size.classes))
    penalties = []
    if measure is not None:
        name, arguments = MEASURES[measure]
        penalties = [
            Penalty(catalog.build(catalog.choose(catalog.PENALTIES, {name: arguments}, "scale")), 1e-3)
        ]
    objective = build(net, cross_entropy, penalties)
    noise = draw(objective.draws(objective.see(x, y)), stream("noise"))

    def run() -> None:
        net.zero_grad()
        objective.total(objective.see(x, y), noise)[0].backward()

    return run


class Counter(TorchDispatchMode):
    """Adds up torch's own counts; its FlopCounterMode hooks modules, which jets do not pass."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count(run: Callable[[], None]) -> Counted:
    """Operations of matrix products, and the bytes that autograd keeps, each storage once."""
    kept: dict[int, Any] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t  # holding it, so that no address is used again
        return t

    with (
        Counter() as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        run()
    return Counted(counter.flops, sum(t.untyped_storage().nbytes() for t in kept.values()))


def measure(repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"measure": name} for name in MEASURES]
    for size in (*SIZES, *WIDER.values()):
        plain = count(step(size, None))
        for row in rows:
            found = count(step(size, row["measure"]))
            row[_key("flops", size)] = found.flops / plain.flops
            row[_key("kept", size)] = found.kept / plain.kept
    for size in SIZES:
        works = {name: step(size, name) for name in MEASURES}
        times = interleave(step(size, None), works, repeats)
        for row in rows:
            its = times[row["measure"]]
            row[_key("time", size)] = its.median
            row[_key("quartiles", size)] = (its.low, its.high)
    return rows


def _key(what: str, size: Size) -> str:
    return f"{what} {size.width} {size.batch} {size.classes}"


def as_markdown(rows: list[dict[str, Any]], repeats: int) -> str:
    widths = " | ".join(f"time, {s.width}" for s in SIZES)
    lines = [
        f"| penalty | operations {' / '.join(str(s.width) for s in SIZES)} | 2n | 2K | kept | {widths} |",
        "|---|---|---|---|---|" + "---|" * len(SIZES),
    ]
    for row in rows:
        flops = " / ".join(f"{row[_key('flops', s)]:.2f}" for s in SIZES)
        wider = " | ".join(f"{row[_key('flops', s)]:.2f}" for s in WIDER.values())
        kept = f"{row[_key('kept', SIZES[-1])]:.1f}"
        times = " | ".join(
            "{:.2f} ({:.2f}–{:.2f})".format(row[_key("time", s)], *row[_key("quartiles", s)]) for s in SIZES
        )
        lines.append(f"| {row['measure']} | {flops} | {wider} | {kept} | {times} |")
    lines += [
        "",
        f"torch {torch.__version__}, one thread of a shared machine, {repeats} rounds; quartiles in brackets",
    ]
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], table: str) -> None:
    (DOCS / "benchmarks-scale.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page = DOCS / "scale.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="What each measure adds to a step as the model grows.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--write", action="store_true", help="write docs/scale.md and docs/benchmarks-scale.json"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = measure(given.repeats)
    table = as_markdown(rows, given.repeats)
    print(table)
    if given.write:
        write(rows, table)


if __name__ == "__main__":
    main()
