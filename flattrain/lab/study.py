"""One whole study: run the cells, write the table, judge the claims, write the report."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from flattrain import __version__
from flattrain.lab import results
from flattrain.lab.budget import affordable
from flattrain.lab.cells import Store, library_versions, rows_of
from flattrain.lab.definitions import together
from flattrain.lab.derived import with_derived
from flattrain.lab.device import named
from flattrain.lab.execute import (
    estimate_seconds,
    executor_of,
    locked,
    missing,
    preflight,
    results_of,
    run_cells,
    steps_of,
)
from flattrain.lab.executors.job import Executor
from flattrain.lab.old_recipes import recipe_of_run
from flattrain.lab.page import write_page
from flattrain.lab.progress import duration, progress_bar
from flattrain.lab.recipe import Recipe
from flattrain.lab.registration import keep_earlier, known, registered, said
from flattrain.lab.report import write_report
from flattrain.lab.run_folder import PAGE, RECORD, REPORT, TABLE, VERDICTS
from flattrain.lab.summary import print_summary
from flattrain.lab.together import processes
from flattrain.lab.tracking import tracker
from flattrain.lab.tuning import Plan, plan, trials_of, tuned
from flattrain.lab.verdicts import Verdict, judge_all
from flattrain.ranges import Refused
from flattrain.training.atomic import write_atomically


def folder_of(recipe: Recipe) -> Path:
    """out=FOLDER, or runs/NAME-HASH: the same trial finds its own folder again."""
    out = recipe.raw["out"]
    return Path(out) if out else Path("runs") / f"{recipe.name}-{recipe.key[:8]}"


def store_of(recipe: Recipe) -> Store:
    """store=FOLDER, or `cells` in out=FOLDER, or runs/cells, which all recipes share."""
    given = recipe.raw["store"]
    return Store(Path(given) if given else Path(recipe.raw["out"] or "runs") / "cells")


def try_in_small(recipe: Recipe) -> Executor:
    """Refuse here and now what an affordable recipe could not run; the executor that is to run it."""
    if recipe.raw["tracking"] not in ("none", "wandb"):
        raise Refused(f"tracking must be one of none, wandb, got {recipe.raw['tracking']!r}")
    executor, store = executor_of(recipe), store_of(recipe)
    preflight([*missing(trials_of(recipe), store), *missing(recipe, store)], recipe.raw["data"]["root"])
    return executor


def study(recipe: Recipe, command: str) -> int:
    """Run (or resume) the recipe; print the verdicts."""
    recipe = affordable(recipe)
    executor = try_in_small(recipe)
    folder, store, trials = folder_of(recipe), store_of(recipe), trials_of(recipe)
    with locked(folder):
        record = _open_record(folder, recipe, command)
        track = tracker(recipe.raw["tracking"], recipe, folder)
        if trials.cells:
            recipe, record["tuning"] = _tune(store, executor, recipe, trials)
            _write(folder / RECORD, json.dumps(record, indent=2))
        with progress_bar(recipe.title, steps_of(recipe)) as advance:
            run_cells(
                recipe,
                store,
                executor,
                on_progress=advance,
                on_cell=lambda cell, found: track.cell(
                    cell, [row for r in found for row in rows_of(cell, r)]
                ),
            )
        _collect(folder, store, recipe, record)
        record = _read_record(folder)  # as a later report will find it
        verdicts = _judge(folder, recipe, record)
        _print(recipe, verdicts, folder, record)
        track.finish(verdicts, folder)
    return 0


def _tune(store: Store, executor: Executor, recipe: Recipe, trials: Recipe) -> tuple[Recipe, Plan]:
    """The first stage: run the trials, and choose."""
    with progress_bar(f"{recipe.title}: trials of the settings", steps_of(trials)) as advance:
        run_cells(trials, store, executor, on_progress=advance, on_cell=lambda cell, found: None)
    return _choose(store, recipe)


def _choose(store: Store, recipe: Recipe) -> tuple[Recipe, Plan]:
    return tuned(recipe, lambda cell: [row for r in results_of(cell, store) for row in rows_of(cell, r)])


def report_again(folder: Path) -> int:
    """Verdicts and report from the files of a run folder; torch is not imported."""
    record = _read_record(folder)
    recipe = recipe_of_run(folder, record)
    verdicts = _judge(folder, recipe, record)
    _print(recipe, verdicts, folder, record)
    return 0


def dry_run(recipe: Recipe) -> int:
    """Print the resolved recipe and what it would cost."""
    from omegaconf import OmegaConf

    shown = {k: v for k, v in recipe.raw.items() if k not in ("presets", "dry_run")}
    print(OmegaConf.to_yaml(OmegaConf.create(shown)), end="")
    recipe = affordable(recipe)
    folder = folder_of(recipe)
    executor_of(recipe)
    trials, seconds = trials_of(recipe), 0.0
    if trials.cells and not missing(trials, store_of(recipe)):
        recipe, _ = _choose(store_of(recipe), recipe)
    stages = {"first stage, tuning: ": trials, "second stage: ": recipe} if trials.cells else {"": recipe}
    for stage, part in stages.items():
        todo = missing(part, store_of(recipe))
        runs = sum(block.spec["seeds"] for block in todo)
        steps = sum(block.steps * block.spec["seeds"] for block in todo)
        seconds += estimate_seconds(todo, recipe.raw["data"]["root"], recipe.raw["jobs"])
        cells = len({block.cell.label for block in todo})
        print(
            f"# {stage}{len(part.cells)} cells, of which {cells} are to be run: {runs} runs, {steps:,} steps"
        )
    print(f"# results in {folder}\n# estimated time: {duration(seconds)}")
    return 0


def _open_record(folder: Path, recipe: Recipe, command: str) -> dict[str, Any]:
    """Write what is about to run, before it runs; a changed trial in the folder is one more registration."""
    path = folder / RECORD
    before = known(path)
    if before and before["name"] != recipe.name:
        raise Refused(
            f"{folder} holds recipe {before['name']!r}, not {recipe.name!r}; choose another out=FOLDER"
        )
    entries = registered(folder, recipe, siblings=not recipe.raw["out"])
    if before and before["key"] != recipe.key:
        keep_earlier(folder, before["key"])
    record = {
        "name": recipe.name,
        "key": recipe.key,
        "command": command,
        "started": entries[-1]["time"],
        "registrations": entries,
        "versions": _versions(),
        "commit": _commit(),
        "device": named(recipe.raw["device"]),
        "processes": processes(),
        "recipe": recipe.raw,
        "tuning": plan(recipe),
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


def _collect(folder: Path, store: Store, recipe: Recipe, record: dict[str, Any]) -> None:
    """Write the cells' rows as one table, in the order of the recipe, and complete the record."""
    rows: list[results.Row] = []
    definitions: dict[str, list[str]] = {}
    backends: dict[str, str] = {}
    seconds = 0.0
    diverged: list[dict[str, Any]] = []
    for cell in recipe.cells:
        for result in results_of(cell, store):
            rows += with_derived(rows_of(cell, result), recipe.derived)
            for quantity, words in result["definitions"].items():
                definitions.setdefault(quantity, []).append(words)
            backends[cell.label] = result["backend"]
            diverged += [{"cell": cell.label, **entry} for entry in result["diverged"]]
            seconds += result["seconds"]
    meaning = {quantity: together(words) for quantity, words in definitions.items()}
    meaning |= {d.name: d.definition for d in recipe.derived}
    _write(folder / TABLE, results.write(rows, recipe.axes))
    done = record | {
        "definitions": meaning,
        "backends": backends,
        "diverged": diverged,
        "core_seconds": round(seconds, 1),
    }
    _write(folder / RECORD, json.dumps(done, indent=2))


