"""Where recipes are found: a path as it is, then ./recipes, then the ones that ship with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flattrain.ranges import Refused, suggest


def folders() -> list[Path]:
    """The folders that are searched, first to last."""
    package = Path(__file__).resolve().parent.parent
    extra = os.environ.get("FLATTRAIN_RECIPES", "")
    candidates = [
        *(Path(p) for p in extra.split(os.pathsep) if p),
        Path.cwd() / "recipes",
        package / "recipes",
        package.parent / "recipes",
    ]
    return [p for p in dict.fromkeys(candidates) if p.is_dir()]


def available() -> dict[str, Path]:
    """Name -> file; an earlier folder wins."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find(name: str) -> Path:
    """The file of `recipe=name`."""
    as_path = Path(name)
    if as_path.suffix in (".yaml", ".yml"):
        if as_path.is_file():
            return as_path
        raise Refused(f"recipe={name}: no such file")
    known = available()
    if name in known:
        return known[name]
    raise Refused(f"recipe={name}: no recipe of that name{suggest(name, known)}")


def load(path: Path) -> dict[str, Any]:
    """The YAML as a plain dict. Values only: no interpolation, no tags."""
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise Refused(f"{path}: not a readable recipe: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise Refused(f"{path}: a recipe is a table of keys, not a {type(raw).__name__}")
    _refuse_interpolation(raw, path.name)
    return {str(k): v for k, v in raw.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _refuse_interpolation(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_interpolation(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            _refuse_interpolation(inner, f"{where}[{k}]")
    elif isinstance(value, str) and "${" in value:
        raise Refused(f"{where}: '${{' is not allowed; a recipe holds values only")
