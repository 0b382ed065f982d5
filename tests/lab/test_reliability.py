"""A full disk, a folder that cannot be written, damaged files: one line, and nothing is lost."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from recipes import CLAIM, ONE_ARM, call, write


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ONE_ARM + CLAIM)
    return tmp_path


def one_line(err):
    said = [line for line in err.splitlines() if "%" not in line]
    return len(said) == 1 and said[0].startswith("flattrain: ") and "Traceback" not in err


def test_a_full_disk_stops_with_one_line_and_the_same_command_goes_on(home, capsys):
    """A limit on the size of files stands for the disk: first no cell fits, then cells but not the report."""
    command = [sys.executable, "-m", "flattrain", "recipe=tiny", "out=run"]
    for most in (200, 6000):

        def limited(most=most):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        done = subprocess.run(command, cwd=home, capture_output=True, text=True, preexec_fn=limited)
        assert done.returncode == 2 and one_line(done.stderr), done.stderr
        assert not list((home / "run").rglob("*.tmp"))
    cells = {p: p.stat().st_mtime_ns for p in (home / "run" / "cells").glob("*.json")}
    assert cells
    assert call(capsys, *command[3:])[0] == 0
    assert cells == {p: p.stat().st_mtime_ns for p in (home / "run" / "cells").glob("*.json")}
    assert (home / "run" / "report.html").stat().st_size > 6000


@pytest.mark.parametrize(
    "words", [["out=file"], ["store=file"], ["out=/proc/x"], ["store=/proc/x", "out=run"]]
)
def test_a_folder_that_cannot_be_written(words, home, capsys):
    (home / "file").write_text("in the way")
    code, _, err = call(capsys, "recipe=tiny", *words)
    assert code == 2 and one_line(err), err
    assert (home / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"key": 1, "started": 1, "registrations": 3}']
)
def test_a_damaged_record_is_not_taken_for_none(text, home, capsys):
    (home / "run").mkdir()
    (home / "run" / "run.json").write_text(text)
    code, _, err = call(capsys, "recipe=tiny", "out=run")
    assert code == 2 and "run.json" in err and one_line(err)
    assert (home / "run" / "run.json").read_text() == text
    code, _, err = call(capsys, "report", "run")
    assert code == 2 and one_line(err)


def test_a_damaged_data_set_is_refused_before_anything_is_written(home, capsys, monkeypatch):
    folder = home / "data" / "mnist"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b damaged")
    text = ONE_ARM.replace("{parity: {dim: 5, train: 12, test: 30}}", "{mnist: {train: 20, test: 20}}")
    write(
        home,
        text.replace("squared_error", "cross_entropy").replace("two_layer: {width: 7}", "mlp: {widths: [4]}"),
    )
    code, _, err = call(capsys, "recipe=tiny", f"data.root={home / 'data'}", "out=run")
    assert code == 2 and "wrong checksum" in err and one_line(err)
    assert not (home / "run").exists()


def test_a_clock_that_is_set_back_changes_nothing(home, capsys, monkeypatch):
    """Entries keep the order in which they were made."""
    from flattrain.lab.compose import composed
    from flattrain.lab.registration import registered

    folder, recipe = home / "run", composed(["recipe=tiny", "out=run"])
    folder.mkdir()
    (entry,) = registered(folder, recipe, siblings=False)
    record = {"name": "tiny", "key": recipe.key, "started": "2999-01-01", "recipe": recipe.raw}
    late = record | {"registrations": [entry | {"time": "2999-01-01T00:00:00+00:00"}]}
    (folder / "run.json").write_text(json.dumps(late))
    again = registered(folder, composed(["recipe=tiny", "seeds=3"]), siblings=False)
    assert again[0]["key"] == recipe.key and again[1]["changed"] == ["seeds 2 → 3"]
    assert registered(folder, recipe, siblings=False) == late["registrations"]
