"""The recipe of a run that an older version wrote: keys that came later have their defaults."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flattrain.lab.recipe import Recipe, read
from flattrain.lab.schema import RecipeSchema
from flattrain.ranges import Refused


def recipe_of_run(folder: Path, record: dict[str, Any]) -> Recipe:
    """The recipe in run.json, checked; one that cannot be read is refused in a line."""
    try:
        raw = record["recipe"]
        known = asdict(RecipeSchema())
        tables = {part: known[part] | raw.get(part, {}) for part in ("train", "data")}
        return read(record["name"], known | raw | tables)
    except Refused as refused:
        raise Refused(f"{folder / 'run.json'}: {refused}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{folder / 'run.json'}: its recipe cannot be read by this version "
            f"({type(error).__name__}: {error}); run the recipe again"
        ) from None
