"""A study from the recipe file to the verdicts: what it writes, how it resumes, what it survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from flattrain.lab import results
from recipes import TINY, apart, call, write


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    done = apart(folder, "out=run")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_verdicts_table_and_summary(finished):
    folder, done = finished
    content = json.loads((folder / "run" / "verdicts.json").read_text())
    claims = content["claims"]
    assert list(claims) == ["falls", "rises", "empty"]
    assert claims["falls"]["verdict"] == "supported" and claims["rises"]["verdict"] == "refuted"
    assert claims["empty"]["verdict"] == "void" and "needs train_loss of batch" in claims["empty"]["reason"]
    falls = claims["falls"]
    low, high = falls["interval"]
    assert low <= falls["estimate"] <= high and falls["n"] == 3
    assert falls["says"] == "The loss is below one." and falls["source"] == "a test"
    assert "supported" in done.stdout and "report.html" in done.stdout

    table = results.read(folder / "run" / "results.csv")
    assert {r.seed for r in table.rows} == {0, 1, 2}
    assert [len(table.points(arm)) for arm in ("sam", "batch")] == [2, 1]
    medians = sorted(table.final("train_loss", "sam", (("n", "12"),)).values())
    assert falls["estimate"] == medians[1]
    record = json.loads((folder / "run" / "run.json").read_text())
    assert "fused" in record["backends"]["sam n=12"] and "vmap" in record["backends"]["batch n=12"]
    assert set(record["definitions"]) == {r.quantity for r in table.rows}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and tag != "use"]


def test_the_report_is_one_file_without_scripts_and_escapes_text(finished):
    folder, _ = finished
    text = (folder / "run" / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.seen.count("svg") == 4 and "script" not in tags.seen
    assert all(a.startswith(("data:", "#")) for a in tags.addresses)
    assert "&lt;b&gt;from end to end&lt;/b&gt;" in text and "<b>from" not in text
    assert "A &lt; B &amp; C" in text
    assert "python -m flattrain recipe=tiny out=run" in text


def test_report_again_gives_the_same_verdicts_without_torch(finished):
    folder, _ = finished
    before = (folder / "run" / "verdicts.json").read_bytes()
    (folder / "run" / "verdicts.json").unlink()
    code = (
        "import sys; from flattrain.lab import cli; code = cli.run(['report', 'run']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    assert (folder / "run" / "verdicts.json").read_bytes() == before


def test_a_second_call_does_nothing_again(finished):
    folder, _ = finished
    cells = {p: p.stat().st_mtime_ns for p in (folder / "run" / "cells").iterdir()}
    again = apart(folder, "out=run")
    assert again.returncode == 0
    assert cells == {p: p.stat().st_mtime_ns for p in (folder / "run" / "cells").iterdir()}


def test_a_folder_of_another_recipe_is_refused(finished, capsys, monkeypatch):
    folder, _ = finished
    (folder / "recipes" / "other.yaml").write_text(TINY)
    monkeypatch.chdir(folder)
    before = (folder / "run" / "run.json").read_bytes()
    code, _, err = call(capsys, "recipe=other", "out=run")
    assert code == 2 and "holds recipe 'tiny'" in err and err.count("\n") == 1
    assert (folder / "run" / "run.json").read_bytes() == before


def test_killed_at_any_moment_it_ends_with_the_same_table(tmp_path):
    """SIGKILL the whole program at random moments; a run that was never killed gives the bytes to match."""
    longer = TINY.replace("steps: 300", "steps: 2_000_000").replace(
        "momentum: 0.5", "momentum: 0.5, steps: 700"
    )
    write(tmp_path, longer)
    command = [sys.executable, "-m", "flattrain", "recipe=tiny"]

    def start(out):
        return subprocess.Popen(
            [*command, f"out={out}"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    chance = random.Random(0)
    for _ in range(3):
        victim = start("killed")
        time.sleep(chance.uniform(3, 6))
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    assert start("killed").wait() == 0
    for name in ("results.csv", "verdicts.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert not list((tmp_path / "killed" / "cells").glob("*.safetensors"))


def test_two_runs_at_once_are_refused(finished, capsys, monkeypatch):
    from flattrain.lab.execute import locked

    folder, _ = finished
    monkeypatch.chdir(folder)
    with locked(folder / "run"):
        done = apart(folder, "out=run")
    assert done.returncode == 2 and "another process is running" in done.stderr
    assert done.stderr.count("\n") == 1


def test_damaged_tables_and_cells(finished, capsys, monkeypatch, tmp_path):
    import shutil

    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder / "run", copy)
    table = copy / "results.csv"
    whole = table.read_text()
    for damaged in ("", whole[:-20], whole.replace("train_loss", "train_loss,1", 1)):
        table.write_text(damaged)
        code, _, err = call(capsys, "report", str(copy))
        assert code == 2 and "results.csv" in err and err.count("\n") == 1
    cell = next((copy / "cells").glob("*.json"))
    cell.write_text(cell.read_text()[:50])
    monkeypatch.chdir(folder)
    done = apart(folder, f"out={copy}")
    assert done.returncode == 0 and table.read_text() == whole


def test_a_run_that_diverges_is_void_and_the_others_go_on(tmp_path):
    text = TINY.replace("end: [two_layer_trace]", "end: [two_layer_trace, top_eigenvalue, feature_rank]")
    write(tmp_path, text)
    done = apart(tmp_path, "out=run", "arms.sam.train.lr=1000")
    assert done.returncode == 0, done.stderr
    claims = json.loads((tmp_path / "run" / "verdicts.json").read_text())["claims"]
    assert claims["falls"]["verdict"] == "void" and "no finite train_loss" in claims["falls"]["reason"]
    table = results.read(tmp_path / "run" / "results.csv")
    assert all(v == v for v in table.final("train_loss", "batch", (("n", "12"),)).values())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    lost = {(entry["cell"], entry["seed"]): entry for entry in record["diverged"]}
    assert set(lost) == {(f"sam n={n}", seed) for n in (8, 12) for seed in range(3)}
    for (_, seed), entry in lost.items():
        assert 1 <= entry["step"] < 300 and str(entry["step"]) in entry["why"]
        point = (("n", entry["cell"][-2:].strip("=")),)
        for quantity in ("test_error", "train_loss"):  # an error of a net that is not there is none
            rows = table.series(quantity, "sam", point)[seed]
            assert all((row.value == row.value) == (row.step < entry["step"]) for row in rows), rows
    assert "diverged: 6 runs" in done.stdout


def test_dry_run_prints_the_recipe_and_writes_nothing(home, capsys):
    code, out, _ = call(capsys, "recipe=tiny", "dry_run=true", "train.lr=0.5")
    assert code == 0 and "lr: 0.5" in out and "# 3 cells" in out and "estimated time" in out
    assert sorted(p.name for p in home.iterdir()) == ["recipes"]
