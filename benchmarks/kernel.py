"""Microseconds per step and seed of the fused two-layer kernel, beside a batch-1 SAM step with torch.optim.

    python -m benchmarks.kernel

Width 500, d = 30, n = 100, float32, one thread.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from flattrain.core.losses import squared_error
from flattrain.core.probes import stream
from flattrain.optim import SAM
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import TwoLayer, two_layer
from flattrain.training.fused import Settings, fused_trainer
from flattrain.training.stacked import Seeds

NETS: dict[str, dict[str, Any]] = {
    "no bias": {"bias": False},
    "bias": {"bias": True},
    "layer norm": {"normalisation": "layer", "first_layer_scale": 0.01},
    "norm held": {"normalisation": "layer", "first_layer_norm": 10.0},
}
STEPS = 10_000  # one block


def fused(net: str, rho: float) -> float:
    model, split = two_layer(width=500, **NETS[net]), parity()(0)
    module = model.build(split)
    assert isinstance(module, TwoLayer)
    start = model.start(module, split, stream(0))
    trainer = fused_trainer(
        module, Settings(0.01, rho), Seeds([0], [split.train_x], [split.train_y], [start], [{}])
    )
    state = trainer.advance(trainer.init(), STEPS)  # compile
    spent = []
    for block in range(2, 12):
        began = time.perf_counter()
        state = trainer.advance(state, block * STEPS)
        spent.append((time.perf_counter() - began) / STEPS * 1e6)
    return statistics.median(spent)


def eager() -> float:
    split = parity()(0)
    net = TwoLayer(30, 500, True)
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.05, lr=0.01)

    def step(i: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = squared_error.mean(net(split.train_x[i : i + 1]), split.train_y[i : i + 1])
            loss.backward()
            return loss

        optimizer.step(closure)

    spent = []
    for k in range(300):
        began = time.perf_counter()
        step(k % 100)
        spent.append((time.perf_counter() - began) * 1e6)
    return statistics.median(spent[50:])


def main() -> None:
    torch.set_num_threads(1)
    sequential = eager()
    print(f"{'eager SAM, torch.optim':30} {sequential:8.1f} µs per step")
    for net in NETS:
        for rule, rho in (("SAM", 0.05), ("plain", 0.0)):
            found = fused(net, rho)
            print(f"fused {rule:5} {net:18} {found:8.2f} µs per step   1/{sequential / found:.0f}")


if __name__ == "__main__":
    main()
