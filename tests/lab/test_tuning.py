"""Tuning: what is tried, what is refused, what wins, and that nothing of it has seen the test examples."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from tuned_recipe import TUNED

from flattrain.lab import execute, results, study, tuning_table
from flattrain.lab.budget import affordable
from flattrain.lab.cells import blocks, rows_of
from flattrain.lab.compose import composed
from flattrain.lab.executors.job import work
from flattrain.lab.recipe import read
from flattrain.lab.results import Row
from flattrain.lab.run import run_cell
from flattrain.lab.tuning import at_ends, first_best, mean_score, plan, seed_scores, trials_of, tuned
from recipes import call, write


@pytest.fixture
def recipe(tmp_path):
    return affordable(composed([f"recipe={write(tmp_path, TUNED)}"]))


def settings(recipe):
    return {t.of[0]: list(t.spec.candidates) for t in recipe.tunings}


def ran(recipe, folder):
    """The rows of every trial, run here."""
    found = {}
    for cell in trials_of(recipe).cells:
        result = run_cell(cell.spec, None, folder / "none.safetensors", lambda step: None)
        found[cell.key] = rows_of(cell, result)
    return found


def test_every_arm_gets_the_same_number_of_trials_on_seeds_of_their_own(recipe):
    tried = settings(recipe)
    assert tried["sgd"] == [{"train.lr": lr} for lr in (0.001, 0.1, 0.5)]
    grid = [
        {"train.lr": lr, "rule.sam.rho": rho} for lr, rho in itertools.product((0.001, 0.1, 0.5), (0.02, 0.2))
    ]
    assert len(tried["sam"]) == 3 and all(one in grid for one in tried["sam"])
    assert tried["sam"] == sorted(tried["sam"], key=grid.index)
    assert "fixed" not in tried
    for tuning in recipe.tunings:
        for setting, trial, final in zip(tuning.spec.candidates, tuning.trials, tuning.finals, strict=True):
            seeds = [
                set(range(s["first_seed"], s["first_seed"] + s["seeds"])) for s in (trial.spec, final.spec)
            ]
            assert not seeds[0] & seeds[1] and len(seeds[0]) == 2 and len(seeds[1]) == 3
            assert trial.spec["measures"] == {"along": [], "end": ["validation_error", "validation_loss"]}
            for cell in (trial, final):
                assert cell.spec["train"]["optimizer"] == {"sgd": {"lr": setting["train.lr"]}}
                assert cell.steps == (30 if tuning.of[0] == "sam" else 60)  # 60 gradients


def test_the_draw_is_of_the_recipe_and_not_of_the_arm(recipe, tmp_path):
    wide = TUNED.replace("[0.001, 0.1, 0.5]", "[0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]").replace(
        "tune: null", "rule: sam"
    )
    draws = {
        name: settings(composed([f"recipe={write(tmp_path, wide, name=name)}"])) for name in ("a", "b", "c")
    }
    for tried in draws.values():
        assert tried["sgd"] == tried["fixed"]  # the same grid, the same points
    assert len({json.dumps(tried["sgd"]) for tried in draws.values()}) > 1
    assert draws["a"] == settings(composed([f"recipe={tmp_path / 'recipes' / 'a.yaml'}"]))


def test_the_identity_is_known_before_the_run_and_moves_with_the_candidates(recipe, tmp_path):
    again = read(recipe.name, recipe.raw)
    assert again.key == recipe.key
    chosen, _ = tuned(recipe, lambda cell: [])
    assert chosen.key == recipe.key
    path = tmp_path / "recipes" / "tiny.yaml"
    for word in ("tune.seeds=1", "tune.by=validation_error", "tune.first_seed=77", "tune.budget=2"):
        assert composed([f"recipe={path}", word]).key != recipe.key


def test_what_is_chosen_does_not_depend_on_the_test_examples(recipe, tmp_path, monkeypatch):
    """Other test images, other test labels, more of them, and other quantities to measure on them."""
    from flattrain.problems import digits as module

    recipe = dataclasses.replace(recipe, tunings=recipe.tunings[:1])
    before = tuned(recipe, lambda cell: ran(recipe, tmp_path)[cell.key])[1]
    real, calls = module.digits, []

    def spoilt(**sizes):
        data = real(**sizes)
        calls.append(sizes)

        def split(seed):
            whole = data(seed)
            return whole._replace(
                test_x=torch.full_like(whole.test_x, torch.nan), test_y=9 - whole.test_y, outputs=10
            )

        return split

    monkeypatch.setattr(module, "digits", spoilt)
    rows = ran(recipe, tmp_path)
    assert len(calls) == 3
    assert tuned(recipe, lambda cell: rows[cell.key])[1] == before
    raw = json.loads(json.dumps(recipe.raw))
    raw["problem"]["dataset"]["digits"]["test"] = 700
    raw["measures"]["along"] = ["test_loss"]
    raw["claims"] = {}
    other = affordable(read(recipe.name, raw))
    other = dataclasses.replace(other, tunings=other.tunings[:1])
    monkeypatch.setattr(module, "digits", real)
    rows = ran(other, tmp_path)
    after = tuned(other, lambda cell: rows[cell.key])[1]
    assert [{k: v for k, v in e.items() if k != "key"} for e in after] == [
        {k: v for k, v in e.items() if k != "key"} for e in before
    ]
    assert {r.quantity for each in rows.values() for r in each} == {
        "validation_error", "validation_loss", "gradient_evaluations"
    }  # fmt: skip


def made_up(scores):
    """rows_of_cell with the given scores, in the order in which the trials are asked for."""
    each = iter(scores)

    def rows(cell):
        first = cell.spec["first_seed"]
        return [
            Row(cell.arm, (), first + k, cell.steps, "validation_loss", v, 0.0)
            for k, v in enumerate(next(each))
        ]

    return rows


@pytest.mark.parametrize(
    ("sgd", "wins"),
    [
        ([[3, 3], [1, 2], [2, 3]], 0.1),
        ([[1, 2], [2, 1], [3, 3]], 0.001),  # a tie goes to the first
        ([[1, 1], [0.1, math.nan], [2, 2]], 0.001),  # one seed that diverged loses it
        ([[math.nan, 0], [math.inf, 0], [9, 9]], 0.5),
        ([[0], [5, 5], [6, 6]], 0.1),  # a seed without a last row has diverged
        ([[math.nan] * 2] * 3, 0.001),  # all lost: the first, and the record says so
    ],
)
def test_the_smallest_mean_wins(recipe, sgd, wins):
    settled, entries = tuned(recipe, made_up([*sgd, [4, 4], [1, 1], [2, 2]]))
    cells = {c.arm: c for c in settled.cells}
    assert cells["sgd"].spec["train"]["optimizer"] == {"sgd": {"lr": wins}}
    assert entries[0]["chosen"] == {"train.lr": wins} and cells["sgd"].spec["seeds"] == 3
    second = recipe.tunings[1].spec.candidates[1]
    assert cells["sam"].spec["rule"] == [{"sam": {"rho": second["rule.sam.rho"]}}]
    assert cells["fixed"] == recipe.cells[2] and [c.arm for c in settled.cells] == ["sgd", "sam", "fixed"]
    json.dumps(entries, allow_nan=False)


def test_the_record_says_what_was_tried(recipe):
    before = plan(recipe)
    assert all(entry["chosen"] is None and "scores" not in entry["trials"][0] for entry in before)
    _, (sgd, _) = tuned(recipe, made_up([[2, 2], [math.nan, 1], [2, 2], *[[1, 1]] * 3]))
    assert [t["mean"] for t in sgd["trials"]] == [2, None, 2] and sgd["trials"][1]["scores"] == [None, 1]
    assert sgd["ties"] == 1 and sgd["diverged"] == 1 and sgd["at_ends"] == ["train.lr"]
    assert [t["setting"] for t in sgd["trials"]] == [t["setting"] for t in before[0]["trials"]]
    shown = "".join(tuning_table.section({"tuning": [sgd]}))
    assert "train.lr = 0.001" in shown and "1 of 3 trials diverged" in shown and "1000000 to 1000001" in shown
    assert "| sgd | train.lr = 0.001 | 2 | 3 × 2 seeds |" in "\n".join(
        tuning_table.as_markdown({"tuning": [sgd]})
    )
    for nothing in ({}, {"tuning": []}, {"tuning": before}):
        assert not list(tuning_table.section(nothing)) and tuning_table.as_markdown(nothing) == []


def test_small_functions():
    assert first_best([[1.0], [0.5], [0.5]]) == 1
    assert mean_score([0.1, 0.2, 0.3]) == mean_score([0.3, 0.1, 0.2]) and mean_score([math.inf]) == math.inf
    tried = [{"lr": v, "name": n} for v in (1, 2, 3) for n in "ab"]
    assert at_ends({"lr": 3, "name": "a"}, tried) == ["lr"] and at_ends({"lr": 2, "name": "b"}, tried) == []


def test_a_row_before_the_last_step_is_no_score(recipe):
    trial = recipe.tunings[0].trials[0]
    rows = [Row("sgd", (), 1_000_000 + k, trial.steps - k, "validation_loss", 1.0, 0.0) for k in range(2)]
    assert seed_scores(trial, rows, "validation_loss") == pytest.approx([1.0, math.nan], nan_ok=True)


BAD = [
    ("budget: 3", "budget: 4", "arms.sgd.tune: over has 3 points, fewer than the budget of 4"),
    (", budget: 3", "", "arm sam has 12 runs to be tuned with, arm sgd 6; give tune.budget"),
    ("rho: [0.02, 0.2]}", "rho: [0.02, 0.2]}, budget: 6", "arm sam has 12 runs"),
    ("rho: [0.02, 0.2]}", "rho: [0.02, 0.2]}, seeds: 3", "arm sam has 9 runs"),
    ("by: validation_loss", "by: test_error", "chosen on validation examples"),
    ("by: validation_loss", "by: train_loss", "chosen on validation examples"),
    (
        ", validation: 40",
        "",
        "needs validation examples; give their number as problem.dataset.digits.validation",
    ),
    ("seeds: 2, budget", "seeds: 2, first_seed: 1, budget", "seed 1 is one of the verdict's"),
    ("train.lr: [", "train.lrr: [", "did you mean 'lr'"),
    ("train.lr: [0.001", "train.lr: [-1", "arms.sgd.train.lr must be a number > 0"),
    ("rule.sam.rho: [", "rule.asam.rho: [", "there is no table for 'rule.asam.rho'"),
    ("train.lr: [", "train.steps: [", "train.steps: what is learnt and how long is the same"),
    ("train.lr: [", "problem.dataset.digits.train: [", "it cannot be tuned"),
    ("[0.001, 0.1, 0.5]", "0.1", "must be a list of values"),
    ("[0.001, 0.1, 0.5]", "[0.1, 0.1, 0.5]", "a value is given twice"),
    ("[0.001, 0.1, 0.5]", "[[1], 0.1, 0.5]", "a value is a number, a text or true/false"),
    ("over: {train.lr: [0.001, 0.1, 0.5]}, ", "", "give the settings to try"),
    ("seeds: 2, budget", "seed: 2, budget", "did you mean 'seeds'"),
    ("seeds: 2, budget", "seeds: 0, budget", "tune.seeds must be a whole number >= 1"),
    ("tune: null", "tune: yes", "arms.fixed.tune: must be a table"),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[said[:40] for _, _, said in BAD])
def test_refusals(old, new, said, tmp_path, monkeypatch, capsys):
    assert old in TUNED
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TUNED.replace(old, new, 1))
    code, out, err = call(capsys, "recipe=tiny", "dry_run=true")
    assert code == 2 and said in err and out == "" and err.count("\n") == 1, err


def test_trials_that_differ_in_numbers_alone_are_timed_once(recipe, monkeypatch):
    timed = []
    monkeypatch.setattr(execute, "_seconds", lambda block, root: timed.append(block) or 3.0)
    todo = [block for cell in trials_of(recipe).cells for block in blocks(cell)]
    assert len(todo) == 6 and execute.estimate_seconds(todo, None, 2) == 3.0 * 6 / 2
    assert ["sam" in json.dumps(block.spec) for block in timed] == [False, True]


def test_unequal_budgets_are_allowed_where_every_arm_states_its_own(tmp_path):
    text = TUNED.replace("sgd: {}", "sgd: {tune: {budget: 2}}").replace(
        "rho: [0.02, 0.2]}", "rho: [0.02, 0.2]}, budget: 5"
    )
    tried = settings(composed([f"recipe={write(tmp_path, text)}"]))
    assert {arm: len(each) for arm, each in tried.items()} == {"sgd": 2, "sam": 5}


def test_a_grid_is_tuned_point_by_point_and_not_over(tmp_path):
    grid = "grid: {n: {key: problem.dataset.digits.train, values: [40, 60]}}\narms:"
    recipe = composed(
        [f"recipe={write(tmp_path, TUNED.replace('arms:', grid, 1).replace('sgd}', 'sgd, at: {n: 40}}'))}"]
    )
    assert [json.loads(t.of[1]) for t in recipe.tunings] == [{"n": 40}, {"n": 60}] * 2
    axis = grid.replace("problem.dataset.digits.train", "train.lr")
    with pytest.raises(ValueError, match=r"train\.lr is the grid axis n; it cannot be tuned as well"):
        composed([f"recipe={write(tmp_path, TUNED.replace('arms:', axis, 1))}"])


def test_a_rule_in_a_list_is_named_by_its_place(tmp_path):
    text = TUNED.replace("rule: {sam: {rho: 0.05}}", "rule: [clip, {sam: {rho: 0.05}}]").replace(
        "rule.sam.rho", "rule.1.sam.rho"
    )
    recipe = composed([f"recipe={write(tmp_path, text)}"])
    rhos = [c.spec["rule"][1]["sam"]["rho"] for c in recipe.tunings[1].finals]
    assert rhos == [s["rule.1.sam.rho"] for s in recipe.tunings[1].spec.candidates]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after it runs."""


