"""The README and the pages are true: code runs, recipes are accepted, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from flattrain.lab.claim_tests import TESTS
from flattrain.lab.claims import read_claims
from flattrain.lab.compose import composed
from flattrain.lab.scope import Scope

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def test_the_readmes_code_runs_as_one_session():
    torch.set_default_dtype(torch.float32)
    names: dict[str, object] = {}
    parts = blocks(ROOT / "README.md", "python")
    assert len(parts) == 4
    for part in parts:
        exec(part, names)
    total = names["objective"](names["x"], names["y"])
    total.backward()
    assert set(names["objective"].logs) == {"loss", "gradient_norm"}


def test_the_optimizer_pages_code_runs_as_one_session():
    torch.set_default_dtype(torch.float32)
    names: dict[str, object] = {}
    for part in blocks(ROOT / "docs" / "optimizers.md", "python"):
        before = {k: v.clone() for k, v in names["model"].state_dict().items()} if names else {}
        exec(part, names)
        after = names["model"].state_dict()
        assert any(not torch.equal(v, after[k]) for k, v in before.items()) or not before


def test_the_example_recipe_is_accepted(tmp_path):
    (text,) = blocks(ROOT / "docs" / "write-a-recipe.md", "yaml")
    path = tmp_path / "example.yaml"
    path.write_text(text)
    assert len(composed([f"recipe={path}"]).cells) == 2


def test_every_shipped_recipe_and_preset_is_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    count = 0
    for path in (ROOT / "recipes").rglob("*.yaml"):
        recipe = composed([f"recipe={path}"])
        assert recipe.claims and recipe.question and recipe.paper
        for preset in recipe.raw["presets"]:
            composed([f"recipe={path}", f"preset={preset}"])
        count += 1
    assert count >= 2


def test_the_page_on_claims_has_every_test_and_its_example_is_accepted():
    page = ROOT / "docs" / "claims-and-statistics.md"
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page.read_text("utf-8"), re.M)))
    assert set(TESTS) <= set(listed)
    assert {"says", "source", "setting", "level", "sides", "family", "void_unless"} <= set(listed)
    (text,) = blocks(page, "yaml")
    scope = Scope(("sgd",), {"n": {1, 2}, "lr": {1, 2}}, ("gauss_newton_trace", "test_error"))
    (claim,) = read_claims(OmegaConf.to_container(OmegaConf.create(text))["claims"], scope)
    assert claim.family == "traces" and claim.level == 0.95


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
