"""One whole study: run the cells, write the table, judge the claims, write the report."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flattrain import __version__
from flattrain.lab import results
from flattrain.lab.device import named
from flattrain.lab.execute import (
    estimate_seconds,
    load_result,
    locked,
    preflight,
    rows_of,
    run_cells,
)
from flattrain.lab.page import write_page
from flattrain.lab.progress import duration, progress_bar
from flattrain.lab.recipe import Recipe, read
from flattrain.lab.report import write_report
from flattrain.lab.summary import print_summary
from flattrain.lab.together import processes
from flattrain.lab.tracking import tracker
from flattrain.lab.verdicts import Verdict, judge
from flattrain.ranges import Refused

TABLE, VERDICTS, RECORD = "results.csv", "verdicts.json", "run.json"
REPORT, PAGE = "report.html", "report.md"


def folder_of(recipe: Recipe) -> Path:
    """out=FOLDER, or runs/NAME-HASH: the same trial finds its own folder again."""
    out = recipe.raw["out"]
    return Path(out) if out else Path("runs") / f"{recipe.name}-{recipe.key[:8]}"


def study(recipe: Recipe, command: str) -> int:
    """Run (or resume) the recipe; print the verdicts."""
    if recipe.raw["tracking"] not in ("none", "wandb"):
        raise Refused(f"tracking must be one of none, wandb, got {recipe.raw['tracking']!r}")
    folder = folder_of(recipe)
    preflight([c for c in recipe.cells if load_result(folder, c) is None], recipe.raw["data"]["root"])
    with locked(folder):
        record = _open_record(folder, recipe, command)
        track = tracker(recipe.raw["tracking"], recipe, folder)
        total = sum(cell.steps for cell in recipe.cells)
        with progress_bar(recipe.title, total) as advance:
            run_cells(
                recipe,
                folder,
                jobs=recipe.raw["jobs"],
                on_progress=advance,
                on_cell=lambda cell, result: track.cell(cell, rows_of(cell, result)),
            )
        _collect(folder, recipe, record)
        verdicts = _judge(folder, recipe)
        track.finish(verdicts, folder)
        print_summary(recipe, verdicts, folder)
    return 0


def report_again(folder: Path) -> int:
    """Verdicts and report from the files of a run folder; torch is not imported."""
    record = _read_record(folder)
    recipe = read(record["name"], record["recipe"])
    verdicts = _judge(folder, recipe)
    print_summary(recipe, verdicts, folder)
    return 0


def dry_run(recipe: Recipe) -> int:
    """Print the resolved recipe and what it would cost."""
    from omegaconf import OmegaConf

    shown = {k: v for k, v in recipe.raw.items() if k not in ("presets", "dry_run")}
    print(OmegaConf.to_yaml(OmegaConf.create(shown)), end="")
    folder = folder_of(recipe)
    todo = [cell for cell in recipe.cells if load_result(folder, cell) is None]
    runs = sum(cell.spec["seeds"] for cell in todo)
    steps = sum(cell.steps * cell.spec["seeds"] for cell in todo)
    seconds = estimate_seconds(recipe, todo, recipe.raw["jobs"])
    print(
        f"# {len(recipe.cells)} cells, of which {len(todo)} are to be run: {runs} runs, "
        f"{steps:,} steps\n# results in {folder}\n# estimated time: {duration(seconds)}"
    )
    return 0


def _open_record(folder: Path, recipe: Recipe, command: str) -> dict[str, Any]:
    """Write what is about to run, before it runs; keep the first start if the trial is the same."""
    path = folder / RECORD
    known = json.loads(path.read_text()) if path.exists() else {}
    if known and known.get("key") != recipe.key:
        raise Refused(
            f"{folder} holds another trial (other arms, seeds, claims or code); choose another out=FOLDER"
        )
    record = {
        "name": recipe.name,
        "key": recipe.key,
        "command": command,
        "started": known.get("started", datetime.now(UTC).isoformat(timespec="seconds")),
        "versions": _versions(),
        "commit": _commit(),
        "device": named(recipe.raw["device"]),
        "processes": processes(),
        "recipe": recipe.raw,
    }
    _write(path, json.dumps(record, indent=2))
    return record


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record["name"], record["recipe"]["claims"]
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(
            f"{folder}: not a run folder (no readable {RECORD}); give a folder under runs/"
        ) from None


def _collect(folder: Path, recipe: Recipe, record: dict[str, Any]) -> None:
    """The cells' rows as one table, in the order of the recipe."""
    rows: list[results.Row] = []
    definitions: dict[str, str] = {}
    backends: dict[str, str] = {}
    seconds = 0.0
    for cell in recipe.cells:
        result = load_result(folder, cell)
        assert result is not None
        rows += rows_of(cell, result)
        definitions |= result["definitions"]
        backends[cell.label] = result["backend"]
        seconds += result["seconds"]
    _write(folder / TABLE, results.write(rows, recipe.axes))
    done = record | {
        "definitions": definitions,
        "backends": backends,
        "core_seconds": round(seconds, 1),
    }
    _write(folder / RECORD, json.dumps(done, indent=2))


def _judge(folder: Path, recipe: Recipe) -> list[Verdict]:
    table = results.read(folder / TABLE)
    verdicts = [judge(claim, table) for claim in recipe.claims]
    content = {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "claims": {v.claim.id: v.as_json() for v in verdicts},
    }
    _write(folder / VERDICTS, json.dumps(content, indent=2))
    record = _read_record(folder)
    write_report(folder / REPORT, recipe, record, table, verdicts)
    write_page(folder / PAGE, recipe, record, verdicts)
    return verdicts


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror})") from None


def _versions() -> dict[str, str]:
    found = {
        "flattrain": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
    }
    for name in ("torch", "torchopt", "numba", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str:
    """The commit of the code that runs, marked if it was changed; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
