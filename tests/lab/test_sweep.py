"""-m: every combination is a run of its own, by whichever launcher; a mistake in one stops all."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from flattrain.lab.sweep import combinations
from recipes import CLAIM, ONE_ARM, call, write

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ONE_ARM + CLAIM)
    return tmp_path


def test_combinations_are_the_product_in_hydras_grammar():
    words = [
        "recipe=a,b",
        "train.lr=0.1,0.2",
        "seeds=range(1,3)",
        "arms.x.model={mlp:{widths:[3,4]}}",
        "title='a,b'",
    ]
    jobs = combinations(words)
    assert len(jobs) == 8 and jobs[0][:3] == ["recipe=a", "train.lr=0.1", "seeds=1"]
    assert jobs[-1] == ["recipe=b", "train.lr=0.2", "seeds=2", *words[3:]]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_job_is_the_run_that_its_words_give(launcher, home):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    words = ["recipe=tiny", "train.lr=0.02,0.03", "train.steps=3", "store=cells", "jobs=1"]
    done = subprocess.run(
        [sys.executable, "-m", "flattrain", "-m", *words, f"hydra/launcher={launcher}", *LAUNCHERS[launcher]],
        cwd=home,
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in (home / "runs").glob("tiny-*/run.json")]
    assert sorted(r["recipe"]["train"]["lr"] for r in records) == [0.02, 0.03]
    for record in records:
        words = record["command"].split()
        assert (
            words[:3] == ["python", "-m", "flattrain"]
            and f"train.lr={record['recipe']['train']['lr']}" in words
        )
    assert len(list((home / "runs").glob("tiny-*/verdicts.json"))) == 2
    assert len(list((home / "cells").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe=tiny", "train.lr=0.02,-1"], "train.lr must be a number > 0, got -1"),
        (["recipe=tiny", "problem.dataset.parity.dim=5,1"], "dim must be >= 2"),
        (["recipe=tiny", "seeds=1,2", "hydra.launcher.x=3"], "hydra.launcher.x"),
    ],
)
def test_a_mistake_in_the_last_job_stops_the_first(words, said, home, capsys):
    code, out, err = call(capsys, "-m", *words)
    assert code == 2 and said in err and err.count("\n") == 1 and "job" not in out
    assert not list(home.glob("runs/tiny*"))


def test_a_job_that_fails_lets_the_others_run_and_its_code_is_the_sweeps(home, capsys, monkeypatch):
    from flattrain.lab import cli

    seen = []
    monkeypatch.setattr(cli, "run", lambda words: seen.append(words) or (2 if "seeds=1" in words else 0))
    from flattrain.lab.sweep import sweep

    assert sweep(["recipe=tiny", "seeds=1,2"]) == 2
    assert seen == [["recipe=tiny", "seeds=1"], ["recipe=tiny", "seeds=2"]]


def test_a_launcher_that_is_not_installed(home, capsys):
    if importlib.util.find_spec("hydra_plugins") is not None:
        pytest.skip("launchers are installed")
    code, _, err = call(capsys, "-m", "recipe=tiny", "hydra/launcher=joblib")
    assert code == 2 and "joblib" in err and err.count("\n") == 1
