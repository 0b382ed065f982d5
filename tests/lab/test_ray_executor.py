"""Blocks on a real local Ray of two workers, one of them killed in the middle: the table of a local run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flattrain.ranges import Refused
from recipes import TINY, call, write

RAY = importlib.util.find_spec("ray") is not None
MARK = "FLATTRAIN_TEST_OF_RAY"
LONGER = TINY.replace("steps: 300", "steps: 700_000").replace("momentum: 0.5", "momentum: 0.5, steps: 500")


def start(folder, mark, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "flattrain", "recipe=tiny", *words],
        cwd=folder,
        env=os.environ | {MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def busy_workers(mark):
    """The processes in which a Ray of ours runs a task; Ray writes its name over their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            running = (process / "cmdline").read_bytes().startswith(b"ray::_task")
            if running and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not RAY or sys.platform != "linux", reason="needs Ray, and /proc to find its workers")
def test_a_killed_worker_is_retried_and_the_table_is_that_of_a_local_run(tmp_path):
    write(tmp_path, LONGER)
    remote = start(tmp_path, str(tmp_path), "out=remote", "execute={ray:{workers:2}}")
    killed, deadline = [], time.monotonic() + 120
    while remote.poll() is None and time.monotonic() < deadline:
        # Past its start, so that it is killed in the middle of its steps.
        if not killed and list((tmp_path / "remote" / "cells").glob("*.safetensors")):
            killed = busy_workers(str(tmp_path))[:1]
            for process in killed:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    assert killed, "no worker was found in the middle of a task"
    assert remote.wait(60) == 0, remote.stderr.read()
    local = start(tmp_path, "", "out=local")
    assert local.wait(120) == 0, local.stderr.read()
    for name in ("results.csv", "verdicts.json"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    record = json.loads((tmp_path / "remote" / "run.json").read_text())
    assert "fused" in record["backends"]["sam n=12"]
    assert not busy_workers(str(tmp_path)), "a task outlives its run"


@pytest.mark.skipif(not RAY, reason="needs Ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1", "x:y", "127.0.0.1:99999"])
def test_no_cluster_at_the_address(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    code, _, err = call(capsys, "recipe=tiny", f"execute={{ray:{{address:'{address}'}}}}")
    assert code == 2 and f"no cluster at {address}" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("execute=slurm", "unknown 'slurm'"),
        ("execute=rya", "did you mean 'ray'"),
        ("execute={ray:{adress:x}}", "did you mean 'address'"),
        ("execute={ray:{workers:-1}}", "must be a whole number >= 0"),
        ("execute={local:{address:x}}", "unknown key 'address'"),
        ("execute=[ray]", "exactly one of"),
    ],
)
def test_mistakes_are_refused(word, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    code, _, err = call(capsys, "recipe=tiny", word)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(RAY, reason="Ray is installed")
def test_without_ray_it_says_how_to_get_it():
    from flattrain.lab.executors.ray import ray

    with pytest.raises(Refused, match=r"pip install 'flattrain\[ray\]'"):
        ray()
