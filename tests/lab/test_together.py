"""One recipe by two processes: the numbers of one process, one voice, one line when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import flattrain
from flattrain.lab import results, together
from flattrain.lab.compose import composed
from flattrain.lab.executors.job import Job
from flattrain.lab.run import Experiment, run_cell
from flattrain.training import loop
from flattrain.training.checkpoint import save_state
from recipes import write

SHARED = """
title: Two processes
problem: {dataset: {digits: {train: 30, test: 20}}, loss: cross_entropy}
model: {mlp: {widths: [5]}}
train: {lr: 0.3, batch_size: 9, steps: 12, milestones: 2}
precision: float64
seeds: 2
arms:
  sam: {rule: {sam: {rho: 0.1}}, penalties: {soft_rank: {weight: 1.0e-2, columns: sketch}}}
  full: {train: {batch_size: 30, momentum: 0.5}, penalties: {relative_flatness: {layer: head, weight: 0.01}}}
measures:
  along: [train_loss, test_error]
  end: [soft_rank, top_eigenvalue, {representativeness: {layer: head}}]
claims:
  falls:
    says: The loss is below ten.
    test: {median: {quantity: train_loss, arm: sam}}
    predicts: {below: 10.0}
"""


def started(folders, *words, code=None):
    """What torchrun does, without its own report on standard error; `code` says where a process finds its."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", "flattrain", *words],
            cwd=folder,
            env=os.environ
            | shared
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            | ({"PYTHONPATH": str(code[rank])} if code and rank in code else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]


def ended(processes):
    """(exit codes, standard outputs, complaints of all together)."""
    said = [p.communicate(timeout=120) for p in processes]
    lines = [line for _, err in said for line in err.splitlines() if "%" not in line]
    return [p.returncode for p in processes], [out for out, _ in said], lines


def close(mine, wanted):
    for a, b in zip(mine, wanted, strict=True):
        assert a[:4] == b[:4]
        assert a[4] == pytest.approx(b[4], rel=1e-10, abs=1e-12)
        # A standard error is the root of a difference of squares, which has half of the digits.
        assert a[5] == pytest.approx(b[5], rel=1e-7, abs=1e-9)


def test_torchrun_gives_the_table_of_one_process(tmp_path):
    write(tmp_path, SHARED)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [*run, "-m", "flattrain", "recipe=tiny", "out=two"], cwd=tmp_path, capture_output=True, text=True
    )
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("report: two/report.html") == 1
    cells = composed([f"recipe={tmp_path / 'recipes' / 'tiny.yaml'}"]).cells
    alone = [
        (cell.arm, row["seed"], row["step"], row["quantity"], row["value"], row["standard_error"])
        for cell in cells
        for row in run_cell(cell.spec, None, tmp_path / "alone.safetensors", lambda step: None)["rows"]
    ]
    table = results.read(tmp_path / "two" / "results.csv").rows
    close([(r.arm, r.seed, r.step, r.quantity, r.value, r.standard_error) for r in table], alone)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["processes"] == 2 and record["device"] == "cpu"
    assert all("shared by 2 processes" in said for said in record["backends"].values())


def test_an_error_on_one_process_ends_all_with_one_line(tmp_path):
    """Here the second runs other code."""
    write(tmp_path, SHARED)
    other = tmp_path / "other"
    shutil.copytree(Path(flattrain.__file__).parent, other / "flattrain")
    with (other / "flattrain" / "core" / "trees.py").open("a") as file:
        file.write("# another version\n")
    codes, outputs, lines = ended(started([tmp_path] * 2, "recipe=tiny", "out=run", code={1: other}))
    assert codes == [2, 2] and outputs == ["", ""]
    (line,) = lines
    assert line.startswith("flattrain: process 1: the processes run different code")
    assert not (tmp_path / "run" / "results.csv").exists()


def test_a_refusal_of_all_is_one_line(tmp_path):
    write(tmp_path, SHARED)
    words = ("recipe=tiny", "arms.sam.train.batch_size=1")
    codes, outputs, lines = ended(started([tmp_path] * 2, *words))
    assert codes == [2, 2] and outputs == ["", ""]
    (line,) = lines
    assert "a batch of 1 cannot be shared by 2 processes" in line and not (tmp_path / "runs").exists()


def resumed(rank, path, file):
    """Process 0 alone has the checkpoint; both go on from it."""
    cell = composed([f"recipe={path}"]).cells[0]
    own = file if rank == 0 else file.with_name("another.safetensors")
    steps = []
    found = json.loads(together._run(Job(cell.label, cell.steps, cell.spec, None, ""), own, steps.append))
    assert not (rank and own.exists())
    return steps, [list(row.values()) for row in found["rows"]]


def test_a_checkpoint_of_one_process_is_finished_by_two(ranks, tmp_path):
    path = write(tmp_path, SHARED)
    cell = composed([f"recipe={path}"]).cells[0]
    experiment = Experiment(cell.spec, None)
    file = tmp_path / "cell.safetensors"
    rows = loop.run(experiment.trainer, experiment.stops(), experiment.measure)
    state = experiment.trainer.advance(experiment.trainer.init(), 6)
    first = [row for row in rows if row["step"] < 6]
    save_state(file, state, first)
    (steps, mine), (other_steps, other) = ranks(resumed, path, file)
    assert steps == other_steps == [10, 12] and mine == other
    for row, wanted in zip(mine, rows, strict=True):
        assert row[-2] == pytest.approx(wanted["value"], rel=1e-10, abs=1e-12)
