"""Checkpoints: one safetensors file whose header carries the rest as JSON, replaced atomically.

Nothing that is loaded can execute. A file that is not whole is as good as none: the cell starts again,
and since everything random is a function of the step, it arrives at the same numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flattrain.training.atomic import write_atomically
from flattrain.training.trainer import State


def save_state(path: Path, state: State, extra: Any) -> None:
    """Store `state` and the JSON value `extra`."""
    tensors = {f"params.{k}": v.contiguous() for k, v in state.params.items()}
    tensors |= {f"optimizer.{i}": v.contiguous().clone() for i, v in enumerate(state.optimizer)}
    tensors |= {f"memory.{k}": v.contiguous().clone() for k, v in state.memory.items()}
    # The file sorts its tensors by name; sums over a tree go by its order, down to the last bit.
    about = {
        "step": state.step,
        "params": list(state.params),
        "optimizer": len(state.optimizer),
        "memory": list(state.memory),
        "extra": extra,
    }
    header = {"flattrain": json.dumps(about)}
    write_atomically(path, save(tensors, metadata=header))


def load_state(path: Path) -> tuple[State, Any] | None:
    """What `save_state` stored, or None when there is no whole checkpoint."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["flattrain"])

            def tensor(name: str) -> Tensor:
                # Copied, to begin at a round address: in the file it does not, where some kernels sum in
                # another order, and the step's rows would not be those of a run that was never killed.
                return file.get_tensor(name).clone()

            params = {name: tensor(f"params.{name}") for name in header["params"]}
            optimizer = [tensor(f"optimizer.{i}") for i in range(header["optimizer"])]
            memory = {name: tensor(f"memory.{name}") for name in header["memory"]}
        return State(header["step"], params, optimizer, memory), header["extra"]
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
