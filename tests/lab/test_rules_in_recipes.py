"""Rules that a recipe names: what they need of the network is given to them, or they are refused."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.losses import cross_entropy
from flattrain.lab.compose import composed
from flattrain.lab.run import Experiment
from flattrain.rules.esam import esam
from flattrain.rules.functional_sam import functional_sam
from flattrain.rules.norm_only import sam_on
from flattrain.training.objective import Objective, build
from flattrain.training.optimizers import sgd
from flattrain.training.stacked import stacked_trainer

RECIPE = """
title: A rule
question: Does it train?
paper: none
problem: {{dataset: {{digits: {{train: 40, test: 20}}}}, loss: {loss}}}
model: {model}
train: {{lr: 0.1, batch_size: 10, steps: 4, milestones: 1}}
precision: float64
seeds: 2
arms:
  it: {{rule: {rule}}}
measures: {{along: [train_loss]}}
claims:
  falls:
    says: It falls.
    test: {{median: {{quantity: train_loss, arm: it}}}}
    predicts: {{below: 10}}
"""
NORMED = "{mlp: {widths: [6], normalisation: layer}}"


def experiment(tmp_path, rule, model=NORMED, loss="cross_entropy"):
    path = tmp_path / "rule.yaml"
    path.write_text(RECIPE.format(rule=rule, model=model, loss=loss))
    (cell,) = composed([f"recipe={path}"]).cells
    return Experiment(cell.spec, None)


def trained(trainer):
    state = trainer.init()
    while state.step < 4:
        state = trainer.advance(state, 4)
    return torch.cat([v.flatten(1) for v in state.params.values()], 1)


@pytest.mark.parametrize(
    "rule",
    [
        "asam",
        "{asam: {rho: 2, eta: 0, biases: scaled}}",
        "sam_on",
        "{sam_on: {parameters: [head.weight]}}",
        "gsam",
        "wsam",
        "gnp",
        "stable_sam",
        "{n_step_sam: {steps: 3}}",
        "ascended_loss",
        "{looksam: {every: 2}}",
        "friendly_sam",
        "esam",
        "functional_sam",
        "antithetic_noise",
        "{weight_noise: {copies: 2}}",
        "[{clip: {norm: 1}}, {schedule: {start: 2, before: 0}}, looksam, {weight_decay: {lam: 0.1}}]",
    ],
)
def test_a_recipe_trains_with_it(tmp_path, rule):
    plain = trained(experiment(tmp_path, "plain").trainer)
    mine = trained(experiment(tmp_path, rule).trainer)
    assert torch.isfinite(mine).all() and (mine - plain).norm() > 1e-5


@pytest.mark.parametrize("name", ["esam", "functional_sam", "sam_on"])
def test_the_laboratory_gives_the_rule_what_one_would_give_by_hand(tmp_path, name):
    it = experiment(tmp_path, name)
    objective = build(it.module, cross_entropy, [])
    rule = {
        "esam": lambda: esam(losses=objective.losses),
        "functional_sam": lambda: functional_sam(outputs=objective.outputs, criterion=cross_entropy),
        "sam_on": lambda: sam_on(parameters=("norm1.weight", "norm1.bias")),
    }[name]()
    by_hand = stacked_trainer(objective, rule, sgd(lr=0.1), 10, it.stacked)
    assert torch.equal(trained(it.trainer), trained(by_hand))


def test_what_a_net_cannot_give_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sam_on: the net has no normalisation layer"):
        experiment(tmp_path, "sam_on", "mlp")
    with pytest.raises(ValueError, match=r"it\.rule\.esam\.losses must be a function"):
        experiment(tmp_path, "{esam: {losses: 3}}")
    with pytest.raises(ValueError, match=r"it\.rule\.functional_sam\.criterion must be a flattrain"):
        experiment(tmp_path, "{functional_sam: {criterion: cross_entropy}}")


def test_a_net_with_buffers_of_each_seed(tmp_path):
    """The simplified BatchNorm sees the training set of its seed, which a function of the batch does not."""
    parity = "parity: {dim: 5, train: 12, test: 20}"
    model = "{two_layer: {width: 6, normalisation: batch}}"

    def with_parity(rule):
        path = tmp_path / "rule.yaml"
        text = RECIPE.format(rule=rule, model=model, loss="squared_error")
        path.write_text(text.replace("digits: {train: 40, test: 20}", parity))
        (cell,) = composed([f"recipe={path}"]).cells
        return Experiment(cell.spec, None)

    for rule in ("esam", "functional_sam"):
        with pytest.raises(ValueError, match="for nets without buffers"):
            with_parity(rule)
    moved = trained(with_parity("sam_on").trainer)
    assert (moved - trained(with_parity("plain").trainer)).norm() > 1e-5


def test_per_example_sam_takes_two_passes_where_it_is_all_there_is(tmp_path, monkeypatch):
    taken = []
    whole = Objective.per_example_sam
    monkeypatch.setattr(Objective, "per_example_sam", lambda *own: taken.append(1) or whole(*own))
    found = trained(experiment(tmp_path, "{m_sam: {rho: 0.5}}").trainer)
    assert taken
    taken.clear()
    # Around another rule, its examples run side by side.
    torch.testing.assert_close(
        found, trained(experiment(tmp_path, "[{m_sam: {rho: 0.5}}, plain]").trainer), rtol=1e-10, atol=1e-12
    )
    assert not taken