def _judge(folder: Path, recipe: Recipe, record: dict[str, Any]) -> list[Verdict]:
    table = results.read(folder / TABLE)
    verdicts = judge_all(recipe.claims, table, recipe.correction)
    content = {
        "recipe": recipe.name,
        "paper": recipe.paper,
        "claims": {v.claim.id: v.as_json() for v in verdicts},
    }
    _write(folder / VERDICTS, json.dumps(content, indent=2))
    figures = write_report(folder / REPORT, recipe, record, table, verdicts)
    write_page(folder / PAGE, recipe, record, verdicts, figures)
    return verdicts


def _print(recipe: Recipe, verdicts: list[Verdict], folder: Path, record: dict[str, Any]) -> None:
    """The summary, with what the reader of a verdict must not miss."""
    lost, notes = record.get("diverged", []), []
    if lost:
        first = f"{lost[0]['cell']} seed {lost[0]['seed']}: {lost[0]['why']}"
        runs = f"{len(lost)} run{'s' if len(lost) > 1 else ''}"
        notes.append(f"diverged: {runs}, the first {first}; all are in {RECORD}")
    if said(record):
        notes.append(said(record))
    print_summary(recipe, verdicts, folder, notes)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise Refused(
            f"{path}: cannot be written ({error.strerror}); nothing finished is lost, "
            "the same command resumes"
        ) from None


def _versions() -> dict[str, str]:
    found = {
        "flattrain": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
    }
    return found | library_versions()


def _commit() -> str:
    """The commit of the code that runs, marked if it was changed; empty outside a checkout."""
    here = Path(__file__).resolve().parent
    # Without locks: `describe --dirty` writes the index, and a run that is killed would leave it locked.
    git = ["git", "--no-optional-locks"]
    try:
        said = [
            subprocess.run(
                [*git, *words], cwd=here, capture_output=True, text=True, timeout=5, check=True
            ).stdout
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].strip() + ("-dirty" if said[1].strip() else "")
