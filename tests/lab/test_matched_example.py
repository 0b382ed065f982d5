"""The recipe on the page about matched comparison, run in small."""

from __future__ import annotations

import json
import re
from pathlib import Path

from flattrain.lab import study
from flattrain.lab.executors.job import work
from recipes import call, write

PAGE = Path(__file__).parents[2] / "docs" / "matched-comparison.md"
SMALL = (
    "problem.dataset.digits.train=60",
    "problem.dataset.digits.test=100",
    "problem.dataset.digits.validation=60",
    "model.mlp.widths=[8]",
    "train.batch_size=20",
    "train.gradient_evaluations=80",
    "train.milestones=5",
    "seeds=3",
    "tune.seeds=1",
    "claims.half-budget.test.difference.when.gradient_evaluations=30",
)


def here(jobs, progress):
    """An executor in this process."""
    return ((k, work(job, progress)) for k, job in enumerate(jobs))


def test_the_pages_recipe_runs(tmp_path, monkeypatch, capsys):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "executor_of", lambda recipe: here)
    code, _, err = call(capsys, "recipe=tiny", "out=run", *SMALL)
    assert code == 0, err
    claims = json.loads((tmp_path / "run" / "verdicts.json").read_text())["claims"]
    assert list(claims) == ["same-budget", "half-budget", "same-loss", "same-trace"]
    for claim in claims.values():
        assert claim["verdict"] in ("supported", "refuted", "undecided") or "never reach" in claim["reason"]
    assert claims["same-loss"]["n"] == claims["half-budget"]["n"] == 3
    tuning = json.loads((tmp_path / "run" / "run.json").read_text())["tuning"]
    assert [len(entry["trials"]) for entry in tuning] == [4, 4]
    rows = (tmp_path / "run" / "results.csv").read_text()
    assert "sam,0,40,gradient_evaluations,80.0" in rows and "sgd,0,80,gradient_evaluations,80.0" in rows
