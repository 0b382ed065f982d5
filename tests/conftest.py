"""Global strictness: float64, one thread, no network, a home of its own for every test."""

from __future__ import annotations

import pytest
import torch
from ranks import Ranks
from torch import distributed


@pytest.fixture(autouse=True)
def _strict(monkeypatch, tmp_path_factory):
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="session")
def ranks():
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this build of torch has no gloo, by which the processes of these tests talk")
    pool = Ranks()
    yield pool
    pool.stop()
