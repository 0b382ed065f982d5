"""Weights & Biases: what a run leaves there, and that no trouble of W&B's stops or delays a run."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flattrain.lab.compose import composed
from flattrain.lab.results import Row
from flattrain.lab.tracking import Silent, patience, tracker
from flattrain.lab.verdicts import Verdict
from recipes import write

ROWS = [
    Row("sam", (("n", "12"),), seed, step, "train_loss", 1.0 / (1 + seed + step), 0.0)
    for seed in range(3)
    for step in (0, 10)
]
# A stand-in for the package, put before it on the path; $FAKE says how it misbehaves.
FAKE = """
import json, os, sys, time
how, log = os.environ["FAKE"], os.environ["FAKE_LOG"]
if how == "no package": raise ImportError("no wandb here")
def note(**entry):
    with open(log, "a") as out: out.write(json.dumps(entry) + "\\n")
class Settings:
    def __init__(self, **given): self.init_timeout = given["init_timeout"]
class Summary(dict):
    def __init__(self, name): self.name = name
    def __setitem__(self, key, value): note(summary=key, run=self.name)
class Run:
    def __init__(self, name): self.name, self.summary = name, Summary(name)
    def define_metric(self, *a, **k): pass
    def log(self, values): note(log=sorted(values), run=self.name)
    def log_artifact(self, artifact): note(artifact=artifact.files, run=self.name)
    def finish(self):
        if how == "finish hangs": time.sleep(600)
        if how == "finish exits": os._exit(7)
        note(finish=True, run=self.name)
class Table:
    def __init__(self, columns): pass
    def add_data(self, *row): note(row=row[:2])
class Artifact:
    def __init__(self, name, type): self.files = []
    def add_file(self, path, name): self.files.append(name)
Image = Html = str
def init(**given):
    assert given["settings"].init_timeout <= 30
    if how == "init hangs": time.sleep(600)
    if how == "offline only" and given["mode"] != "offline": raise RuntimeError("no answer\\nsecond line")
    note(init=given["name"], mode=given["mode"], group=given["group"], job_type=given["job_type"],
         config={k: v for k, v in given["config"].items() if k in ("arm", "n", "seed")})
    return Run(given["name"])
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """How it misbehaves -> the entries that it wrote, the seconds that the run waited, standard error."""
    write(tmp_path)
    (tmp_path / "fake" / "wandb").mkdir(parents=True)
    (tmp_path / "fake" / "wandb" / "__init__.py").write_text(FAKE)
    (tmp_path / "report.html").write_text("<p>a report</p>")
    (tmp_path / "results.csv").write_text("arm\n")
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / "fake"), os.environ.get("PYTHONPATH", ""), *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "fake"), *sys.path])
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def play(how, seconds, mode="online", **environment):
        monkeypatch.setenv("FAKE", how)
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40 if mode == "online" else "")
        monkeypatch.setenv("FLATTRAIN_TRACKING_SECONDS", str(seconds))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        recipe = composed(["recipe=tiny"])
        began = time.monotonic()
        track = tracker("wandb", recipe, tmp_path)
        track.cell(recipe.cells[1], ROWS)
        started = time.monotonic() - began
        track.finish([Verdict(recipe.claims[0], "supported", None, "")], tmp_path)
        assert started < 2, "the run waited for W&B to start"
        assert not track.process.is_alive()
        log = tmp_path / "log"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return entries, time.monotonic() - began

    return play


def test_one_run_for_the_study_and_one_for_every_seed(fake):
    entries, _ = fake("well", 60)
    study, *seeds = [e for e in entries if "init" in e]
    assert study["job_type"] == "study" and study["mode"] == "online" and study["init"] == study["group"]
    assert [s["config"] for s in seeds] == [{"arm": "sam", "n": 12, "seed": k} for k in range(3)]
    assert {(s["group"], s["job_type"]) for s in seeds} == {(study["group"], "sam n=12")}
    mine = [e for e in entries if e.get("run") == study["init"]]
    assert {"log": ["sam n=12/train_loss", "train_step"], "run": study["init"]} in mine
    summary = {e["summary"] for e in mine if "summary" in e}
    assert {"final/train_loss/sam n=12", "verdict/falls", "claims/supported", "claims/void"} <= summary
    assert ["report.html", "results.csv"] in [e["artifact"] for e in mine if "artifact" in e]
    assert {"row": ["falls", "supported"]} in entries
    assert len([e for e in entries if "finish" in e]) == 4


def test_a_sweep_gets_one_run_per_trial(fake):
    entries, _ = fake("well", 60, WANDB_SWEEP_ID="abc")
    assert [e["job_type"] for e in entries if "init" in e] == ["study"]
    assert any(e.get("summary") == "final/train_loss/sam n=12" for e in entries)


