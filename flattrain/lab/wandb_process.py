"""The process that speaks to Weights & Biases: online when logged in, offline otherwise.

One run for the study holds the mean curves of every arm, the verdict table, the figures, the report as an
artifact, and numbers for a sweep in its summary. One run for every arm, grid point and seed holds the curves
of that seed; its group is the trial, its type the arm at its point, its config has arm, point and seed.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue as queues
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from flattrain.lab.results import Row
from flattrain.lab.run_folder import FIGURES, PAGE, RECORD, REPORT, TABLE, VERDICTS
from flattrain.lab.tracking import say

INIT_SECONDS = 30
MOST_SEEDS = 256  # runs of single seeds; beyond, the study's own run has to do
KEPT = (REPORT, PAGE, TABLE, VERDICTS, RECORD)


class Study(NamedTuple):
    """What the runs are called, and what they belong to."""

    name: str
    key: str
    config: dict[str, Any]
    folder: str
    seeds: int  # arms × points × seeds

    @property
    def trial(self) -> str:
        return f"{self.name}-{self.key[:8]}"


def serve(study: Study, messages: Any) -> None:
    """Log what the queue brings until it says that the study is over, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    os.environ.setdefault("WANDB_SILENT", "true")
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    run = _safely(_study_run, study)
    if run is None:
        return
    sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
    single = study.seeds <= MOST_SEEDS and not sweep
    if not single and not sweep:
        say(f"{study.seeds} runs of single seeds are too many; curves are means over seeds")
    waiting: list[tuple[str, str, dict[str, Any], list[Row]]] = []
    while True:
        try:
            kind, *content = messages.get(block=not waiting)
        except queues.Empty:
            _safely(_seed_runs, study, *waiting.pop(0))
            continue
        if kind == "finish":
            verdicts, folder = content
            _safely(_finish, run, study, verdicts, Path(folder))
            break
        label, arm, point, rows = content
        _safely(_means, run, label, rows)
        if single:
            waiting.append((label, arm, point, rows))
    for cell in waiting:
        _safely(_seed_runs, study, *cell)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _safely(action: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return action(*arguments)
    except Exception as error:
        first = (str(error).strip().split("\n") or [""])[0]
        say(f"{type(error).__name__}: {first[:150]}; the run goes on")
        return None


def _mode() -> Any:
    """$WANDB_MODE, or online when a key is at hand, or offline; a prompt is never shown."""
    import wandb

    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    with contextlib.redirect_stderr(io.StringIO()):  # newer versions warn that they will rename it
        key = os.environ.get("WANDB_API_KEY") or getattr(getattr(wandb, "api", None), "api_key", None)
    return "online" if key else "offline"


def _init(study: Study, name: str, group: str, kind: str, config: dict[str, Any], mode: str) -> Any:
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "flattrain"),
        name=name,
        group=group,
        job_type=kind,
        dir=study.folder,
        mode=mode,  # type: ignore[arg-type]
        config=config,
        reinit="create_new",
        settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off", x_disable_stats=True),
    )


def _study_run(study: Study) -> Any:
    """The run of the study; offline if W&B does not answer, so that nothing is lost."""
    mode = _mode()
    words = (study.trial, study.trial, "study", study.config)
    try:
        run = _init(study, *words, mode)
    except Exception as error:
        if mode == "offline":
            raise
        say(f"{type(error).__name__}: W&B cannot be reached; logging offline")
        mode = "offline"
        run = _init(study, *words, mode)
    os.environ["WANDB_MODE"] = mode  # for the runs of the seeds
    run.define_metric("train_step")
    run.define_metric("*", step_metric="train_step")
    return run


def _means(run: Any, label: str, rows: list[Row]) -> None:
    """The curves of one arm, as means over seeds; the medians at the end for the summary."""
    by_step: dict[int, dict[str, list[float]]] = {}
    last: dict[tuple[str, int], Row] = {}
    for row in rows:
        by_step.setdefault(row.step, {}).setdefault(f"{label}/{row.quantity}", []).append(row.value)
        known = last.get((row.quantity, row.seed))
        if known is None or known.step <= row.step:
            last[row.quantity, row.seed] = row
    for step, curves in sorted(by_step.items()):
        run.log({"train_step": step} | {name: fmean(values) for name, values in curves.items()})
    for quantity in dict.fromkeys(name for name, _ in last):
        values = [row.value for (name, _), row in last.items() if name == quantity]
        run.summary[f"final/{quantity}/{label}"] = median(values)


def _seed_runs(study: Study, label: str, arm: str, point: dict[str, Any], rows: list[Row]) -> None:
    """One run per seed of an arm at a grid point."""
    by_seed: dict[int, dict[int, dict[str, float]]] = {}
    for row in rows:
        by_seed.setdefault(row.seed, {}).setdefault(row.step, {})[row.quantity] = row.value
    for seed, steps in sorted(by_seed.items()):
        config = {"recipe": study.name, "arm": arm, **point, "seed": seed}
        run = _init(study, f"{label} seed {seed}", study.trial, label, config, _mode())
        run.define_metric("train_step")
        run.define_metric("*", step_metric="train_step")
        for step, values in sorted(steps.items()):
            run.log({"train_step": step} | values)
        run.finish()


def _finish(run: Any, study: Study, verdicts: dict[str, dict[str, Any]], folder: Path) -> None:
    import wandb

    columns = ["claim", "verdict", "estimate", "low", "high", "n", "says", "source"]
    table = wandb.Table(columns=columns)
    for name, v in verdicts.items():
        low, high = v["interval"] or (None, None)
        table.add_data(name, v["verdict"], v["estimate"], low, high, v["n"], v["says"], v["source"])
        run.summary[f"verdict/{name}"] = v["verdict"]
        if v["estimate"] is not None:
            run.summary[f"estimate/{name}"] = v["estimate"]
    for kind in ("supported", "refuted", "undecided", "void", "missing"):
        run.summary[f"claims/{kind}"] = sum(v["verdict"] == kind for v in verdicts.values())
    logged: dict[str, Any] = {"verdicts": table}
    for figure in sorted((folder / FIGURES).glob("*.png")):
        logged[f"figures/{figure.stem}"] = wandb.Image(str(figure))
    logged["report"] = wandb.Html(str(folder / REPORT))
    run.log(logged)
    artifact = wandb.Artifact(f"{study.trial}-report", type="report")
    for name in KEPT:
        if (folder / name).is_file():
            artifact.add_file(str(folder / name), name=name)
    for figure in sorted((folder / FIGURES).glob("*.png")):
        artifact.add_file(str(figure), name=f"figures/{figure.name}")
    run.log_artifact(artifact)
    run.finish()
