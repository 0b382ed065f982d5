"""Where recipes are found: a path as it is, then ./recipes, then the ones that ship with the package."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flattrain.ranges import Refused, suggest

MOST_BYTES, MOST_VALUES, DEEPEST = 100_000, 10_000, 30
LARGEST = 10**300


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
    """The YAML as a plain dict. Values only: no interpolation, no tags, no more than a person writes."""
    try:
        text = path.read_bytes()
        if len(text) > MOST_BYTES:
            raise Refused(f"{path}: not a recipe: {len(text):,} bytes, more than {MOST_BYTES:,}")
        if _opened(text) > 2 * DEEPEST:  # the parser takes minutes for what it then finds too deep
            raise Refused(f"{path}: not a recipe: nested too deep")
        loaded = yaml.load(text, Loader=get_yaml_loader())
        _need_small(loaded, path)
        raw = OmegaConf.to_container(OmegaConf.create(loaded), resolve=False)
    except Refused:
        raise
    except RecursionError:
        raise Refused(f"{path}: not a readable recipe: nested too deep") from None
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise Refused(f"{path}: not a readable recipe: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise Refused(f"{path}: a recipe is a table of keys, not a {type(raw).__name__}")
    _refuse_interpolation(raw, path.name)
    return {str(k): v for k, v in raw.items()}


def _opened(text: bytes) -> int:
    """How many brackets, or dashes of a list in a list, are open at once, at most."""
    depth = deepest = 0
    for byte in text:
        depth += (byte in b"[{") - (byte in b"]}" and depth > 0)
        deepest = max(deepest, depth)
    dashes = max((len(found) // 2 for found in re.findall(rb"(?:[-?] )+", text)), default=0)
    return max(deepest, dashes)


def _need_small(loaded: Any, path: Path) -> None:
    """A few lines of YAML can stand for more values than there is memory, or for themselves."""
    left, values = [(loaded, 0)], 0
    while left:
        value, depth = left.pop()
        values += 1
        if values > MOST_VALUES or depth > DEEPEST:
            much = f"more than {MOST_VALUES:,} values" if values > MOST_VALUES else f"deeper than {DEEPEST}"
            raise Refused(f"{path}: not a recipe: {much}, with its aliases written out")
        if isinstance(value, dict):
            left += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise Refused(f"{path}: a number of more than 300 digits; write one that a float can hold")
        elif not isinstance(value, str | int | float | None):
            raise Refused(
                f"{path}: a {type(value).__name__} is not a value of a recipe; quote it to make it text"
            )


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
