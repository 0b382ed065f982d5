"""A recipe that runs in seconds, and helpers to call the command line in this process."""

from __future__ import annotations

import subprocess
import sys

from flattrain.lab import cli

TINY = """
title: A tiny study
question: Does it run <b>from end to end</b>?
paper: none
problem:
  dataset: {parity: {dim: 5, train: 12, test: 30}}
  loss: squared_error
train: {lr: 0.02, batch_size: 1, steps: 300, milestones: 3}
seeds: 3
grid:
  n: {key: problem.dataset.parity.train, values: [8, 12]}
arms:
  sam: {model: {two_layer: {width: 12}}, rule: {sam: {rho: 0.05}}}
  batch: {model: {two_layer: {width: 12}}, train: {batch_size: 4, momentum: 0.5}, grid: {n: [12]}}
measures:
  along: [train_loss, test_error]
  end: [two_layer_trace]
claims:
  falls:
    says: The loss is below one.
    source: a test
    test: {median: {quantity: train_loss, arm: sam, at: {n: 12}}}
    predicts: {below: 1.0}
  rises:
    says: The loss is above ten.
    test: {median: {quantity: train_loss, arm: sam, at: {n: 12}}}
    predicts: {above: 10.0}
  empty:
    says: Nothing, as the condition cannot hold.
    test: {difference: {quantity: test_error, arm: sam, versus: batch, at: {n: 12}}}
    predicts: {below: 0}
    void_unless: [{quantity: train_loss, arm: batch, at: {n: 12}, below: -1}]
figures:
  - trajectory: {quantity: train_loss, log: y}
  - scatter: {x: train_loss, y: test_error, title: "A < B & C"}
  - sweep: {over: n, quantity: test_error}
"""

ARMS = "{plain: {model: {two_layer: {width: 7}}}}"
ONE_ARM = f"""
problem: {{dataset: {{parity: {{dim: 5, train: 12, test: 30}}}}, loss: squared_error}}
train: {{lr: 0.02, batch_size: 4, steps: 20, milestones: 1}}
seeds: 2
arms: {ARMS}
measures: {{along: [train_loss]}}
"""
CLAIM = """
claims:
  falls: {says: x, test: {median: {quantity: train_loss, arm: plain}}, predicts: {below: 1.0}}
"""


def write(folder, text=TINY, name="tiny"):
    (folder / "recipes").mkdir(exist_ok=True)
    path = folder / "recipes" / f"{name}.yaml"
    path.write_text(text)
    return path


def apart(folder, *words):
    """The recipe `tiny` of a folder, run there by a program of its own."""
    command = [sys.executable, "-m", "flattrain", "recipe=tiny", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def call(capsys, *words):
    """Exit code, standard output, standard error."""
    code = cli.run(list(words))
    out, err = capsys.readouterr()
    return code, out, err
