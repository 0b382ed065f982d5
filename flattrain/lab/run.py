"""The composition root: the only place where data, model, objective, rule and trainer meet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flattrain.core import trees
from flattrain.core.ghost_sam import functional_too
from flattrain.core.layers import normalisation_parameters
from flattrain.core.logistic import SMOOTHING
from flattrain.core.probes import stream
from flattrain.lab import catalog
from flattrain.lab.device import in_words, set_up
from flattrain.lab.measuring import estimate, on, row
from flattrain.lab.spec import EVALUATIONS
from flattrain.lab.stopping import all_stopped, stopped
from flattrain.problems.split import Model, Split
from flattrain.problems.toys import Toy
from flattrain.problems.two_layer import LayerNormed, TwoLayer
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.training import fused, loop, objective
from flattrain.training.averaging import averaged
from flattrain.training.compiled import too_few
from flattrain.training.divergence import lost, watched
from flattrain.training.evaluations import Cost
from flattrain.training.objective import Penalty
from flattrain.training.ranks import ALONE, Ranks
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.training.trainer import State, Trainer
from flattrain.types import Contrast, Estimate, Loss, Network, Quantity, StatefulRule

OF_ROWS = ("m_sam", "esam", "functional_sam", "sharpness_aware_perturbation")  # rules that see examples
PROBES = 20  # of a stochastic measure in evaluation, unless the recipe says otherwise


class Experiment:
    """One cell, put together: its trainer, and its measures of a state."""

    def __init__(self, spec: dict[str, Any], root: str | None, ranks: Ranks = ALONE) -> None:
        self.spec, self.ranks = spec, ranks
        _need_no_rows(spec, ranks)
        first = spec["first_seed"]
        self.seeds = list(range(first, first + spec["seeds"]))
        dtype, device = getattr(torch, spec["precision"]), set_up(spec)
        dataset = _build(catalog.DATASETS, spec["dataset"], root=root)
        # Drawn and built on the CPU, so that the start is the same wherever the cell runs.
        here = [_as(dtype, dataset(seed)) for seed in self.seeds]
        self.model: Model = _build(catalog.MODELS, spec["model"])
        self.module = self.model.build(here[0]).to(dtype)
        self.criterion: Loss = _build(catalog.LOSSES, spec["loss"])
        _need_targets(spec, torch.is_floating_point(here[0].train_y))
        starts = [
            self.model.start(self.module, split, stream(seed, "start"))
            for seed, split in zip(self.seeds, here, strict=True)
        ]
        buffers = [self.model.buffers(self.module, split) for split in here]
        self.module = self.module.to(device)
        self.splits = [split.each(lambda t: t.to(device)) for split in here]
        self.stacked = Seeds(
            self.seeds,
            [s.train_x for s in self.splits],
            [s.train_y for s in self.splits],
            [{k: v.to(device, dtype) for k, v in start.items()} for start in starts],
            [{k: v.to(device) for k, v in of_split.items()} for of_split in buffers],
        )
        penalties = [
            Penalty(_build(catalog.PENALTIES, p["measure"]), p["weight"], p.get("until"))
            for p in spec["penalties"]
        ]
        self.objective = objective.build(self.module, self.criterion, penalties, ranks=self.ranks)
        size = spec["train"]["batch_size"]
        x, y = self.stacked.x[0][:size], self.stacked.y[0][:size]
        self.cost = Cost(self._rule(None), self.stacked.params[0], x, y)
        self.diverged: dict[int, int] = {}  # seed -> the step after which its weights were not finite
        self.trainer = watched(self._trainer())

    def _trainer(self) -> Trainer:
        spec = self.spec
        settings = None if self.ranks.several else _fused_settings(spec)
        if settings is not None and fused.available() and fused.covers(self.module):
            assert isinstance(self.module, TwoLayer)
            return fused.fused_trainer(self.module, settings, self.stacked)
        # In two passes, where these are the whole of the innermost gradient.
        alone = not any(self.stacked.buffers) and not spec["penalties"] and functional_too(self.module)
        return stacked_trainer(
            self.objective,
            self._rule(self.objective.per_example_sam if alone else None),
            _build(catalog.OPTIMIZERS, spec["train"]["optimizer"]),
            spec["train"]["batch_size"],
            self.stacked,
            lambda params: self.model.project(self.module, params),
            eager="as asked" if spec["backend"] == "eager" else too_few(spec["train"]["steps"]),
            step_size=_built(catalog.STEP_SIZES, spec["step_size"]),
            average=_built(catalog.AVERAGES, spec["average"]),
            ranks=self.ranks,
        )

    def _rule(self, per_example: Any) -> StatefulRule:
        """`per_example` is a short cut for the innermost rule, if it can take one."""
        # A function of (params, batch) alone cannot tell which seed's buffers it is to see.
        apart = not any(self.stacked.buffers)
        rules = [
            _build(
                catalog.RULES,
                one,
                parameters=normalisation_parameters(self.module),
                criterion=self.criterion,
                outputs=self.objective.outputs if apart else None,
                losses=self.objective.losses if apart else None,
                per_example=per_example if k == len(self.spec["rule"]) - 1 else None,
            )
            for k, one in enumerate(self.spec["rule"])
        ]
        return compose(rules)

    def stops(self) -> list[int]:
        train = self.spec["train"]
        return loop.milestones(train["steps"], train["milestones"], train["spacing"])

    def measures(self, *parts: str) -> dict[str, Quantity]:
        """The measures of those parts: along the way, at the end, where the seed would have stopped."""
        given = self.spec["measures"]
        of = {**given, "stop": (given.get("stop") or {}).get("measures", [])}
        return dict(self._measure(entry) for part in parts for entry in of[part])

    def _measure(self, entry: Any) -> tuple[str, Quantity]:
        name, choice = catalog.measured(entry, "measures")
        clamp = self.module.clamp if isinstance(self.module, LayerNormed) else None
        landmarks = self.module.landmarks if isinstance(self.module, Toy) else None
        return name, catalog.build(choice, probes=PROBES, clamp=clamp, landmarks=landmarks)

    def measure(self, state: State, before: loop.Rows) -> loop.Rows:
        """One row per seed and quantity, at the averaged weights where they are averaged.

        Of a seed that diverged nothing is measured: its rows are nan. `before` are the rows of the stops
        before this one, from which it is known which seeds have passed where they would have stopped.
        """
        rows: loop.Rows = []
        weights = averaged(state)
        last = state.step == self.spec["train"]["steps"]
        wanted, stop = self.measures("along", *(["end"] if last else [])), self.spec["measures"].get("stop")
        past = stopped(stop, before) if stop else set()
        self.diverged = {self.seeds[k]: step for k, step in lost(state).items()}
        for k, seed in enumerate(self.seeds):
            params = trees.pick(weights, k)
            taken = self.cost.until(state.step)
            rows.append(row(seed, state.step, EVALUATIONS, Estimate(taken)))
            network = Network(self.module, self.criterion, params, self.stacked.buffers[k])
            rows += (own := self._rows(k, network, wanted, state.step))
            if stop and stopped(stop, own) - past:
                rows += self._rows(k, network, self.measures("stop"), state.step)
        return rows

    def _rows(self, k: int, network: Network, wanted: Mapping[str, Quantity], step: int) -> loop.Rows:
        """Those of the k-th seed."""
        seed, rows = self.seeds[k], []
        for name, measure in wanted.items():
            found = (
                Estimate(math.nan, math.nan)
                if seed in self.diverged
                else estimate(measure, network, self.splits[k], name, (seed, step), self.ranks)
            )
            rows.append(row(seed, step, name, found))
        return rows

    def definitions(self) -> dict[str, str]:
        """What each quantity is, in words."""
        out = {EVALUATIONS: "gradients of one batch of the arm's size that its rule has taken"}
        for name, measure in self.measures("along", "end", "stop").items():
            split = next((f"the {part}" for part in ("test", "validation") if on(part, name)), "the training")
            both = "the training and, held out, the test"
            where = both if isinstance(measure, Contrast) else split
            out[name] = f"{measure.definition}; on {where} examples, evaluation mode"
        return out


def run_cell(
    spec: dict[str, Any],
    root: str | None,
    checkpoint: Path | None,
    progress: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train and measure one block of a cell's seeds; resumes from `checkpoint`, if it is to keep one.

    Of several processes, the first alone writes it.
    """
    began = time.monotonic()
    with in_words():
        experiment = Experiment(spec, root, ranks)
        rows = loop.run(
            experiment.trainer,
            experiment.stops(),
            experiment.measure,
            checkpoint=checkpoint,
            every_seconds=math.inf if ranks.rank else 3.0,
            progress=progress,
            done=lambda rows: all_stopped(spec["measures"].get("stop"), rows, experiment.seeds),
        )
    return {
        "rows": rows,
        "backend": experiment.trainer.backend,
        "definitions": experiment.definitions(),
        "diverged": [
            {"seed": seed, "step": step, "why": f"the weights are not finite after step {step}"}
            for seed, step in experiment.diverged.items()
        ],
        "seconds": round(time.monotonic() - began, 3),
    }


