"""Right recipes changed by chance: their values, keys, depth, characters and aliases."""

from __future__ import annotations

import copy
import datetime

import yaml

JUNK = [
    None, -1, 0, 1.5, float("nan"), float("inf"), -float("inf"),
    10**30, -(10**30), 10**400, 2**63, 1e308, 5e-324,
    "x", "", " ", "\n", "a\nb", "null", "~", "${x}", "${oc.env:HOME}", "???", "a.b.c", "a,b", "=", "\\",
    "'", '"',
    "../..", "/etc/passwd", "__class__", "ü ✓", "\u202e\u0000"[:1], "🧠" * 50, "x" * 5000, "1e999", "0x10",
    "1_000",
    True, False, [], {}, [[]], [{}], {"": {}}, [1, [2]], {"a": {"b": 2}}, {1: 2}, {None: 1}, {True: 1},
    {1.5: 2},
    [None], ["train_loss"] * 300, list(range(1000)), datetime.date(2020, 1, 1), b"\x00\xff",
    {"sam": {"rho": None}},
    {"two_layer": None}, {"sam": {}, "plain": {}}, [{"sam": {"rho": "x"}}], "train_loss", "sam", "two_layer",
    "ray",
]  # fmt: skip
KEYS = [
    "",
    " ",
    "x",
    "sam",
    "arms",
    "seeds",
    "lr",
    "rule",
    "ü",
    "a.b",
    "a=b",
    "${x}",
    "x" * 500,
    1,
    -1,
    1.5,
    True,
    None,
]
TEXTS = [
    "&a [*a]", "*nowhere", "!!python/name:os.system", "!!set {a, b}", "!!binary aGk=", "!x y", "<<: {a: 1}",
    "? [1, 2] : 3",
    "\t", "---\n", "...\n", "%YAML 9.9\n",
    "{", "[", "}", ":", "|", ">-\n", "#", "\x00", "\x85", "\ufeff",
    "é", "\r", "2020-01-01",
    "{a: 1, a: 2}", "9" * 5000, "0b1", "12:30:45", ".inf", "-.nan", "'", '"', "&b", "- ", "\x07", "@", "`",
]  # fmt: skip


def places(value, before=()):
    """The paths of every value in a tree."""
    out = [before] if before else []
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        out += places(value[key], (*before, key))
    return out


def mutant(text, chance):
    """`text` with one to four changes, of its tree or of its characters."""
    if chance.random() < 0.3:
        return _characters(text, chance)
    tree = yaml.safe_load(text)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        where = places(tree)
        if where:
            _change(tree, chance.choice(where), chance)
    return _dumped(tree, chance)


def _change(tree, path, chance):
    *parents, last = path
    node = tree
    for key in parents:
        node = node[key]
    kind = chance.randrange(8)
    if kind <= 2:
        node[last] = copy.deepcopy(chance.choice(JUNK))
    elif kind == 3:
        del node[last]
    elif kind == 4 and isinstance(node, dict):
        node[chance.choice(KEYS)] = node.pop(last)
    elif kind == 5 and isinstance(node, dict):
        node[chance.choice(KEYS)] = copy.deepcopy(chance.choice(JUNK))
    elif kind == 6:
        for _ in range(chance.choice((3, 30, 200))):
            node[last] = chance.choice(({"a": node[last]}, [node[last]]))
    else:
        other = chance.choice(places(tree))
        found = tree
        for key in other:
            found = found[key]
        node[last] = copy.deepcopy(found)


def _dumped(tree, chance):
    try:
        return yaml.safe_dump(
            tree, allow_unicode=True, sort_keys=False, default_flow_style=chance.choice((None, True))
        )
    except (RecursionError, ValueError, TypeError):
        return "["


def _characters(text, chance):
    kind = chance.randrange(6)
    if kind == 0:
        return laughs(chance.choice((3, 9, 30)))
    if kind == 1:
        deep = chance.choice((50, 500, 5000))
        return text + "\nmodel: " + "[" * deep + "]" * deep
    at = chance.randrange(len(text))
    if kind == 2:
        return text[:at]
    if kind == 3:
        return text[:at] + text[at + chance.randrange(1, 40) :]
    if kind == 4:
        lines = text.split("\n")
        chance.shuffle(lines)
        return "\n".join(lines)
    return text[:at] + chance.choice(TEXTS) + text[at:]


def laughs(levels):
    """A few lines whose aliases stand for 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines)