def complaints(capfd):
    """Standard error, without the note that it waits: that depends on how busy the machine is."""
    lines = capfd.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if "takes its time" not in line)


@pytest.mark.parametrize("how", ["init hangs", "finish hangs"])
def test_a_tracker_that_hangs_is_left_behind(fake, how, capfd):
    _, seconds = fake(how, 3)
    assert 2.5 < seconds < 20  # it would hang for 600
    said = capfd.readouterr().err
    assert "left behind after 3 s" in said and said.count("\n") == 1


@pytest.mark.parametrize("how", ["no package", "finish exits"])
def test_a_tracker_that_dies_does_not_hold_the_run(fake, how, capfd):
    _, seconds = fake(how, 60)
    assert seconds < 30
    said = complaints(capfd)
    assert "Traceback" not in said and said.count("\n") == (how == "no package")


def test_without_an_answer_it_logs_offline(fake, capfd):
    entries, _ = fake("offline only", 60)
    assert {e["mode"] for e in entries if "init" in e} == {"offline"}
    said = complaints(capfd)
    assert "RuntimeError: W&B cannot be reached; logging offline" in said and said.count("\n") == 1


def test_how_long_it_waits(monkeypatch):
    for text, seconds in (("", 60), ("soon", 60), ("2.5", 2.5), ("-1", 0), ("nan", 60), ("inf", 60)):
        monkeypatch.setenv("FLATTRAIN_TRACKING_SECONDS", text)
        assert patience() == seconds
    assert isinstance(tracker("none", None, None), Silent)


def leveldb_records(raw):
    """The records of a log of blocks of 32 KiB; each piece has a checksum, a length and a kind before it."""
    assert raw[:4] == b":W&B"
    at, out = 7, []
    while at < len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        piece = raw[at + 7 : at + 7 + length]
        assert len(piece) == length and kind in (1, 2, 3, 4), "the file ends before its record"
        if kind in (1, 2):  # a whole record, or its first piece
            out.append(piece)
        else:
            out[-1] += piece
        at += 7 + length
    return out


def test_offline_runs_are_whole_and_readable(tmp_path):
    """Every file that `wandb sync` would upload is read back, record by record, to its end."""
    from wandb.proto import wandb_internal_pb2

    write(tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "flattrain", "recipe=tiny", "out=run", "tracking=wandb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(tmp_path)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "tracking:" not in done.stderr and "wandb" not in done.stderr
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 10  # the study, and three seeds of three arms at their points
    studies, groups = [], {}
    for folder in folders:
        stored = leveldb_records(next(folder.glob("*.wandb")).read_bytes())
        records = [wandb_internal_pb2.Record.FromString(data) for data in stored]
        kinds = [r.WhichOneof("record_type") for r in records]
        run = records[kinds.index("run")].run
        assert "exit" in kinds and "history" in kinds, kinds
        groups.setdefault(run.job_type, []).append(run.run_group)
        if run.job_type == "study":
            studies.append((folder, kinds, records))
    assert {kind: len(found) for kind, found in groups.items()} == {
        "study": 1, "sam n=8": 3, "sam n=12": 3, "batch n=12": 3
    }  # fmt: skip
    assert len({group for found in groups.values() for group in found}) == 1
    folder, kinds, records = studies[0]
    raw = b"".join(r.SerializeToString() for r in records)
    for text in (b"sam n=12/train_loss", b"verdict/falls", b"supported", b"figures/", b"train_step"):
        assert text in raw
    assert b"final/test_error/sam n=12" in raw and b"claims/supported" in raw
    assert "artifact" in kinds and b"report.html" in raw and b"results.csv" in raw
    media = [p.name for p in (folder / "files" / "media").rglob("*") if p.is_file()]
    assert any(n.endswith(".png") for n in media) and any(n.endswith(".html") for n in media)
    assert any("verdicts" in n for n in media)


def test_the_sweep_of_the_documentation_drives_a_recipe(monkeypatch):
    """Its command as W&B's agent puts it together, and its metric as the study writes it."""
    import yaml
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    root = Path(__file__).parent.parent.parent
    monkeypatch.chdir(root)
    page = (root / "docs" / "tracking.md").read_text(encoding="utf-8")
    sweep = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    arguments = {k: {"value": v.get("value", v.get("min"))} for k, v in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
    assert sweep["command"][1:] == ["python", "-m", "flattrain", "${args_no_hyphens}"]
    recipe = composed(words)
    assert recipe.raw["arms"]["sam"]["rule"]["sam"]["rho"] == 0.01 and recipe.raw["tracking"] == "wandb"
    place, quantity, label = sweep["metric"]["name"].split("/")
    assert place == "final" and label in [cell.label for cell in recipe.cells]
    assert quantity in recipe.raw["measures"]["along"]