def _build(registry: dict[str, str], spec: Any, **context: Any) -> Any:
    return catalog.build(catalog.choose(registry, spec, "cell"), **context)


def _built(registry: dict[str, str], spec: Any) -> Any:
    return None if spec is None else _build(registry, spec)


def _need_no_rows(spec: dict[str, Any], ranks: Ranks) -> None:
    named = [name for rule in spec["rule"] for name in rule if name in OF_ROWS]
    if ranks.several and named:
        raise Refused(
            f"rule {named[0]} picks or groups the examples of a batch, which {ranks.world} processes share; "
            "run it on one process"
        )


def _need_targets(spec: dict[str, Any], real: bool) -> None:
    (loss,) = spec["loss"]
    if (loss == "cross_entropy") == real:
        needs, gives = ("class labels", "real targets") if real else ("real targets", "class labels")
        raise Refused(f"problem.loss: {loss} needs {needs}, the data set gives {gives}")


def _as(dtype: torch.dtype, split: Split) -> Split:
    return split.each(lambda t: t.to(dtype) if torch.is_floating_point(t) else t)


def _fused_settings(spec: dict[str, Any]) -> fused.Settings | None:
    """The kernel's settings, or None where a cell asks for something it does not do."""
    ((optimizer, options),) = spec["train"]["optimizer"].items()
    if len(spec["rule"]) != 1:
        return None
    ((rule, knobs),) = spec["rule"][0].items()
    plain_sgd = optimizer == "sgd" and not options.get("momentum") and not options.get("weight_decay")
    if not (
        plain_sgd
        and spec["backend"] == "auto"
        and spec.get("device", "cpu") == "cpu"
        and spec["train"]["batch_size"] == 1
        and set(spec["loss"]) <= {"squared_error", "smoothed_logistic"}
        and not spec["penalties"]
        and not spec["step_size"]
        and not spec["average"]
    ):
        return None
    lr = options["lr"]
    smoothing = SMOOTHING if "smoothed_logistic" in spec["loss"] else None
    if rule == "plain":
        return fused.Settings(lr, smoothing=smoothing)
    if rule == "sam" or (rule == "m_sam" and knobs.get("m", 1) == 1):
        return fused.Settings(lr, rho=knobs.get("rho", 0.05), smoothing=smoothing)
    if rule == "label_noise" and smoothing is None:
        return fused.Settings(lr, delta=knobs.get("delta", 0.5))
    return None


def check(spec: dict[str, Any], root: str | None, ranks: Ranks = ALONE) -> str:
    """Put a cell together for one seed, measure a few examples and take a step: what is refused is refused

    before anything is written. Returns a warning, or nothing.
    """
    last = min(spec["train"]["steps"], 1)  # so few that nothing is compiled
    measures = spec["measures"]
    if "stop" in measures:  # as if every seed had stopped
        measures = measures | {"stop": measures["stop"] | {"at_most": math.inf}}
    small = {"seeds": 1, "train": spec["train"] | {"steps": last}, "measures": measures}
    with in_words():
        experiment = Experiment(spec | small, root, ranks)
        experiment.splits = [split.each(lambda t: t[:8]) for split in experiment.splits]
        state = experiment.trainer.init()
        experiment.measure(state._replace(step=last), [])
        if last:
            experiment.trainer.advance(state, last)
    if _fused_settings(spec) and fused.covers(experiment.module) and not fused.available():
        return (
            "numba is not installed, so batch-1 two-layer nets train some 400 times slower; "
            "pip install 'flattrain[fused]'"
        )
    return ""
