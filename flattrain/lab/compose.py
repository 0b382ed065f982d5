"""From command-line words to the keys of a recipe: Hydra's grammar and types, our own refusals.

Order: the schema's defaults, the recipe file, its preset, then KEY=VALUE words.
"""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flattrain.lab import library
from flattrain.lab.arms import merge
from flattrain.lab.device import resolved
from flattrain.lab.recipe import Recipe, read
from flattrain.lab.schema import OPEN, RecipeSchema
from flattrain.ranges import Refused, suggest

MEND = "write KEY=VALUE, e.g. recipe=two_layer_relu seeds=20 train.lr=0.02"


def composed(words: list[str]) -> Recipe:
    """The recipe that the words name, with their changes, checked."""
    overrides = _parse(words)
    given = {str(o.key_or_group): o for o in overrides}
    if "recipe" not in given:
        raise Refused(
            f"recipe=NAME is missing; known: {', '.join(library.available())} (python -m flattrain list)"
        )
    name = _text(given.pop("recipe"))
    path = library.find(name)
    raw = library.load(path)
    preset = given.get("preset")
    raw = _with_preset(raw, None if preset is None else _text(preset))
    schema = OmegaConf.structured(RecipeSchema)
    base = _merged(schema, raw, path.name)
    plain = OmegaConf.to_container(base, resolve=False)
    rest = [_settable(o, plain) for key, o in given.items() if key != "preset"]
    final = _compose(base, rest)
    container = OmegaConf.to_container(final, resolve=False)
    assert isinstance(container, dict)
    raw = {str(k): v for k, v in container.items()}
    recipe = read(path.stem, raw)  # first, so that a misspelt key is answered without torch
    device = resolved(raw["device"])
    return recipe if device == raw["device"] else read(path.stem, raw | {"device": device})


def _parse(words: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    out = []
    for word in words:
        if word.startswith("-"):
            raise Refused(f"unknown option {word!r}; {MEND}")
        if "=" not in word:
            raise Refused(f"{word!r} is not KEY=VALUE; {MEND}")
        if "${" in word:
            raise Refused(f"{word!r}: '${{' is not allowed; give the value itself")
        try:
            override = parser.parse_override(word)
        except HydraException:
            raise Refused(
                f"{word!r} cannot be read; quote values with spaces or brackets, and {MEND}"
            ) from None
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise Refused(f"{word!r}: keys are set, not added or deleted; {MEND}")
        if override.is_sweep_override():
            raise Refused(f"{word!r}: one value per key; -m runs one recipe for each, grid is for one study")
        out.append(override)
    keys = [str(o.key_or_group) for o in out]
    for key in keys:
        if keys.count(key) > 1:
            raise Refused(f"{key} is given twice")
    return out


def _text(override: Override) -> str:
    value = override.value()
    if not isinstance(value, str) or not value:
        return str(value)
    return value


def _with_preset(raw: dict[str, Any], preset: str | None) -> dict[str, Any]:
    if preset is None or preset in ("default", "None"):
        return raw
    presets = raw.get("presets") or {}
    if preset not in presets:
        raise Refused(f"preset={preset}: unknown{suggest(preset, ['default', *presets])}")
    changes = presets[preset]
    if not isinstance(changes, dict):
        raise Refused(f"presets.{preset}: must be a table of keys, got {changes!r}")
    out = merge(raw, changes)
    assert isinstance(out, dict)
    return out | {"preset": preset}


def _merged(schema: Any, raw: dict[str, Any], where: str) -> Any:
    top = [str(k) for k in schema]
    for key, value in raw.items():
        if key not in top:
            raise Refused(f"{where}: unknown key {key!r}{suggest(key, top)}")
        if key in ("train", "data") and isinstance(value, dict):
            for inner in value:
                if inner not in schema[key]:
                    known = [f"{key}.{k}" for k in schema[key]]
                    raise Refused(f"{where}: unknown key '{key}.{inner}'{suggest(f'{key}.{inner}', known)}")
    try:
        return OmegaConf.merge(schema, raw)
    except OmegaConfBaseException as error:
        raise Refused(f"{where}: {_plain_error(error)}") from None


def _settable(override: Override, plain: Any) -> str:
    """The override as Hydra takes it; a wrong path is refused with the nearest right one.

    Below the open tables a key may be new (a parameter that the recipe left at its default): there the
    builders' signatures decide.
    """
    path = str(override.key_or_group)
    node: Any = plain
    seen: list[str] = []
    for k, part in enumerate(path.split(".")):
        if not isinstance(node, dict):
            raise Refused(f"{path}: {'.'.join(seen)} is a value, not a table")
        if part not in node:
            if k > 0 and seen[0] in OPEN and (len(seen) > 1 or seen[0] != "arms"):
                return f"++{override.input_line}"
            known = [".".join([*seen, str(key)]) for key in node]
            raise Refused(f"unknown key {path!r}{suggest('.'.join([*seen, part]), known)}")
        node = node[part]
        seen.append(part)
    return str(override.input_line)


def _compose(base: Any, overrides: list[str]) -> Any:
    ConfigStore.instance().store(name="flattrain", node=base)
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            return compose("flattrain", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise Refused(_plain_error(error.__cause__ or error)) from None


def _plain_error(error: BaseException) -> str:
    key = getattr(error, "full_key", None)
    first = str(getattr(error, "msg", None) or error).strip().split("\n")[0]
    return f"{key}: {first}" if key and key not in first else first
