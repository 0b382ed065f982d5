"""`-m`: one normal run for every combination of the values given, by Hydra's sweeper and launchers.

    python -m flattrain -m recipe=a,b train.lr=0.1,0.2 hydra/launcher=joblib hydra.launcher.n_jobs=4

All combinations are composed, checked and tried in small before the first one starts. The launcher (basic, or
joblib, submitit, … where its plugin is installed) then calls `run_job` for each, which is the command line
itself with that combination's words, so a job is the run that its own words would give, in its own folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flattrain.lab.budget import affordable
from flattrain.lab.compose import composed
from flattrain.lab.recipe import Recipe
from flattrain.lab.study import folder_of, try_in_small
from flattrain.ranges import Refused

HYDRA = ("hydra.", "hydra/")
# Hydra's own files and logging would say things twice; each job is told about by its own run.
QUIET = [
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=runs/sweep",
    "hydra.sweep.subdir=.",
    "hydra.job.chdir=false",
]


def sweep(words: list[str]) -> int:
    """Check every job, then launch them all; the worst of their exit codes."""
    ours = [word for word in words if not word.lstrip("+~").startswith(HYDRA)]
    launching = [word for word in words if word.lstrip("+~").startswith(HYDRA)]
    jobs = combinations(ours)
    recipes = [composed(job) for job in jobs]
    _need_folders_of_their_own(jobs, recipes)
    for job, recipe in zip(jobs, recipes, strict=True):
        try:
            try_in_small(affordable(recipe))
        except Refused as refused:
            raise Refused(f"{' '.join(job)}: {refused}") from None
    return max(_launched(jobs, launching))


def combinations(words: list[str]) -> list[list[str]]:
    """The words of each job: the product of what Hydra's grammar calls a sweep, a,b or range(1,4)."""
    parser = OverridesParser.create()
    try:
        for word in words:
            if "=" not in word or word.startswith("-"):
                raise Refused(f"{word!r} is not KEY=VALUE; write -m KEY=VALUE,VALUE ...")
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    except HydraException as error:
        raise Refused(f"-m: {str(error).strip().splitlines()[0]}") from None
    return jobs


def run_job(config: Any) -> int:
    """One job, in whichever process the launcher calls it: its exit code."""
    from flattrain.lab.cli import run

    print(f"flattrain: job {config.job + 1} of {len(config.jobs)}", flush=True)
    return run([str(word) for word in config.jobs[config.job]])


def _need_folders_of_their_own(jobs: list[list[str]], recipes: list[Recipe]) -> None:
    seen: dict[Path, list[str]] = {}
    for job, recipe in zip(jobs, recipes, strict=True):
        folder = folder_of(recipe)
        if folder in seen:
            raise Refused(
                f"-m: {' '.join(seen[folder])} and {' '.join(job)} would both write {folder}; "
                "sweep over what changes the trial, and leave out= away"
            )
        seen[folder] = job


def _launched(jobs: list[list[str]], launching: list[str]) -> list[int]:
    store = ConfigStore.instance()
    store.store(name="flattrain_sweep", node=OmegaConf.create({"job": 0, "jobs": jobs}))
    GlobalHydra.instance().clear()
    numbers = ",".join(str(k) for k in range(len(jobs)))
    given = {word.partition("=")[0] for word in launching}
    quiet = [word for word in QUIET if word.partition("=")[0] not in given]
    if "hydra/launcher=ray" in launching:
        quiet.append("+hydra.launcher.ray.init.include_dashboard=false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        hydra = Hydra.create_main_hydra2("flattrain", create_config_search_path(None))
        returned = hydra.multirun(
            "flattrain_sweep", run_job, [f"job={numbers}", *quiet, *launching], with_log_configuration=False
        )
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        first = " ".join(str(error.__cause__ or error).split())[:250]
        raise Refused(f"-m: {first}") from None
    finally:
        GlobalHydra.instance().clear()
    return [int(job.return_value) for batch in returned for job in batch]