def executor(survives):
    """Runs the jobs here, last first, and dies after so many of them."""
    left = itertools.count(survives, -1)

    def run(jobs, progress):
        for k in reversed(range(len(jobs))):
            if next(left) == 0:
                raise Killed
            yield k, work(jobs[k], progress)

    return run


@pytest.fixture
def home(tmp_path, monkeypatch):
    write(tmp_path, TUNED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ends_of(folder):
    record = json.loads((folder / "run.json").read_text())
    return (folder / "results.csv").read_bytes(), (folder / "verdicts.json").read_bytes(), record["tuning"]


def run_with(home, lr):
    """The lines of a table of the arm sgd with this learning rate and without tuning."""
    recipe = affordable(composed(["recipe=tiny", "tune=null", "arms.sam.tune=null", f"train.lr={lr}"]))
    cell = recipe.cells[0]
    rows = rows_of(cell, run_cell(cell.spec, None, home / "none.safetensors", lambda step: None))
    return [line for line in results.write(rows, ()).splitlines() if line.startswith("sgd,")]


def test_a_study_in_two_stages_however_often_it_is_killed(home, monkeypatch, capsys):
    dies = iter([100, 100, 4, 4, 5])
    monkeypatch.setattr(study, "executor_of", lambda recipe: executor(next(dies)))
    code, out, _ = call(capsys, "recipe=tiny", "out=run", "dry_run=true")
    assert code == 0 and "# first stage, tuning: 6 cells" in out and "12 runs, 540 steps" in out
    assert "# second stage: 3 cells, of which 3 are to be run: 9 runs, 450 steps" in out
    code, _, err = call(capsys, "recipe=tiny", "out=run")
    assert code == 0, err
    table, _, (sgd, sam) = ends_of(home / "run")
    means = [t["mean"] for t in sgd["trials"]]
    assert sgd["chosen"] == sgd["trials"][means.index(min(means))]["setting"] and len(set(means)) == 3
    assert len(sam["trials"]) == 3 and sam["chosen"] in [t["setting"] for t in sam["trials"]]
    report = (home / "run" / "report.html").read_text()
    assert "Settings that were tuned" in report and f"train.lr = {sgd['chosen']['train.lr']}" in report
    assert "## Settings that were tuned" in (home / "run" / "report.md").read_text()
    assert b"1000000" not in table  # the trials' rows are not among the verdict's
    by_hand = run_with(home, sgd["chosen"]["train.lr"])
    mine = [line for line in table.decode().splitlines() if line.startswith("sgd,")]
    assert mine == by_hand  # what the arm ran with is what was chosen
    for chosen in (False, True):  # dies in the first stage, then in the second
        with pytest.raises(Killed):
            call(capsys, "recipe=tiny", "out=killed")
        before = json.loads((home / "killed" / "run.json").read_text())["tuning"]
        assert (before[0]["chosen"] is not None) == chosen and len(before[0]["trials"]) == 3
    assert len(list((home / "killed" / "cells").glob("*.json"))) == 8
    assert call(capsys, "recipe=tiny", "out=killed")[0] == 0
    assert ends_of(home / "killed") == ends_of(home / "run")
    assert next(dies, None) is None
    monkeypatch.setattr(study, "executor_of", lambda recipe: executor(0))
    code, out, _ = call(capsys, "recipe=tiny", "out=run", "dry_run=true")
    assert code == 0 and "second stage: 3 cells, of which 0 are to be run" in out
    code, _, _ = call(capsys, "report", "run")
    assert code == 0 and "Settings that were tuned" in (home / "run" / "report.html").read_text()
