"""Where the cells of a recipe run, and that they run the same way twice.

    cpu    the default: the same numbers on every machine of a kind
    cuda   the current GPU; a trial of its own, since its sums go in another order
    auto   cuda where there is one, else cpu; the run folder records which

A trial on the CPU has the same identity however the device was written. With `deterministic: true` torch
refuses operations whose sums may go in any order; with false they run, and two runs may differ in rounding.
TF32 is off either way: float32 means float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flattrain.ranges import Refused

DEVICES = ("auto", "cpu", "cuda")
MEND = "use device=cpu, or device=auto to take a GPU where there is one"


def resolved(device: str) -> str:
    """ "cpu" or "cuda"; torch is imported only where it is not plain "cpu"."""
    if device == "cpu":
        return device
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise Refused(f"device=cuda: torch {torch.__version__} finds no usable GPU here; {MEND}")
    return "cuda" if there else "cpu"


def named(device: str) -> str:
    """The device in words, for the record of a run."""
    if device == "cpu":
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name()})"


def set_up(spec: dict[str, Any]) -> Any:
    """Settle how this process computes the cell, and give its torch.device."""
    # cuBLAS reads it when it starts, before the first product on the GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    strict = spec.get("deterministic", True)
    # `use_deterministic_algorithms` also tells the compiler, and imports it for that, which takes seconds.
    torch.set_deterministic_debug_mode("error" if strict else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch has no stubs for it
    torch.backends.cudnn.benchmark = not strict
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if spec.get("device", "cpu") == "cpu":
        return torch.device("cpu")
    resolved("cuda")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)  # of the processes of one host each takes its own
    return device


@contextmanager
def in_words() -> Iterator[None]:
    """What the device cannot do, as a line that says the way out."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Refused(
            "the GPU has too little memory; take fewer seeds at once, a smaller batch, or several processes "
            f"(torchrun): {str(error).splitlines()[0]}"
        ) from None
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        what = str(error).split()[0]
        raise Refused(
            f"{what} sums in any order on this device; use device=cpu, or deterministic=false for results "
            "that differ in rounding from run to run"
        ) from None
