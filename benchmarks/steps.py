"""What a regularized training step costs, as a ratio to the plain step in the same run.

    python -m benchmarks.steps

MLP 784-512-256-10, batch 128, SGD with momentum, one thread; the methods take turns, medians of `REPEATS`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.cases import mlp
from flattrain.optim import SAM
from flattrain.regularizers import (
    FisherRank,
    GaussNewtonTrace,
    HessianTrace,
    Penalty,
    Regularized,
    RelativeFlatness,
    SoftRank,
)

REPEATS, BATCH = 25, 128


def plain_step(penalties: list[Penalty], x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    objective = Regularized(net, F.cross_entropy, penalties) if penalties else None

    def step() -> None:
        optimizer.zero_grad()
        loss = objective(x, y) if objective else F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()

    return step


def sam_step(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    net = mlp()
    optimizer = SAM(net.parameters(), torch.optim.SGD, rho=0.05, lr=0.01, momentum=0.9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
    steps = {
        "plain": plain_step([], x, y),
        "relative flatness, head": plain_step([RelativeFlatness("head", weight=1e-3)], x, y),
        "relative flatness, hidden 256×512, 1 probe": plain_step(
            [RelativeFlatness("hidden2", weight=1e-3)], x, y
        ),
        "soft rank, sketch": plain_step([SoftRank(weight=1e-3, columns="sketch")], x, y),
        "soft rank, exact": plain_step([SoftRank(weight=1e-3)], x, y),
        "Fisher soft rank, sketch": plain_step([FisherRank(weight=1e-3)], x, y),
        "Fisher soft rank, exact": plain_step([FisherRank(weight=1e-3, columns="exact")], x, y),
        "Gauss–Newton trace, 1 sketch": plain_step([GaussNewtonTrace(weight=1e-3)], x, y),
        "Gauss–Newton trace, exact": plain_step([GaussNewtonTrace(weight=1e-3, columns="exact")], x, y),
        "Hessian trace, 1 probe": plain_step([HessianTrace(weight=1e-3)], x, y),
        "SAM": sam_step(x, y),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(REPEATS + 3):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if turn >= 3:
                times[name].append(time.process_time() - began)
    plain = statistics.median(times["plain"])
    print(f"{'step':45} ratio   (plain: {1e3 * plain:.2f} ms of processor time)")
    for name, spent in times.items():
        print(f"{name:45} {statistics.median(spent) / plain:5.2f}")


if __name__ == "__main__":
    main()
