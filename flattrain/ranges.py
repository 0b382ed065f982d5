"""What values a parameter may take, said once: in the annotation of the builder that has it.

    def sam(*, rho: NonNegative = 0.05) -> Rule: ...

The annotation's *text* is the schema. `checked` enforces it when the builder is called, and the recipe
loader reads the same text from the source without importing torch, so a mistake in a recipe is answered
at once. Importing this module costs nothing.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Positive = float
NonNegative = float
Fraction = float
Count = int
Steps = int

_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "float": ("a finite number", lambda v: True),
    "Positive": ("a number > 0", lambda v: v > 0),
    "NonNegative": ("a number >= 0", lambda v: v >= 0),
    "Fraction": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "int": ("a whole number", lambda v: v == int(v)),
    "Count": ("a whole number >= 1", lambda v: v == int(v) and v >= 1),
    "Steps": ("a whole number >= 0", lambda v: v == int(v) and v >= 0),
}


# What the laboratory gives to a builder and a recipe cannot write.
_GIVEN = {
    "OfBatch": "a function of (params, batch)",
    "OfRadius": "a function of the radius that returns a gradient function",
    "Loss": "a flattrain.types.Loss",
}


class Refused(ValueError):
    """Bad input, in one line: what offends, what is allowed, how to mend it."""


def listed(names: Iterable[str], most: int = 15) -> str:
    """The names in one line; of a long list the first `most`, and how many there are."""
    every = list(names)
    return ", ".join(every[:most]) + (f", … ({len(every)} in all)" if len(every) > most else "")


def suggest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for a near miss, else the names that are known."""
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {listed(names)}" if names else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def refusal(annotation: str, value: Any) -> str | None:
    """What is wrong with `value` under `annotation`, or None when it is allowed."""
    options = [part.strip() for part in annotation.split("|")]
    if value is None:
        return None if "None" in options else "must not be null"
    said = []
    for option in options:
        if option in _NUMBERS:
            words, allows = _NUMBERS[option]
            if _is_number(value) and math.isfinite(value) and allows(value):
                return None
            said.append(words)
        elif option == "bool":
            if isinstance(value, bool):
                return None
            said.append("true or false")
        elif option == "str":
            if isinstance(value, str):
                return None
            said.append("a text")
        elif option in _GIVEN:
            if not isinstance(value, bool | int | float | str | list | tuple | dict):
                return None
            said.append(_GIVEN[option])
        elif option.startswith("Literal["):
            allowed = _literals(option)
            if value in allowed:
                return None
            return f"must be one of {', '.join(map(repr, allowed))}, got {value!r}" + (
                suggest(value, allowed) if isinstance(value, str) else ""
            )
        elif option.startswith("tuple["):
            inner = option[len("tuple[") :].split(",")[0]
            if isinstance(value, list | tuple) and all(refusal(inner, v) is None for v in value):
                return None
            said.append("a list of numbers" if inner in _NUMBERS else "a list of texts")
        elif option.startswith("Mapping[str, "):
            inner = option[len("Mapping[str, ") : -1]
            if isinstance(value, Mapping) and value:
                return _entries_refusal(inner, value)
            said.append(f"a table of names, {_NUMBERS[inner][0]} for each")
    return f"must be {' or '.join(said)}, got {value!r}" if said else None


def _entries_refusal(annotation: str, table: Mapping[Any, Any]) -> str | None:
    for key, value in table.items():
        if not isinstance(key, str):
            return f"must have texts as its names, got {key!r}; quote it"
        problem = refusal(annotation, value)
        if problem:
            return f"of {key!r} {problem}"
    return None


def _literals(option: str) -> tuple[Any, ...]:
    node = ast.parse(option, mode="eval").body
    assert isinstance(node, ast.Subscript)
    inner = ast.literal_eval(node.slice)
    return inner if isinstance(inner, tuple) else (inner,)


def checked(builder: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments outside their annotations, naming the parameter."""
    annotations = inspect.get_annotations(builder)
    signature = inspect.signature(builder)

    @functools.wraps(builder)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            problem = refusal(str(annotations.get(name, "")), value)
            if problem:
                raise Refused(f"{builder.__name__}: {name} {problem}")
        return builder(*args, **kwargs)

    return build
