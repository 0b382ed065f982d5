"""The shape of a recipe: the keys it may have at the top and under `train`, with their types.

What stands inside the open tables (problem, arms, measures, claims, …) is checked by `lab.recipe` and
`lab.claims` against the builders' signatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OPEN = (
    "problem", "model", "rule", "penalties", "step_size", "average", "tune", "arms", "grid", "measures",
    "derived", "claims", "figures", "execute",
)  # fmt: skip


@dataclass
class TrainSchema:
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = 32
    steps: int | None = None
    epochs: int | None = None
    gradient_evaluations: int | None = None
    milestones: int = 12
    spacing: str = "log"


@dataclass
class DataSchema:
    root: str | None = None


@dataclass
class RecipeSchema:
    """A recipe and how to run it. Trial first, then execution, which does not change the numbers."""

    title: str = ""
    question: str = ""
    paper: str = ""
    notes: str = ""
    minutes: float = 0.0
    problem: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    rule: Any = "plain"
    penalties: dict[str, Any] = field(default_factory=dict)
    train: TrainSchema = field(default_factory=TrainSchema)
    step_size: Any = None
    average: Any = None
    precision: str = "float32"
    seeds: int = 5
    first_seed: int = 0
    tune: Any = None
    arms: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    correction: str = "none"
    figures: list[Any] = field(default_factory=list)
    presets: dict[str, Any] = field(default_factory=dict)
    # execution
    preset: str | None = None
    backend: str = "auto"
    device: str = "cpu"
    deterministic: bool = True
    jobs: int = 0
    out: str | None = None
    store: str | None = None
    execute: Any = "local"
    tracking: str = "none"
    dry_run: bool = False
    data: DataSchema = field(default_factory=DataSchema)
