"""The spec of one cell: data, loss, model, rule, penalties and training, checked and made plain JSON."""

from __future__ import annotations

from typing import Any

from flattrain.lab import catalog
from flattrain.ranges import Refused, refusal, suggest

EVALUATIONS = "gradient_evaluations"  # the quantity that every run has
LENGTHS = ("steps", "epochs", EVALUATIONS)  # how long an arm trains, in one of three units
MOST = 10_000  # seeds, milestones, grid points, cells or trials: beyond it is a slip of the keyboard
TRAIN = {
    "optimizer": "str",
    "lr": "Positive",
    "momentum": "Fraction | None",
    "weight_decay": "NonNegative | None",
    "batch_size": "Count | None",
    "steps": "Steps | None",
    "epochs": "Steps | None",
    EVALUATIONS: "Count | None",
    "milestones": "Steps",
    "spacing": "Literal['log', 'linear']",
}


def need(where: str, value: Any, annotation: str) -> None:
    """Refuse a value outside its annotation (see `flattrain.ranges`), naming its place."""
    problem = refusal(annotation, value)
    if problem:
        raise Refused(f"{where} {problem}")


def need_one_of(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the names allowed."""
    if value not in allowed:
        raise Refused(f"{where} must be one of {', '.join(allowed)}, got {value!r}")


def need_precision(where: str, value: Any) -> None:
    """Refuse half precision with the reason: eigenvalues and second derivatives are not defined in it."""
    if value in ("bfloat16", "float16", "half"):
        raise Refused(
            f"{where} must be one of float32, float64, got {value!r}: torch has no eigenvalues in half "
            "precision, and the second derivatives that measures take lose their digits"
        )
    need_one_of(where, value, ("float32", "float64"))


def cell_spec(settings: dict[str, Any], arm: str) -> dict[str, Any]:
    """What `lab.run` puts together, from the merged settings of an arm at a grid point."""
    problem = settings["problem"]
    for key in problem:
        if key not in ("dataset", "loss"):
            raise Refused(f"problem: unknown key {key!r}{suggest(key, ('dataset', 'loss'))}")
    dataset = catalog.choose(catalog.DATASETS, problem.get("dataset"), "problem.dataset")
    loss = catalog.choose(catalog.LOSSES, problem.get("loss"), "problem.loss")
    need_precision(f"arms.{arm}.precision", settings["precision"])
    where = f"arms.{arm}"
    return {
        "dataset": _plain(dataset),
        "loss": _plain(loss),
        "model": _plain(catalog.choose(catalog.MODELS, settings["model"], f"{where}.model")),
        "rule": _rules(settings["rule"], f"{where}.rule"),
        "penalties": _penalties(settings["penalties"] or {}, where),
        "train": _train(settings["train"], dataset, where),
        "step_size": _optional(catalog.STEP_SIZES, settings["step_size"], f"{where}.step_size"),
        "average": _optional(catalog.AVERAGES, settings["average"], f"{where}.average"),
        "precision": settings["precision"],
    }


def need_validation(spec: dict[str, Any], quantities: list[str], where: str) -> None:
    """Refuse a quantity on validation examples where the data set has none."""
    ((name, arguments),) = spec["dataset"].items()
    wanted = [q for q in quantities if q.startswith("validation_")]
    if wanted and not arguments.get("validation"):
        raise Refused(
            f"{where}: {wanted[0]} needs validation examples; give their number as "
            f"problem.dataset.{name}.validation"
        )


def _plain(choice: catalog.Choice) -> dict[str, Any]:
    return {choice.name: choice.arguments}


def _optional(registry: dict[str, str], given: Any, where: str) -> dict[str, Any] | None:
    return None if given is None else _plain(catalog.choose(registry, given, where))


def _rules(given: Any, where: str) -> list[dict[str, Any]]:
    """One rule, or a list of them from the outermost to the innermost."""
    named = given if isinstance(given, list) else [given]
    return [_plain(catalog.choose(catalog.RULES, rule, where)) for rule in named]


def _penalties(table: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(table, dict):
        raise Refused(f"{where}.penalties: must be a table of measures, got {table!r}")
    out = []
    for name, arguments in table.items():
        at = f"{where}.penalties.{name}"
        arguments = dict(arguments) if isinstance(arguments, dict) else {}
        if "weight" not in arguments:
            raise Refused(f"{at}: weight is missing; give the factor λ of the penalty")
        need(f"{at}.weight", arguments["weight"], "float")
        weight = arguments.pop("weight")
        until = arguments.pop("until", None)
        need(f"{at}.until", until, "Steps | None")
        choice = catalog.choose(catalog.PENALTIES, {name: arguments}, f"{where}.penalties")
        # A penalty that stays has no such key, so that its cell keeps its identity.
        out.append(
            {"measure": _plain(choice), "weight": weight} | ({} if until is None else {"until": until})
        )
    return out


def _train(train: dict[str, Any], dataset: catalog.Choice, where: str) -> dict[str, Any]:
    if not isinstance(train, dict):
        raise Refused(f"{where}.train: must be a table, got {train!r}")
    for key, value in train.items():
        if key not in TRAIN:
            raise Refused(f"{where}.train: unknown key {key!r}{suggest(key, TRAIN)}")
        need(f"{where}.train.{key}", value, TRAIN[key])
    settings = {k: train[k] for k in ("lr", "momentum", "weight_decay") if train.get(k) is not None}
    optimizer = catalog.choose(catalog.OPTIMIZERS, {train["optimizer"]: settings}, f"{where}.train")
    examples = dataset.arguments.get("train")
    given = [unit for unit in LENGTHS if train.get(unit) is not None]
    if len(given) != 1:
        raise Refused(
            f"{where}.train: give either steps or epochs or {EVALUATIONS} (the others null), got "
            + (", ".join(given) or "none")
        )
    steps, batch_size = train["steps"], examples if train["batch_size"] is None else train["batch_size"]
    if batch_size is None:
        raise Refused(f"{where}.train.batch_size: null, all of them, needs the dataset's train size; give it")
    if given == ["epochs"]:
        if examples is None:
            raise Refused(f"{where}.train.epochs: needs the dataset's train size; give it or use steps")
        steps = train["epochs"] * examples // batch_size
    if examples is not None and batch_size > examples:
        raise Refused(
            f"{where}.train.batch_size must be at most the {examples} training examples, got {batch_size}"
        )
    return {
        "optimizer": _plain(optimizer),
        "batch_size": batch_size,
        "steps": steps,  # None until lab.budget has found how many the gradient evaluations are
        EVALUATIONS: train.get(EVALUATIONS),
        "milestones": train["milestones"],
        "spacing": train["spacing"],
    }
