"""Where a recipe runs: what is refused, what is recorded, and what leaves a trial its identity."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from flattrain.lab.compose import composed
from flattrain.lab.device import in_words, set_up
from flattrain.ranges import Refused
from recipes import call, write


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.use_deterministic_algorithms(False)


def keys(path, *words):
    return [cell.key for cell in composed([f"recipe={path}", *words]).cells]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    path = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, f"recipe={path}", "device=cuda")
    assert code == 2 and not out and err.count("\n") == 1
    assert "device=cuda: torch" in err and "device=auto" in err
    assert not (tmp_path / "runs").exists()


def test_the_device_is_one_of_three(tmp_path):
    with pytest.raises(Refused, match="device must be one of auto, cpu, cuda, got 'gpu'"):
        keys(write(tmp_path), "device=gpu")


def test_a_trial_on_the_cpu_keeps_its_identity(tmp_path, monkeypatch):
    path = write(tmp_path)
    usual = keys(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert keys(path, "device=cpu") == keys(path, "device=auto") == usual
    assert not set(keys(path, "deterministic=false")) & set(usual)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = composed([f"recipe={path}", "device=auto"])
    assert there.raw["device"] == "cuda" and there.cells[0].spec["device"] == "cuda"
    assert [c.key for c in there.cells] == keys(path, "device=cuda") and there.cells[0].key not in usual


def test_a_recipe_for_the_cpu_is_read_without_torch(tmp_path):
    path = write(tmp_path)
    code = (
        "import sys; from flattrain.lab.compose import composed;"
        f"composed(['recipe={path}', 'device=cpu']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_are_deterministic_unless_the_recipe_says_otherwise():
    assert set_up({}) == torch.device("cpu")
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    set_up({"deterministic": False})
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_a_device_cannot_do_is_one_line():
    with (
        pytest.raises(Refused, match="put_kernel sums in any order on this device; use device=cpu"),
        in_words(),
    ):
        raise RuntimeError("put_kernel does not have a deterministic implementation, but you set …")
    with pytest.raises(Refused, match="too little memory"), in_words():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee …")
    with pytest.raises(RuntimeError, match="another"), in_words():
        raise RuntimeError("another")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_refused_with_the_reason(name, tmp_path):
    with pytest.raises(Refused, match=r"float32, float64.*no eigenvalues in half precision"):
        keys(write(tmp_path), f"precision={name}")
