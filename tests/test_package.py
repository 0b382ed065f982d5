"""The house: import directions, file sizes, what importing costs, what ships."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flattrain.lab import catalog, library

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flattrain"
ALLOWED = {
    "ranges": set(),
    "types": set(),
    "core": {"types", "ranges", "core"},
    "problems": {"types", "ranges", "core", "problems"},
    "measures": {"types", "ranges", "core", "measures"},
    "rules": {"types", "ranges", "core", "rules"},
    "training": {"types", "ranges", "core", "problems", "measures", "rules", "training"},
    "regularizers": {"types", "ranges", "core", "measures", "training"},
    "optim": {"types", "ranges", "core", "rules", "optim"},
}
NO_TORCH = (
    "results",
    "statistics",
    "run_folder",
    "claims",
    "compare_page",
    "compare_runs",
    "verdicts",
    "report",
    "figures",
    "figures_spec",
    "figure_style",
    "forest",
    "markup",
    "page_style",
    "painters",
    "provenance",
    "raw_numbers",
    "spec",
    "old_recipes",
    "page",
    "recipe",
    "catalog",
    "library",
    "schema",
    "compose",
    "budget",
    "matching",
    "cell",
    "arms",
    "tune_spec",
    "tuning",
    "tuning_table",
    "cells",
    "cli",
    "registration",
    "study",
    "summary",
    "progress",
    "device",
    "together",
    "tracking",
    "wandb_process",
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "flattrain":
                found |= {f"flattrain.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_run_one_way():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        ring = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if ring not in ALLOWED:
            continue
        for module in imports(path):
            if module.startswith("flattrain."):
                target = module.split(".")[1]
                assert target in ALLOWED[ring], f"{path.relative_to(ROOT)} imports {module}"
                checked += 1
    assert checked > 50


def test_files_are_short_and_nothing_is_called_utils():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
        assert "util" not in path.name


def test_verdicts_can_be_recomputed_without_torch():
    modules = ", ".join(f"flattrain.lab.{name}" for name in NO_TORCH)
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_costs_nothing_and_wandb_only_when_used():
    code = (
        "import sys, flattrain; assert 'torch' not in sys.modules; flattrain.Regularized; flattrain.SAM;"
        "assert not {'wandb', 'matplotlib', 'sklearn', 'hydra', 'pandas', 'torchopt'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "registry",
    [
        catalog.DATASETS,
        catalog.MODELS,
        catalog.OPTIMIZERS,
        catalog.STEP_SIZES,
        catalog.AVERAGES,
        catalog.RULES,
        catalog.MEASURES,
    ],
)
def test_the_schema_read_from_source_is_the_builders_signature(registry):
    import importlib
    import inspect

    for target in registry.values():
        module, function = target.split(":")
        builder = getattr(importlib.import_module(f"flattrain.{module}"), function)
        signature = inspect.signature(builder).parameters
        assert list(signature) == list(catalog.parameters(target)), target
        assert all(p.kind is p.KEYWORD_ONLY for p in signature.values()), target


def test_every_shipped_recipe_is_found():
    shipped = sorted(p.stem for p in (ROOT / "recipes").rglob("*.yaml"))
    assert shipped and set(shipped) <= set(library.available())
